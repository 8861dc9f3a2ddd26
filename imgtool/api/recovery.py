"""End what was left open."""

from __future__ import annotations

from imgtool.engine import recovery
from imgtool.engine.jobs import all_jobs
from imgtool.engine.recovery import Recovery, Waiting
from imgtool.engine.world import World
from imgtool.model.errors import NotFoundError
from imgtool.model.job import CopyJob


def recover(world: World, domain: str | None = None) -> Recovery:
    """End what was left open: of one domain (name or UUID), or of all."""
    return recovery.recover(world, None if domain is None else _uuid(world, domain))


def pending(world: World, domain: str | None = None) -> tuple[Waiting, ...]:
    """What is open, and which way it would end. Reads only."""
    found = recovery.all_waiting(world)
    if domain is None:
        return found
    uuid = _uuid(world, domain)
    return tuple(each for each in found if each.plan.uuid == uuid)


def copy_jobs(world: World, domain: str | None = None) -> tuple[CopyJob, ...]:
    """The copy jobs that are open: of one domain, or of all. Reads only. Raises PendingError."""
    found = all_jobs(world)
    if domain is None:
        return found
    uuid = _uuid(world, domain)
    return tuple(job for job in found if job.uuid == uuid)


def _uuid(world: World, domain: str) -> str:
    try:
        return world.store.head(domain).domain.uuid
    except NotFoundError:
        for each in recovery.all_waiting(world):
            if domain in (each.plan.domain, each.plan.uuid):
                return each.plan.uuid  # undefined meanwhile
        for job in all_jobs(world):
            if domain in (job.domain, job.uuid):
                return job.uuid
        raise
