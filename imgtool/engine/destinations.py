"""Look at where copies are to go: names that are free, images that somebody has made, copies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from imgtool.engine import jobs, survey
from imgtool.engine.glance import look_at
from imgtool.engine.world import World
from imgtool.model.domain import Disk
from imgtool.model.errors import BadRequestError
from imgtool.model.image import Chain, Format
from imgtool.model.job import CopyJob, DiskCopy, Phase
from imgtool.plan.blockcopy import Reused
from imgtool.plan.lineage import FileId, files_of
from imgtool.plan.snapshot import Place


def chain_at(target: str, path: Path, fmt: Format, world: World) -> Chain:
    """The chain of an image that no domain names yet. Raises ChainError, UnsupportedError."""
    return survey.chain_of(Disk(target=target, source=path, format=fmt), world)


def chain_of_copy(disk: DiskCopy, world: World) -> Chain:
    """What a copy that is ready leads to now. Raises ChainError, UnsupportedError."""
    return chain_at(disk.target, disk.dest, disk.format, world)


def place_of(target: str, dest: Path, old: CopyJob | None, world: World) -> Place:
    """Where a copy would go; what the job `old`, which it takes the place of, has made counts not.

    Raises BadRequestError if there is no such folder.
    """
    place = survey.place_of(target, dest)
    disk = None if old is None else old.disk(target)
    if disk is not None and place.taken and jobs.is_ours(disk, world):
        return replace(place, taken=False)
    return place


def reused(target: str, dest: Path, fmt: Format, old: CopyJob | None, world: World) -> Reused:
    """A destination that somebody has made, and who else may have a claim on it.

    Raises BadRequestError if it is not there, ChainError if it is no such image.
    """
    if not os.path.lexists(dest):
        raise BadRequestError(
            f"missing destination file for disk {target}: {dest}",
            remedy="make it first, or leave --reuse-external out",
        )
    chain = chain_at(target, dest, fmt, world)
    image = chain.active
    has_data = len(chain.images) > 1 and world.qemu.has_own_data(
        image.path, block_device=image.block_device
    )
    users = dict.fromkeys(_users(image.identity.file, image.path, old, world))
    return Reused(chain=chain, has_data=has_data, users=tuple(users))


def _users(file: FileId, path: Path, old: CopyJob | None, world: World) -> Iterator[str]:
    for name in world.store.domains():
        if file in files_of(look_at(name, world).all_chains()):
            yield f"domain {name}"
    for job in jobs.all_jobs(world):
        for disk in job.disks if old is None or job.id != old.id else ():
            if os.path.realpath(disk.dest) == str(path):
                yield f"a copy job of domain {job.domain}"


def can_go_on(job: CopyJob, world: World) -> bool:
    """Whether what the job has made so far is still there and as it was: its sources are."""
    if job.phase is Phase.COPYING:
        return True
    return all(os.path.lexists(disk.dest) and _is_still(disk, world) for disk in job.disks)


def _is_still(disk: DiskCopy, world: World) -> bool:
    return disk.copied[-1].is_still(world.files.identity(disk.dest))
