"""Move a domain to the copies of a job that is ready, in one transaction."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from imgtool.engine.jobs import settle
from imgtool.engine.room import Room
from imgtool.engine.transaction import run
from imgtool.engine.world import World, naming
from imgtool.host.locks import PinnedImages
from imgtool.model.domain import Head
from imgtool.model.errors import ImageChangedError, ImgtoolError
from imgtool.model.job import CopyJob, DiskCopy
from imgtool.model.plan import Commit, Node
from imgtool.plan.copypivot import PivotPlan
from imgtool.xml import patch


def pivot(job: CopyJob, planned: PivotPlan, head: Head, room: Room, world: World) -> None:
    """Redefine the domain, then forget the job; the images of before stay as they are.

    Raises what `run` raises. A crash leaves the domain on its source and the job ready, or the
    domain on the copies; whoever comes next sees that the job is over then.
    """
    with PinnedImages() as pinned:
        pinned.pin(planned.pins)
        for disk in job.disks:
            _require_equal_devices(disk, world)
        plan = planned.plan
        room.jobs.put(replace(job, pivot=plan.txid))
        xml = patch.pivot(head.xml, moves=planned.moves, txid=plan.txid, where=plan.domain)
        commit = Commit(expected=head.digest, xml=xml, pins=planned.pins)
        try:
            run(plan, commit, room, world)
        finally:
            with suppress(OSError, ImgtoolError):  # else whoever comes next does
                if room.journal.pending() is None:
                    settle(room, world, job.uuid)


def _require_equal_devices(disk: DiskCopy, world: World) -> None:
    """The times of block devices do not tell whether they were written to: their data do."""
    if not disk.has_block_devices:
        return
    top = disk.layers[-1]
    source = Node(path=top.path, format=disk.source_format, block_device=top.block_device)
    made = Node(path=disk.dest.resolve(), format=disk.format, block_device=disk.block_device)
    with naming(disk.target, disk.dest):
        watch = world.watch(disk.target, f"comparing {disk.dest.name}", disk.total)
        if not world.qemu.same_content(source, made, watch):
            raise ImageChangedError(
                f"{disk.target}: was changed since it was copied to {disk.dest}: the copy is old",
                remedy="run the same blockcopy again, or end the job with blockjob --abort",
            )
