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

from imgtool.model.domain import SnapshotMode
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
from imgtool.plan.lineage import FileId, is_relative
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


@dataclass(frozen=True, slots=True)
class _Span:
    """The layers that a commit is about: merged[0] is the base, merged[-1] the top."""

    target: str
    merged: tuple[Image, ...]
    above: Image | None  # None: top is the active layer

    @property
    def base(self) -> Image:
        return self.merged[0]

    @property
    def top(self) -> Image:
        return self.merged[-1]


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
        drops, why = _drops(span, facts)
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


def _span(target: str, request: CommitRequest, chain: Chain) -> _Span:
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
    return _Span(target, chain.images[base : top + 1], above)


def _require_mergeable(span: _Span, facts: JobFacts) -> None:
    base, target = span.base, span.target
    for image in (*span.merged, *((span.above,) if span.above else ())):
        require_sound(target, image)
    if needed := tuple(dict.fromkeys(_who_needs(span, facts))):
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


def _require_sizes(span: _Span) -> None:
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


def _who_needs(span: _Span, facts: JobFacts) -> Iterator[str]:
    """Whoever reads one of the layers below top other than through top.

    A tag inside the base keeps what it holds: to it, a commit is like the writes of a guest.
    """
    frozen = {image.identity.file for image in span.merged[:-1]}
    for other, chain in facts.lineage.current.items():
        if other != span.target and _reads(chain, frozen, span.top):
            yield f"disk {other}"
    for name, held in facts.lineage.held.items():
        for disk, chain in held.chains.items():
            file, mode = chain.active.identity.file, held.mode(disk)
            if mode is SnapshotMode.NO and file in frozen:
                continue  # it was that disk then, but is not a part of the snapshot
            if mode is SnapshotMode.INTERNAL and file == span.base.identity.file:
                continue
            if _reads(chain, frozen, span.top):
                yield f"snapshot {name}"
    for stranger in facts.lineage.strangers:
        if _reads(stranger.chain, frozen, span.top):
            yield stranger.who


def _reads(chain: Chain, frozen: set[FileId], top: Image) -> bool:
    return any(image.identity.file in frozen for image in chain.images) and not _has(chain, top)


def _relink(span: _Span, above: Image, request: CommitRequest, facts: JobFacts) -> Relink:
    relative = request.keep_relative or is_relative(above)
    return Relink(
        target=span.target,
        image=above.path,
        backing=facts.base_name(span.base, above, relative=relative),
        backing_format=span.base.format,
    )


def _pivot(span: _Span) -> Move:
    return Move(
        target=span.target,
        path=plain(span.base),
        format=span.base.format,
        block_device=span.base.block_device,
        over=False,
    )


def _drops(span: _Span, facts: JobFacts) -> tuple[tuple[Drop, ...], list[str]]:
    """What --delete removes, and why something stays."""
    if users := tuple(dict.fromkeys(_still_on_top(span, facts))):
        return (), [f"{span.target}: {span.top.spelled} stays: {', '.join(users)} needs it"]
    drops, notes = [], []
    for image in span.merged[1:]:
        if image.block_device:
            notes.append(f"{span.target}: {image.spelled} is a block device and stays")
        else:
            drop = Drop(target=span.target, path=image.path, inode=image.identity.inode)
            drops.append(drop)
    return tuple(drops), notes


def _still_on_top(span: _Span, facts: JobFacts) -> Iterator[str]:
    """Whoever reads top, and not through the layer above it, which is given the base."""
    lineage = facts.lineage
    chains = [(f"disk {disk}", chain) for disk, chain in lineage.current.items()]
    chains = [(who, chain) for who, chain in chains if who != f"disk {span.target}"]
    for name, held in lineage.held.items():
        chains += [(f"snapshot {name}", chain) for chain in held.chains.values()]
    chains += [(stranger.who, stranger.chain) for stranger in lineage.strangers]
    for who, chain in chains:
        through = span.above is not None and _has(chain, span.above)
        if _has(chain, span.top) and not through:
            yield who


def _has(chain: Chain, layer: Image) -> bool:
    return any(image.identity.file == layer.identity.file for image in chain.images)


def _bitmaps(span: _Span) -> Iterator[MergeBitmaps]:
    for image in span.merged[1:]:
        if image.bitmaps:
            yield MergeBitmaps(
                target=span.target, base=node(span.base), source=node(image), names=image.bitmaps
            )


def _bitmaps_lost(span: _Span) -> Iterator[str]:
    if span.base.format is Format.QCOW2:
        return
    for image in span.merged[1:]:
        if image.bitmaps:
            names = ", ".join(image.bitmaps)
            yield (
                f"{span.target}: {span.base.spelled} is {span.base.format} and cannot keep "
                f"the bitmaps of {image.spelled}: {names}"
            )


def _space(span: _Span, size: int) -> Space:
    """The base never becomes larger than the whole disk, unless tags inside keep old data."""
    base = span.base
    if not base.snapshots:
        rest = span.top.virtual_size - base.allocation
        size = min(size, max(0, rest) + span.top.virtual_size // 512 + (1 << 20))
    return Space(target=span.target, folder=base.path.parent, size=size)
