"""Copy jobs of a stopped domain: copy disks, then move the domain to the copies, or do not."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from imgtool.api.disks import disk_of
from imgtool.api.world import working_on
from imgtool.engine import copying, destinations, guard, jobs, survey
from imgtool.engine.pivoting import pivot
from imgtool.engine.room import Room
from imgtool.engine.world import World
from imgtool.model.domain import Head
from imgtool.model.errors import NotFoundError
from imgtool.model.image import Chain, Format
from imgtool.model.job import CopyJob, Phase
from imgtool.plan.blockcopy import (
    CopyFacts,
    CopyPlan,
    CopyRequest,
    Reused,
    copy_pins,
    plan_copy,
    resolved,
)
from imgtool.plan.copypivot import PivotPlan, are_still, plan_pivot
from imgtool.stores.base import require_stopped


class Ending(StrEnum):
    """What became of a job."""

    PLANNED = "planned"  # a dry run
    COPYING = Phase.COPYING
    READY = Phase.READY
    PIVOTED = "pivoted"  # the domain uses the copies
    FINISHED = "finished"  # the copies stay, the domain uses what it used before
    ABORTED = "aborted"  # nothing is left of the copies


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTarget:
    """One disk, and where it is copied to."""

    disk: str  # target, or path of its active layer
    dest: str
    format: Format | None = None  # None: that of the source


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyOptions:
    """How disks are copied; the names are those of virsh's options."""

    shallow: bool = False
    reuse_external: bool = False
    pivot: bool = False
    finish: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """A copy job, and what became of it. None: there is none."""

    domain: str
    job: CopyJob | None
    ending: Ending
    done: tuple[int, ...] = ()  # bytes, of each disk
    planned: PivotPlan | None = None  # of a dry run


def block_copy(
    world: World, domain: str, disks: Sequence[CopyTarget], options: CopyOptions
) -> CopyResult:
    """Copy disks at one point in time; then pivot, finish, or leave the job ready.

    Again with the same words, it goes on with what a crash has left, and copies anew if a disk
    has changed since. An error or a signal before the job is ready leaves nothing behind; a crash
    leaves it copying, with the domain as it was.
    """
    if options.dry_run:
        head = _head(world, domain)
        requests = _requests(head, disks, options)
        chains = _chains(world, head, requests)
        old = _same(jobs.open_jobs(world, head.domain.uuid), requests, chains)
        planned = _plan(world, head, requests, chains, old)
        for note in planned.notes:
            world.say(note)
        return _result(planned.job, Ending.PLANNED)
    with working_on(world, domain, jobs=True) as room:
        head = _head(world, domain)
        job = _make_ready(world, head, _requests(head, disks, options), room)
        world.interrupt.outcome = "the copy job is ready, and stays so"
        if options.pivot:
            pivot(job, _planned_pivot(world, head, job), head, room, world)
            return _result(job, Ending.PIVOTED)
        if options.finish:
            room.jobs.drop(job)
            world.interrupt.outcome = "came too late: the copy is finished"
        return _result(job, Ending.FINISHED if options.finish else Ending.READY)


def block_job(world: World, domain: str, disk: str) -> CopyResult:
    """Where the copy job of a disk (target, or path of an image of it) stands. Reads only."""
    head = world.store.head(domain)
    job = _find(jobs.open_jobs(world, head.domain.uuid), head, disk)
    if job is None or jobs.is_over(job, head):
        return CopyResult(domain=head.domain.name, job=None, ending=Ending.FINISHED)
    return _result(job, Ending(job.phase))


def block_job_abort(world: World, domain: str, disk: str, *, dry_run: bool = False) -> CopyResult:
    """End the job of a disk: from copying, nothing is left of it; from ready, the copies stay."""
    if dry_run:
        head = world.store.head(domain)
        return _result(_need(jobs.open_jobs(world, head.domain.uuid), head, disk), Ending.PLANNED)
    with working_on(world, domain, jobs=True) as room:
        job = _need(room.jobs.read(), world.store.head(domain), disk)
        if job.phase is Phase.READY:
            room.jobs.drop(job)
            return _result(job, Ending.FINISHED)
        jobs.discard(job, room, world)
        return _result(job, Ending.ABORTED)


def block_job_pivot(world: World, domain: str, disk: str, *, dry_run: bool = False) -> CopyResult:
    """Let the domain use the copies of the job of a disk, all disks of that job at once.

    Raises RefusedError unless the job is ready, and ImageChangedError for a copy that is old.
    """
    if dry_run:
        head = _head(world, domain)
        job = _need(jobs.open_jobs(world, head.domain.uuid), head, disk)
        planned = _planned_pivot(world, head, job)
        return replace(_result(job, Ending.PLANNED), planned=planned)
    with working_on(world, domain, jobs=True) as room:
        head = _head(world, domain)
        job = _need(room.jobs.read(), head, disk)
        pivot(job, _planned_pivot(world, head, job), head, room, world)
        return _result(job, Ending.PIVOTED)


def _head(world: World, domain: str) -> Head:
    head = world.store.head(domain)
    require_stopped(head.domain.name, head.state)
    return head


def _result(job: CopyJob, ending: Ending) -> CopyResult:
    done = tuple(jobs.bytes_done(job, disk) for disk in job.disks)
    return CopyResult(domain=job.domain, job=job, ending=ending, done=done)


def _requests(
    head: Head, disks: Sequence[CopyTarget], options: CopyOptions
) -> tuple[CopyRequest, ...]:
    return tuple(
        CopyRequest(
            target=disk_of(head, disk.disk).target,
            dest=_plain(disk.dest),
            format=disk.format,
            shallow=options.shallow,
            reuse=options.reuse_external,
        )
        for disk in disks
    )


def _plain(dest: str) -> Path:
    """Absolute, and without `..`, as libvirt wants it."""
    path = Path(dest).absolute()
    return path.parent.resolve() / path.name if ".." in path.parts else path


def _chains(world: World, head: Head, requests: Sequence[CopyRequest]) -> dict[str, Chain]:
    guard.require_not_mirrored(world, head, [request.target for request in requests])
    return {
        request.target: survey.chain_of(disk_of(head, request.target), world)
        for request in requests
    }


def _make_ready(world: World, head: Head, requests: Sequence[CopyRequest], room: Room) -> CopyJob:
    """Begin a job, or take up the one of the same words, and copy."""
    chains = _chains(world, head, requests)
    old = _same(room.jobs.read(), requests, chains)
    if old is not None and _is_current(old, chains, world):
        if old.phase is Phase.READY:
            return old
        world.say(f"going on with the copy job of {', '.join(old.targets)}")
        facts = _facts(world, head, requests, chains, old)
        return copying.make_ready(old, tuple(copy_pins(old, facts)), (), room, world)
    planned = _plan(world, head, requests, chains, old)
    if old is not None:
        world.say(f"{', '.join(old.targets)}: copying anew: what was copied is old")
        jobs.discard(replace(old, phase=Phase.COPYING), room, world)
    for note in planned.notes:
        world.say(note)
    return copying.make_ready(planned.job, planned.pins, planned.space, room, world)


def _same(
    known: Sequence[CopyJob], requests: Sequence[CopyRequest], chains: dict[str, Chain]
) -> CopyJob | None:
    """The open job of the same words. Raises RefusedError if a disk has another one."""
    asked = {
        (each.target, each.dest, resolved(each, chains[each.target]), each.shallow, each.reuse)
        for each in requests
    }
    for job in known:
        if asked == {disk.asked for disk in job.disks}:
            return job
        jobs.require_free(job, [each.target for each in requests])
    return None


def _is_current(job: CopyJob, chains: dict[str, Chain], world: World) -> bool:
    """Whether what the job has copied is what the disks still show, and is there."""
    if any(disk.has_block_devices for disk in job.disks):
        return False  # nobody can tell without reading all of it
    sources = all(are_still(disk.layers, chains[disk.target]) for disk in job.disks)
    return sources and destinations.can_go_on(job, world)


def _plan(
    world: World,
    head: Head,
    requests: Sequence[CopyRequest],
    chains: dict[str, Chain],
    old: CopyJob | None,
) -> CopyPlan:
    return plan_copy(requests, _facts(world, head, requests, chains, old))


def _facts(
    world: World,
    head: Head,
    requests: Sequence[CopyRequest],
    chains: dict[str, Chain],
    old: CopyJob | None,
) -> CopyFacts:
    places, reused = {}, {}
    for each in requests:
        name, fmt = each.target, resolved(each, chains[each.target])
        if each.reuse:
            reused[name] = destinations.reused(name, each.dest, fmt, old, world)
        else:
            places[name] = destinations.place_of(name, each.dest, old, world)
    recorded = len(world.store.snapshots(head.domain.name))
    return _found(world, head, chains, places=places, reused=reused, snapshots=recorded)


def _found(world: World, head: Head, chains: dict[str, Chain], **more: Any) -> CopyFacts:
    txid = secrets.token_hex(8)
    return CopyFacts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / head.domain.uuid / txid,
        chains=chains,
        **more,
    )


def _planned_pivot(world: World, head: Head, job: CopyJob) -> PivotPlan:
    ready = job.disks if job.phase is Phase.READY else ()
    copies = {disk.target: destinations.chain_of_copy(disk, world) for disk in ready}
    reused = {name: Reused(chain=chain, has_data=True) for name, chain in copies.items()}
    chains = {name: survey.chain_of(disk_of(head, name), world) for name in job.targets}
    return plan_pivot(job, _found(world, head, chains, reused=reused))


def _find(known: Sequence[CopyJob], head: Head, name: str) -> CopyJob | None:
    """The job of a disk: by target, by the path of its source, or by that of its copy."""
    target = name
    if "/" in name and not any(name == str(disk.dest) for job in known for disk in job.disks):
        target = disk_of(head, name).target
    for job in known:
        for disk in job.disks:
            if target in (disk.target, str(disk.dest)):
                return job
    if head.domain.disk(target) is None:
        disk_of(head, target)  # says that there is no such disk
    return None


def _need(known: Sequence[CopyJob], head: Head, name: str) -> CopyJob:
    job = _find(known, head, name)
    if job is None or jobs.is_over(job, head):
        raise NotFoundError(
            f"no current block job for {name}", remedy="begin one with imgtool blockcopy"
        )
    return job
