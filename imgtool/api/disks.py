"""Which disks of a domain an operation is about, and their chains."""

from __future__ import annotations

import os
from collections.abc import Sequence

from imgtool.engine import survey
from imgtool.engine.world import World
from imgtool.model.domain import Disk, Head
from imgtool.model.errors import NotFoundError
from imgtool.model.image import Chain

LOCAL = ("file", "block", "volume")  # types of disks whose images this host can open


def chosen_chains(world: World, head: Head, disks: Sequence[str]) -> dict[str, Chain]:
    """The chains of the disks that are named; of all that have more than one layer."""
    if disks:
        found = [disk_of(head, disk) for disk in disks]
        return {disk.target: survey.chain_of(disk, world) for disk in found}
    chains = {
        disk.target: survey.chain_of(disk, world)
        for disk in head.domain.disks
        if disk.device in ("disk", "lun") and not disk.empty and disk.type in LOCAL
    }
    return {target: chain for target, chain in chains.items() if len(chain.images) > 1}


def disk_of(head: Head, name: str) -> Disk:
    """A disk by its target or by the path of its source. Raises NotFoundError."""
    found = head.domain.disk(name)
    if found is None and os.sep in name:
        real = os.path.realpath(name)
        for disk in head.domain.disks:
            if disk.source is not None and real == os.path.realpath(disk.source):
                found = disk
    if found is None:
        raise NotFoundError(f"no disk named {name!r}", remedy="see imgtool domblklist")
    return found
