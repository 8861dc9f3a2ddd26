"""Disks that are between two places, and must not be changed until somebody has chosen one."""

from __future__ import annotations

from collections.abc import Iterable

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
    """Raises RefusedError if one of these disks (None: any) is mirrored, with the two ways out.

    `but`: the mirrored snapshot of that name is in nobody's way.
    """
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
