"""Copy jobs that are open: where they stand, what a crash has left of them, who is in their way."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from imgtool.engine.jobfile import JobFile
from imgtool.engine.room import Room, uuids
from imgtool.engine.world import World, naming
from imgtool.model.domain import Head
from imgtool.model.errors import FailedError, NotFoundError, PendingError, RefusedError
from imgtool.model.job import CopyJob, DiskCopy, Phase


def open_jobs(world: World, uuid: str) -> tuple[CopyJob, ...]:
    """The jobs of one domain, read without its lock. Raises PendingError."""
    return JobFile(world.state_dir / uuid / "job", world.files).read()


def all_jobs(world: World) -> tuple[CopyJob, ...]:
    """All jobs in the state folder. Raises PendingError."""
    return tuple(job for uuid in uuids(world.state_dir) for job in open_jobs(world, uuid))


def is_over(job: CopyJob, head: Head) -> bool:
    """Whether the domain has moved to the copies: then the job has ended, and only says so not.

    The domain XML is the commit record, here too. If somebody has edited our mark away since, it
    still names the copies.
    """
    if job.phase is not Phase.READY:
        return False
    if job.pivot and head.domain.transaction == job.pivot:
        return True
    return all(_uses(head, disk) for disk in job.disks)


def _uses(head: Head, copy: DiskCopy) -> bool:
    disk = head.domain.disk(copy.target)
    if disk is None or disk.source is None:
        return False
    return os.path.realpath(disk.source) == os.path.realpath(copy.dest)


def settle(room: Room, world: World, uuid: str) -> None:
    """After a crash: forget jobs that have pivoted, drop the staged names of those that are ready.

    No transaction is pending. Idempotent, and safe to kill.
    """
    room.jobs.tidy()
    jobs = tuple(job for job in room.jobs.read() if job.store == world.store.uri)
    if not jobs:
        return
    try:
        head = world.store.head(uuid)
    except NotFoundError:  # somebody has undefined the domain: whole copies stay
        head = None
    for job in jobs:
        if head is None and job.phase is Phase.COPYING:
            discard(job, room, world)
            continue
        if job.phase is Phase.READY and any(map(_is_staged, job.disks)):
            drop_staged(job, world)
        if head is None or is_over(job, head):
            room.jobs.drop(job)


def _is_staged(disk: DiskCopy) -> bool:
    return not disk.reuse and os.path.lexists(disk.staged)


def discard(job: CopyJob, room: Room, world: World) -> None:
    """End a job that is worth nothing, with all that it has made; the record goes last.

    Idempotent, and safe to kill: another call goes on. A destination that somebody else has made,
    or has used since, stays. Raises PendingError if it could not be ended.
    """
    try:
        with world.interrupt.deferred(lambda: None), world.interrupt.shielded():
            if any(each.id == job.id and each.phase is Phase.READY for each in room.jobs.read()):
                room.jobs.put(job)  # or a crash would leave a job that calls a removed copy whole
            for disk in job.disks:
                if not disk.reuse and os.path.lexists(disk.dest) and _may_go(job, disk, world):
                    with naming(disk.target, disk.dest):
                        world.files.unlink(disk.dest)
            drop_staged(job, world)
            room.jobs.drop(job)
    except (OSError, FailedError, PendingError) as error:
        raise PendingError(
            f"a copy job is left open ({room.jobs.path}): {error}",
            remedy=f"mend the cause, then: {command_for(job)} --abort",
        ) from error


def command_for(job: CopyJob) -> str:
    """How to ask imgtool about a job."""
    return f"imgtool -c {job.store} blockjob {job.domain} {job.targets[0]}"


def _may_go(job: CopyJob, disk: DiskCopy, world: World) -> bool:
    """Whether a destination is as we have made it, and nobody has let the domain use it."""
    if not is_ours(disk, world):
        return False
    try:
        head = world.store.head(job.uuid)
    except NotFoundError:
        return True
    if _uses(head, disk):
        world.say(f"{disk.target}: {disk.dest} is in use by {job.domain} and stays where it is")
        return False
    return True


def is_ours(disk: DiskCopy, world: World) -> bool:
    """Whether the destination is the file that was published, and still as it was then."""
    if not disk.copied or disk.dest.is_symlink():
        return False
    if disk.copied[-1].is_still(world.files.identity(disk.dest)):
        return True
    if world.files.same(disk.staged, disk.dest):
        world.say(f"{disk.target}: {disk.dest} was written to meanwhile and is left where it is")
    return False


def drop_staged(job: CopyJob, world: World) -> None:
    """Remove the staged names, durably; what was published stays. Raises FailedError."""
    made = [disk for disk in job.disks if not disk.reuse]
    for disk in made:
        with naming(disk.target, disk.dest):
            world.files.unlink(disk.staged)
    for disk in {disk.staged.parent: disk for disk in made}.values():
        if disk.staged.parent.is_dir():
            with naming(disk.target, disk.dest):
                world.files.sync_dir(disk.staged.parent)


def require_no_jobs(room: Room) -> None:
    """Raises RefusedError, with the ways out, while a copy job of the domain is open."""
    for job in room.jobs.read():
        require_free(job, job.targets)


def require_free(job: CopyJob, targets: Iterable[str]) -> None:
    """Raises RefusedError if the job has one of these disks."""
    taken = [target for target in targets if target in job.targets]
    if not taken:
        return
    command = command_for(job)
    way = f"{command} --pivot, or {command} --abort"
    if job.phase is Phase.COPYING:
        way = f"run the same blockcopy again, or {command} --abort"
    raise RefusedError(f"disk '{taken[0]}' already in active block job", remedy=way)


def bytes_done(job: CopyJob, disk: DiskCopy) -> int:
    """How much of a disk is copied, in bytes; of one that is being written, what is there."""
    if job.phase is Phase.READY or disk.copied:
        return disk.total
    return 0 if disk.reuse else min(disk.total, _allocated(disk.staged))


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0
