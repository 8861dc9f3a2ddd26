"""Disks that are between two places, and must not be changed until somebody has chosen one."""

from __future__ import annotations

from collections.abc import Iterable

from imgtool.engine import jobs
from imgtool.engine.world import World
from imgtool.model.domain import Head
from imgtool.model.errors import RefusedError
from imgtool.model.snapshot import Snapshot
from imgtool.xml.snapshot import parse_snapshot


def mirrored(world: World, head: Head) -> Snapshot | None:
    """The current snapshot, if it has mirrors."""
    domain = head.domain.name
    current = world.store.current(domain)
    if current is None:
        return None
    for document in world.store.snapshots(domain):
        if b"mirror" not in document:
            continue  # sooner said than parsed
        snapshot = parse_snapshot(document, where=domain)
        if snapshot.name == current and any(disk.mirror for disk in snapshot.disks):
            return snapshot
    return None


def require_free(
    world: World, head: Head, targets: Iterable[str] | None = None, *, but: str = ""
) -> None:
    """Raises RefusedError if one of these disks (None: any) is mirrored or in a copy job.

    It names the two ways out. `but`: the mirrored snapshot of that name is in nobody's way.
    """
    targets = None if targets is None else tuple(targets)
    require_no_job(world, head, targets)
    require_not_mirrored(world, head, targets, but=but)


def require_no_job(world: World, head: Head, targets: Iterable[str] | None = None) -> None:
    """Raises RefusedError if one of these disks (None: any) is in a copy job that is open."""
    for job in jobs.open_jobs(world, head.domain.uuid):
        if not jobs.is_over(job, head):
            jobs.require_free(job, job.targets if targets is None else targets)


def require_not_mirrored(
    world: World, head: Head, targets: Iterable[str] | None = None, *, but: str = ""
) -> None:
    """Raises RefusedError if one of these disks (None: any) is mirrored."""
    snapshot = mirrored(world, head)
    if snapshot is None or snapshot.name == but:
        return
    disks = [disk.name for disk in snapshot.disks if disk.mirror]
    if targets is not None and not set(disks) & set(targets):
        return
    way = f"imgtool snapshot-delete {head.domain.name} {snapshot.name}"
    raise RefusedError(
        f"{', '.join(disks)}: mirrored by the current snapshot {snapshot.name}, "
        "and that mirror would not be its equal any more",
        remedy=f"go to the mirror: {way} --mirror-pivot; or stay: {way} --mirror-abort",
    )
