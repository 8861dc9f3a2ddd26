"""Plan a rebase: how the overlays of a chain name their bases, or which base the active one has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgtool.model.errors import BadRequestError, UnsupportedError
from imgtool.model.image import Chain, Image
from imgtool.model.plan import ChangeInPlace
from imgtool.plan.blockjob import (
    DiskJob,
    JobFacts,
    JobPlan,
    Piece,
    assemble,
    require_whole_file,
    require_writable,
    settled,
)
from imgtool.plan.blockpull import pull_piece
from imgtool.plan.lineage import is_relative


@dataclass(frozen=True, slots=True, kw_only=True)
class RebaseRequest:
    """How bases are named, or (with all that is below it) the new one of the active layer."""

    relative: bool | None = None  # None: as they are named now
    only_active: bool = False  # leave what the layers below record
    base: Chain | None = None  # copy what it shows differently; None: copy nothing


def plan_rebase(target: str, request: RebaseRequest, facts: JobFacts) -> JobPlan:
    """Record other names of the same bases, in all overlays at once; or build on another base.

    A safe rebase copies into the active layer what the new base shows differently. Raises
    BadRequestError, UnsupportedError, ChainError.
    """
    require_whole_file(facts.disk(target))
    chain = facts.chains[target]
    if len(chain.images) == 1:
        raise BadRequestError(
            f"{target}: {chain.active.spelled} has no base", remedy="there is nothing to rebase"
        )
    if request.base is None:
        _require_no_loop(target, chain.active, chain.images[:-1])
        piece = _renamed(target, request, facts)
    else:
        _require_no_loop(target, chain.active, request.base.images)
        piece = pull_piece(
            target,
            request.base.active,
            facts,
            relative=request.relative,
            chain_of_base=request.base,
        )
    return assemble("rebase", [piece], facts)


def _renamed(target: str, request: RebaseRequest, facts: JobFacts) -> Piece:
    chain = facts.chains[target]
    pairs = list(zip(chain.images, chain.images[1:], strict=False))
    if request.only_active:
        pairs = pairs[-1:]
    notes = [note for pair in pairs for note in _sizes(target, *pair)]
    changes = list(_changes(target, pairs, request, facts))
    job = DiskJob(
        target=target,
        image=chain.active.spelled,
        base=pairs[-1][0].path,
        virtual_size=chain.active.virtual_size,
    )
    if not changes:
        return Piece(job=job, notes=tuple(notes))
    return Piece(
        job=job,
        steps=tuple(changes),
        moves=settled(facts.disk(target)),
        written=frozenset(step.image for step in changes),
        notes=tuple(notes),
    )


def _changes(
    target: str, pairs: list[tuple[Image, Image]], request: RebaseRequest, facts: JobFacts
) -> Iterator[ChangeInPlace]:
    """One change for each overlay, if any is needed.

    The active layer is always among them: blocked, it keeps QEMU from the whole chain.
    """
    wanted = []
    for base, overlay in pairs:
        relative = is_relative(overlay) if request.relative is None else request.relative
        name = facts.base_name(base, overlay, relative=relative)
        same = (overlay.backing, overlay.backing_format) == (name, base.format)
        wanted.append((overlay, base, name, same))
    if all(same for *_, same in wanted):
        return
    for number, (overlay, base, name, same) in enumerate(wanted):
        if not same or number == len(wanted) - 1:
            require_writable(target, overlay, facts)
            command = ("rebase", "-u", "-F", str(base.format), "-b", name)
            yield facts.change(target, overlay, [command], f"{target}-{number}")


def _require_no_loop(target: str, image: Image, below: tuple[Image, ...]) -> None:
    if any(layer.identity.file == image.identity.file for layer in below):
        raise UnsupportedError(
            f"{target}: {below[-1].spelled} builds on {image.spelled}: the chain would loop",
            remedy="choose another base",
        )


def _sizes(target: str, base: Image, overlay: Image) -> Iterator[str]:
    if base.virtual_size != overlay.virtual_size:
        yield (
            f"{target}: {base.spelled} has {base.virtual_size} bytes, "
            f"{overlay.spelled} has {overlay.virtual_size}"
        )
