"""Plan the pivot of a copy job: the domain names the copies, all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imgtool.model.errors import ImageChangedError, RefusedError
from imgtool.model.image import Chain
from imgtool.model.job import CopyJob, DiskCopy, Layer, Phase
from imgtool.model.plan import Move, Pin, Plan
from imgtool.plan.blockcopy import CopyFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class PivotPlan:
    """The transaction that moves the domain to its copies."""

    plan: Plan
    moves: tuple[Move, ...]
    pins: tuple[Pin, ...]


def plan_pivot(job: CopyJob, facts: CopyFacts) -> PivotPlan:
    """Let the domain name the copies, all of them at once; `facts.reused` is how they are now.

    Raises RefusedError for a job that is not ready, ImageChangedError for a disk or a copy that
    is not as it was when the job became ready.
    """
    way = f"imgtool -c {job.store} blockjob {job.domain} {job.targets[0]} --abort"
    if job.phase is not Phase.READY:
        raise RefusedError(
            f"disk '{job.targets[0]}' not ready for pivot yet",
            remedy=f"run the same blockcopy again, or {way}",
        )
    for disk in job.disks:
        if not are_still(disk.layers, facts.chains[disk.target]):
            raise ImageChangedError(
                f"{disk.target}: was changed since it was copied to {disk.dest}: the copy is old",
                remedy=f"run the same blockcopy again, or {way}",
            )
        if not are_still(disk.copied, facts.reused[disk.target].chain):
            raise ImageChangedError(
                f"{disk.target}: {disk.dest}, or an image below it, was changed since it was made",
                remedy=f"{way}, then copy again",
            )
    return PivotPlan(
        plan=facts.plan(f"pivot of {job.domain} to {_names(job)}", ()),
        moves=tuple(_move(disk) for disk in job.disks),
        pins=tuple(_pins(job, facts)),
    )


def _names(job: CopyJob) -> str:
    return ", ".join(str(disk.dest) for disk in job.disks)


def _move(disk: DiskCopy) -> Move:
    return Move(
        target=disk.target,
        path=disk.dest,
        format=disk.format,
        block_device=disk.block_device,
        over=False,
    )


def _pins(job: CopyJob, facts: CopyFacts) -> Iterator[Pin]:
    for disk in job.disks:
        for chain in (facts.chains[disk.target], facts.reused[disk.target].chain):
            for image in chain.images:
                yield Pin(target=disk.target, path=image.path, identity=image.identity)


def are_still(layers: Sequence[Layer], chain: Chain) -> bool:
    """Whether a chain is the one that was looked at, and nobody has written to it since."""
    return len(layers) == len(chain.images) and all(
        layer.is_still(image.identity) for layer, image in zip(layers, chain.images, strict=True)
    )
