"""Plan a block pull: the active layer takes over what it shows of the layers below it.

base <- mid <- active
blockpull --base base:  base <- active
blockpull, flatten:     active
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.errors import BadRequestError, UnsupportedError
from imgtool.model.image import Chain, Format, Image
from imgtool.model.plan import PullImage, Space
from imgtool.plan.blockjob import (
    DiskJob,
    JobFacts,
    JobPlan,
    Piece,
    assemble,
    find_layer,
    require_whole_file,
    require_writable,
    settled,
)
from imgtool.plan.lineage import is_relative
from imgtool.plan.undertaking import node, require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class PullRequest:
    """What virsh calls blockpull; the path has its links resolved."""

    base: Path | None = None  # None: no base is left
    keep_relative: bool = False


def plan_pull(targets: tuple[str, ...], request: PullRequest, facts: JobFacts) -> JobPlan:
    """Pull into the active layer of each disk; the layers below stay as they are.

    Raises BadRequestError, NotFoundError, UnsupportedError, ChainError.
    """
    if request.keep_relative and request.base is None:
        raise BadRequestError(
            "--keep-relative is valid only with non-null base", remedy="give --base, too"
        )
    pieces = [_piece(target, request, facts) for target in targets]
    return assemble("block pull", pieces, facts)


def _piece(target: str, request: PullRequest, facts: JobFacts) -> Piece:
    chain = facts.chains[target]
    base = None if request.base is None else find_layer(target, request.base, chain)
    last = len(chain.images) - 1
    if base == last:
        raise BadRequestError(
            f"{target}: '{chain.active.spelled}' cannot be its own base",
            remedy="name a layer below it: see imgtool chain",
        )
    below = None if base is None else chain.images[base]
    if (last - 1 if last else None) == base:
        return Piece(job=_job(target, chain.active, below))
    return pull_piece(target, below, facts, relative=request.keep_relative or None)


def pull_piece(
    target: str,
    base: Image | None,
    facts: JobFacts,
    *,
    relative: bool | None = None,
    chain_of_base: Chain | None = None,
) -> Piece:
    """Pull until the active layer builds on `base`, which may be of another chain.

    `relative`: how it is recorded; None: as the base of before was.
    """
    disk, chain = facts.disk(target), facts.chains[target]
    require_whole_file(disk)
    image, old = chain.active, chain.images[-2]
    _require_pullable(target, image, facts)
    name = ""
    if base is not None:
        relative = is_relative(image) if relative is None else relative
        name = facts.base_name(base, image, relative=relative)
    pulled = _pulled(chain, base)
    size = sum(layer.allocation for layer in pulled)
    return Piece(
        job=_job(target, image, base, size),
        steps=(
            PullImage(
                target=target,
                image=image.path,
                backing=name,
                backing_format=base.format if base else None,
                old_backing=image.backing or "",
                old_backing_format=old.format,
                below=() if base else tuple(node(layer) for layer in chain.images[:-1]),
            ),
        ),
        moves=settled(disk),
        written=frozenset({image.path}),
        space=() if image.block_device else (_space(target, image, size),),
        notes=tuple(_bitmaps_left(target, pulled)),
        chains=() if chain_of_base is None else (chain_of_base,),
    )


def _job(target: str, image: Image, base: Image | None, size: int = 0) -> DiskJob:
    return DiskJob(
        target=target,
        image=image.spelled,
        base=base.path if base else None,
        size=size,
        virtual_size=image.virtual_size,
    )


def _pulled(chain: Chain, base: Image | None) -> tuple[Image, ...]:
    """The layers whose data the active one takes over."""
    files = [image.identity.file for image in chain.images]
    start = 0
    if base is not None and base.identity.file in files:
        start = files.index(base.identity.file) + 1
    return chain.images[start:-1]


def _require_pullable(target: str, image: Image, facts: JobFacts) -> None:
    for layer in facts.chains[target].images:
        require_sound(target, layer)
    if image.format is not Format.QCOW2:
        raise UnsupportedError(
            f"{target}: {image.spelled} is a {image.format} image, which cannot be pulled into",
            remedy="convert it to qcow2",
        )
    if image.snapshots:
        tags = ", ".join(each.tag for each in image.snapshots)
        raise UnsupportedError(
            f"{target}: {image.spelled} has internal snapshots inside ({tags}): "
            "they would lose what they read from below",
            remedy="delete them first: imgtool snapshot-delete",
        )
    require_writable(target, image, facts)


def _space(target: str, image: Image, size: int) -> Space:
    rest = max(0, image.virtual_size - image.allocation)
    limit = rest + image.virtual_size // 512 + (1 << 20)
    return Space(target=target, folder=image.path.parent, size=min(size, limit))


def _bitmaps_left(target: str, pulled: tuple[Image, ...]) -> Iterator[str]:
    for layer in pulled:
        if layer.bitmaps:
            names = ", ".join(layer.bitmaps)
            yield f"{target}: bitmaps of {layer.spelled} stay there, out of the chain: {names}"
