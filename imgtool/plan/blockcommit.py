"""Plan a block commit: the data of some layers go down into the layer below them.

    base <- mid <- top          base <- mid <- top <- active
    blockcommit --active --pivot   blockcommit --top top
    base                        base <- active

The data are moved first: as long as `top` is there, the domain shows what it did.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.errors import BadRequestError, UnsupportedError
from imgtool.model.image import Chain, Format, Image
from imgtool.model.plan import Drop, MergeBitmaps, MergeDown, Move, Relink, Space
from imgtool.plan.blockjob import (
    DiskJob,
    JobFacts,
    JobPlan,
    Piece,
    assemble,
    find_layer,
    plain,
    require_whole_file,
    require_writable,
    settled,
)
from imgtool.plan.lineage import is_relative
from imgtool.plan.span import Span, removable, who_needs
from imgtool.plan.undertaking import node, require_sound

INTO = frozenset({Format.RAW, Format.QCOW2})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitRequest:
    """What virsh calls blockcommit; paths have their links resolved."""

    base: Path | None = None  # None: the bottom of the chain
    top: Path | None = None  # None: the active layer
    shallow: bool = False  # base is what top builds on
    active: bool = False  # top is the active layer
    keep_overlay: bool = False  # the domain stays on top
    delete: bool = False  # remove what was merged
    keep_relative: bool = False


def plan_commit(targets: tuple[str, ...], request: CommitRequest, facts: JobFacts) -> JobPlan:
    """Commit layers of each disk into their base. Other images that need the base are refused.

    Raises BadRequestError, NotFoundError: layers that are not there, or in the wrong order;
    UnsupportedError, ChainError: what cannot be done without harming others.
    """
    pieces = [_piece(target, request, facts) for target in targets]
    return assemble("block commit", pieces, facts)


def _piece(target: str, request: CommitRequest, facts: JobFacts) -> Piece:
    disk = facts.disk(target)
    require_whole_file(disk)
    span = _span(target, request, facts.chains[target])
    _require_mergeable(span, facts)
    size = sum(image.allocation for image in span.merged[1:])
    pivots = span.above is None and not request.keep_overlay
    leaves = pivots or span.above is not None
    drops: tuple[Drop, ...] = ()
    notes: list[str] = list(_bitmaps_lost(span))
    if request.delete and leaves:
        drops, why = removable(span, facts)
        notes += why
    bitmaps = tuple(_bitmaps(span)) if span.base.format is Format.QCOW2 else ()
    written = {image.path for image in span.merged}
    relinks: tuple[Relink, ...] = ()
    if span.above is not None:
        relinks = (_relink(span, span.above, request, facts),)
        written.add(span.above.path)
    return Piece(
        job=DiskJob(
            target=target,
            image=plain(span.base) if pivots else facts.chains[target].active.spelled,
            base=span.base.path,
            size=size,
            virtual_size=facts.chains[target].active.virtual_size,
            pivots=pivots,
            dropped=tuple(drop.path for drop in drops),
        ),
        steps=(MergeDown(target=target, layers=tuple(map(node, span.merged))), *bitmaps),
        relinks=relinks,
        drops=drops,
        moves=(_pivot(span),) if pivots else settled(disk),
        written=frozenset(written),
        read=frozenset(step.source.path for step in bitmaps),
        space=() if span.base.block_device else (_space(span, size),),
        notes=tuple(notes),
    )


def _span(target: str, request: CommitRequest, chain: Chain) -> Span:
    last = len(chain.images) - 1
    top = last if request.top is None else find_layer(target, request.top, chain)
    if top == last and not request.active:
        raise BadRequestError(
            f"{target}: commit of '{chain.active.spelled}' active layer requires active flag",
            remedy="--active --pivot, or name an inner layer with --top",
        )
    if top < last and request.active:
        raise BadRequestError(
            f"{target}: active commit requested but '{chain.images[top].spelled}' is not active",
            remedy="leave --active, --pivot and --keep-overlay out",
        )
    if top == 0:
        raise BadRequestError(
            f"{target}: top '{chain.images[0].spelled}' in chain has no backing file",
            remedy="there is nothing below it to commit into",
        )
    base = 0 if request.base is None else find_layer(target, request.base, chain)
    if request.shallow and request.base is None:
        base = top - 1
    if base >= top or (request.shallow and base != top - 1):
        raise BadRequestError(
            f"{target}: base '{chain.images[base].spelled}' is not "
            f"{'immediately ' if request.shallow else ''}below '{chain.images[top].spelled}'",
            remedy="see imgtool chain",
        )
    above = None if top == last else chain.images[top + 1]
    return Span(target, chain.images[base : top + 1], above)


def _require_mergeable(span: Span, facts: JobFacts) -> None:
    base, target = span.base, span.target
    for image in (*span.merged, *((span.above,) if span.above else ())):
        require_sound(target, image)
    if needed := tuple(dict.fromkeys(who_needs(span, facts))):
        raise UnsupportedError(
            f"{target}: {base.spelled} cannot take data of its overlays: "
            f"{', '.join(needed)} would change with it",
            remedy="blockpull takes the data the other way; snapshot-delete knows how to merge",
        )
    for image in span.merged[1:]:
        if image.snapshots:
            tags = ", ".join(each.tag for each in image.snapshots)
            raise UnsupportedError(
                f"{target}: {image.spelled} has internal snapshots inside ({tags}), "
                "which read through what would change",
                remedy="delete them first: imgtool snapshot-delete",
            )
    if base.format not in INTO:
        raise UnsupportedError(
            f"{target}: {base.spelled} is a {base.format} image, which takes no commit",
            remedy="blockpull takes the data the other way",
        )
    for image in (base, span.top, *((span.above,) if span.above else ())):
        require_writable(target, image, facts)
    _require_sizes(span)
    if span.above is not None and span.above.format is not Format.QCOW2:
        raise UnsupportedError(
            f"{target}: {span.above.spelled} is a {span.above.format} image, whose base stays",
            remedy="convert it to qcow2",
        )


def _require_sizes(span: Span) -> None:
    """qemu-img grows a base that is too small, and leaves one alone that is too large."""
    base, top = span.base, span.top
    if base.virtual_size > top.virtual_size:
        raise UnsupportedError(
            f"{span.target}: {base.spelled} ({base.virtual_size} bytes) is larger than "
            f"{top.spelled} ({top.virtual_size} bytes): what lies beyond would be seen again",
            remedy="blockpull takes the data the other way",
        )
    if base.block_device and base.format is Format.RAW and base.virtual_size < top.virtual_size:
        raise UnsupportedError(
            f"{span.target}: the device {base.spelled} is smaller than {top.spelled}",
            remedy=f"make the device {top.virtual_size} bytes large",
        )


def _relink(span: Span, above: Image, request: CommitRequest, facts: JobFacts) -> Relink:
    relative = request.keep_relative or is_relative(above)
    return Relink(
        target=span.target,
        image=above.path,
        backing=facts.base_name(span.base, above, relative=relative),
        backing_format=span.base.format,
    )


def _pivot(span: Span) -> Move:
    return Move(
        target=span.target,
        path=plain(span.base),
        format=span.base.format,
        block_device=span.base.block_device,
        over=False,
    )


def _bitmaps(span: Span) -> Iterator[MergeBitmaps]:
    for image in span.merged[1:]:
        if image.bitmaps:
            yield MergeBitmaps(
                target=span.target, base=node(span.base), source=node(image), names=image.bitmaps
            )


def _bitmaps_lost(span: Span) -> Iterator[str]:
    if span.base.format is Format.QCOW2:
        return
    for image in span.merged[1:]:
        if image.bitmaps:
            names = ", ".join(image.bitmaps)
            yield (
                f"{span.target}: {span.base.spelled} is {span.base.format} and cannot keep "
                f"the bitmaps of {image.spelled}: {names}"
            )


def _space(span: Span, size: int) -> Space:
    """The base never becomes larger than the whole disk, unless tags inside keep old data."""
    base = span.base
    if not base.snapshots:
        rest = span.top.virtual_size - base.allocation
        size = min(size, max(0, rest) + span.top.virtual_size // 512 + (1 << 20))
    return Space(target=span.target, folder=base.path.parent, size=size)
