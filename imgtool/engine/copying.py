"""Copy the disks of a job, until it is ready: all of them, or none is left behind."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from imgtool.engine import survey
from imgtool.engine.jobs import discard, drop_staged
from imgtool.engine.room import Room
from imgtool.engine.transaction import require_space
from imgtool.engine.world import World, failed, naming
from imgtool.host.headers import read_image
from imgtool.host.locks import PinnedImages, check_unchanged
from imgtool.model.domain import Disk
from imgtool.model.errors import FailedError, NotDurableError
from imgtool.model.image import Format
from imgtool.model.job import CopyJob, DiskCopy, Layer, Phase
from imgtool.model.plan import Node, Pin, Space


def make_ready(
    job: CopyJob, pins: Sequence[Pin], space: Sequence[Space], room: Room, world: World
) -> CopyJob:
    """Copy, compare, sync and publish every disk; returns the job in its second phase.

    Disks that an earlier process has finished are not copied again. An error or a signal ends the
    job with nothing left behind. A crash leaves it copying: this goes on with it, `discard` ends
    it. Raises the first disk's error, Interrupted, or PendingError if it could not be ended.
    """
    with PinnedImages() as pinned, world.interrupt.deferred(world.qemu.cancel):
        pinned.pin(pins)
        require_space(space, world)
        world.interrupt.check()
        try:
            ready = _copied(job, pins, room, world)
        except BaseException as error:
            world.qemu.resume()
            _give_up(job, room, world)
            world.interrupt.check()
            if isinstance(error, NotDurableError):  # all of it was taken back
                raise FailedError(error.message, remedy="look at the storage") from error
            if isinstance(error, OSError):
                raise failed(job.domain, error, room.jobs.path) from error
            raise
        with suppress(FailedError):  # they mean nothing any more: `settle` tries again
            drop_staged(ready, world)
        return ready


def _give_up(job: CopyJob, room: Room, world: World) -> None:
    """With what the file says was published."""
    known = [each for each in room.jobs.read() if each.id == job.id]
    discard(replace(known[0] if known else job, phase=Phase.COPYING), room, world)


def _copied(job: CopyJob, pins: Sequence[Pin], room: Room, world: World) -> CopyJob:
    room.jobs.begin(job)
    now = job
    turn = threading.Lock()

    def work(disk: DiskCopy) -> None:
        nonlocal now
        world.interrupt.check()
        if _is_whole(disk, world):
            return
        done = _copy(disk, world)
        with turn:
            now = replace(now, disks=tuple(done if d is disk else d for d in now.disks))
            room.jobs.put(now)

    world.each(work, job.disks)
    world.interrupt.check()
    check_unchanged(pins, except_for=[disk.copied[-1].path for disk in now.disks if disk.reuse])
    for disk in now.disks:
        if not disk.reuse:
            with naming(disk.target, disk.dest):
                world.files.publish(disk.staged, disk.dest)
    ready = replace(now, phase=Phase.READY)
    room.jobs.put(ready)
    return ready


def _is_whole(disk: DiskCopy, world: World) -> bool:
    """Whether an earlier process has copied it, and nobody has touched it since."""
    if not disk.copied or not disk.staged.exists():
        return False
    return disk.copied[-1].is_still(world.files.identity(disk.staged))


def _copy(disk: DiskCopy, world: World) -> DiskCopy:
    """Write, compare and sync the destination. A crash inside leaves a part of it."""
    top = disk.layers[-1]
    source = Node(path=top.path, format=disk.source_format, block_device=top.block_device)
    watch = world.watch(disk.target, f"copying to {disk.dest.name}", disk.total)
    with naming(disk.target, disk.dest):
        if disk.reuse:
            real = disk.dest.resolve(strict=True)
            made = Node(path=real, format=disk.format, block_device=disk.block_device)
            world.qemu.convert_into(source, made, backing=disk.backing, watch=watch)
        else:
            made = Node(path=disk.staged, format=disk.format)
            _convert(source, disk, world)
        _require_equal(disk, source, made, world)
        world.files.sync_file(disk.staged)
        world.files.sync_dir(disk.staged.parent)
        found = Disk(target=disk.target, source=disk.staged, format=disk.format)
        chain = survey.chain_of(found, world)
    layers = (
        Layer(path=image.path, identity=image.identity, block_device=image.block_device)
        for image in chain.images
    )
    return replace(disk, copied=tuple(layers))


def _convert(source: Node, disk: DiskCopy, world: World) -> None:
    world.files.unlink(disk.staged)  # of a process that has died
    for missed in world.files.create_like(disk.staged, source.path):
        world.say(f"{disk.target}: {disk.dest} could not be given the {missed} of its source")
    qcow2 = disk.format is Format.QCOW2
    world.qemu.convert(
        source,
        disk.staged,
        disk.format,
        features=disk.features if qcow2 else None,
        backing=disk.backing,
        backing_format=disk.backing_format,
        bitmaps=disk.bitmaps,
        watch=world.watch(disk.target, f"copying to {disk.dest.name}", disk.total),
    )
    made = read_image(disk.staged, disk.format)
    wanted = (disk.backing, disk.virtual_size, disk.features if qcow2 else None)
    if (made.backing or "", made.virtual_size, made.features) != wanted:
        raise FailedError(f"{disk.dest}: qemu-img made something else: {made}")


def _require_equal(disk: DiskCopy, source: Node, made: Node, world: World) -> None:
    watch = world.watch(disk.target, f"comparing {disk.dest.name}", disk.total)
    if not world.qemu.same_content(source, made, watch):
        below = ": is what is below it that of the disk?" if disk.backing else ""
        raise FailedError(
            f"{disk.target}: {disk.dest} does not show what the disk shows{below}",
            remedy="make it anew" if disk.reuse else "look at the storage",
        )
