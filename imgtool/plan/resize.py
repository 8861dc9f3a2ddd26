"""Plan a resize of a disk's active layer; the layers below stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from imgtool.model.errors import BadRequestError, LossError, UnsupportedError
from imgtool.model.image import Format, Image
from imgtool.model.plan import ResizeRaw
from imgtool.plan.blockjob import (
    DiskJob,
    JobFacts,
    JobPlan,
    Piece,
    assemble,
    require_whole_file,
    require_writable,
)
from imgtool.plan.undertaking import node, require_sound

SECTOR = 512  # bytes; a disk has a whole number of them
MAX_SIZE = 2**63 - 2**30  # bytes; QEMU's own limit


class Shrinking(Enum):
    """What to do about a size that is smaller than what is there."""

    REFUSE = auto()  # unless --force
    CUT = auto()  # --force
    NEVER = auto()  # --extend


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRequest:
    """What virsh calls blockresize."""

    size: int | None  # bytes; None: the capacity of the block device
    shrinking: Shrinking = Shrinking.REFUSE


def plan_resize(target: str, request: ResizeRequest, facts: JobFacts) -> JobPlan:
    """Give the disk a new size. What is added reads as zeros, whatever lies below.

    Raises LossError where the end of the disk would be cut off and nobody said that it may be,
    BadRequestError for a size that no disk has, UnsupportedError.
    """
    disk, chain = facts.disk(target), facts.chains[target]
    require_whole_file(disk)
    image = chain.active
    require_sound(target, image)
    size = _size(target, image, request)
    job = DiskJob(target=target, image=image.spelled, virtual_size=size)
    if size == image.virtual_size:
        return assemble("resize", [Piece(job=job)], facts)
    _require_no_loss(target, image, size, request)
    require_writable(target, image, facts)
    if size < image.virtual_size:
        _require_alone(target, image, facts)
    if image.format is Format.RAW:
        return assemble("resize", [_raw(job, image)], facts)
    shrink = ("--shrink",) if size < image.virtual_size else ()
    # Where the base reaches beyond the old end, that part must not come to light.
    below = chain.images[-2:-1] if any(_longer(each, image) for each in chain.images) else ()
    step = facts.change(
        target,
        image,
        [("resize", *shrink, "--", str(size))],
        target,
        below=tuple(node(each) for each in below),
    )
    piece = Piece(job=job, steps=(step,), written=frozenset({image.path}))
    return assemble("resize", [piece], facts)


def _longer(other: Image, image: Image) -> bool:
    return other.virtual_size > image.virtual_size


def _size(target: str, image: Image, request: ResizeRequest) -> int:
    if request.size is None:
        if not image.block_device or image.format is not Format.RAW:
            raise UnsupportedError(
                f"{target}: --capacity is for raw images on block devices",
                remedy="give a size",
            )
        return image.virtual_size
    if request.size % SECTOR or not 0 < request.size <= MAX_SIZE:
        raise BadRequestError(
            f"{target}: no disk has {request.size} bytes: it is a multiple of {SECTOR}",
            remedy=f"{max(1, -(-min(request.size, MAX_SIZE) // SECTOR)) * SECTOR}B is one",
        )
    if image.block_device and image.format is Format.RAW:
        raise UnsupportedError(
            f"{target}: {image.spelled} is a device, and as large as that is",
            remedy="resize the device; the disk follows",
        )
    return request.size


def _require_no_loss(target: str, image: Image, size: int, request: ResizeRequest) -> None:
    if size > image.virtual_size or request.shrinking is Shrinking.CUT:
        return
    fact = f"{target}: {image.spelled} has {image.virtual_size} bytes, more than {size}"
    if request.shrinking is Shrinking.NEVER:
        raise BadRequestError(f"{fact}, and --extend never shrinks", remedy="give a larger size")
    raise LossError(
        f"{fact}: what is beyond would be lost",
        remedy="shrink what is inside first, then --force",
    )


def _require_alone(target: str, image: Image, facts: JobFacts) -> None:
    """Raises UnsupportedError if the end of the image is also somebody else's."""
    if image.snapshots:
        tags = ", ".join(each.tag for each in image.snapshots)
        raise UnsupportedError(
            f"{target}: {image.spelled} has internal snapshots inside ({tags}), "
            "which qemu-img could then only copy in part",
            remedy="delete them first, or snapshot the disk externally and resize the overlay",
        )
    file, lineage = image.identity.file, facts.lineage
    users = [*lineage.strangers_to(file), *(str(each.spelled) for each in lineage.children(file))]
    users += [f"snapshot {name}" for name in lineage.holders(file)]
    if users:
        raise UnsupportedError(
            f"{target}: {image.spelled} cannot be cut: {', '.join(users)} builds on it",
            remedy="snapshot the disk, then resize the overlay",
        )


def _raw(job: DiskJob, image: Image) -> Piece:
    step = ResizeRaw(
        target=job.target,
        image=image.path,
        inode=image.identity.inode,
        old_size=image.identity.size,
        new_size=job.virtual_size,
    )
    written = frozenset({image.path})
    if job.virtual_size > image.virtual_size:
        return Piece(job=job, steps=(step,), written=written)
    return Piece(job=job, cuts=(step,), written=written)
