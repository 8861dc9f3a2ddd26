"""What all block jobs have in common: the facts, the pieces of each disk, and the whole plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import Disk
from imgtool.model.errors import NotFoundError, UnsupportedError
from imgtool.model.image import Chain, Image
from imgtool.model.plan import (
    Aftermath,
    Drop,
    Move,
    Pin,
    Plan,
    Relink,
    ResizeRaw,
    Space,
    Step,
)
from imgtool.plan.lineage import Lineage
from imgtool.plan.names import backing_name
from imgtool.plan.undertaking import Undertaking


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts(Undertaking):
    """What the survey found and the caller decided."""

    lineage: Lineage
    chains: Mapping[str, Chain]  # of the disks that are asked for, whole, by target
    writable: frozenset[Path]  # images that may be opened for writing
    folders: Mapping[Path, Path]  # folder as spelled: folder with links resolved

    def disk(self, target: str) -> Disk:
        """Raises NotFoundError."""
        found = self.head.domain.disk(target)
        if found is None:
            raise NotFoundError(f"no disk named {target!r}", remedy="see imgtool domblklist")
        return found

    def base_name(self, base: Image, overlay: Image, *, relative: bool) -> str:
        """What `overlay` records for `base`."""
        folder = self.folders[overlay.spelled.parent]
        return backing_name(base.path if relative else plain(base), folder, relative=relative)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskJob:
    """What a job does to one disk."""

    target: str
    image: Path  # the active layer afterwards
    base: Path | None = None  # what it builds on, or was merged into
    size: int = 0  # bytes to move, at most
    virtual_size: int  # bytes
    pivots: bool = False  # the domain will name another image
    dropped: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A job's part on one disk."""

    job: DiskJob
    steps: tuple[Step, ...] = ()
    relinks: tuple[Relink, ...] = ()
    cuts: tuple[ResizeRaw, ...] = ()
    drops: tuple[Drop, ...] = ()
    moves: tuple[Move, ...] = ()
    written: frozenset[Path] = frozenset()  # images that are opened for writing
    read: frozenset[Path] = frozenset()  # of these, those that our qemu-img also reads as others do
    space: tuple[Space, ...] = ()
    notes: tuple[str, ...] = ()
    chains: tuple[Chain, ...] = ()  # further images that must stay as they are


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPlan:
    """The plan, and what is only known to its maker."""

    plan: Plan
    moves: tuple[Move, ...]
    pins: tuple[Pin, ...]
    space: tuple[Space, ...]
    disks: tuple[DiskJob, ...]
    notes: tuple[str, ...]  # what a person should know, a line each

    @property
    def empty(self) -> bool:
        """Whether all is as it was asked for already."""
        late = self.plan.aftermath
        return not (self.plan.steps or late.relinks or late.cuts or late.drops or self.moves)


def assemble(what: str, pieces: Sequence[Piece], facts: JobFacts) -> JobPlan:
    """One transaction of the parts of all disks; `what` as in 'block commit'."""
    plan = facts.plan(
        f"{what} of {facts.head.domain.name}",
        [step for piece in pieces for step in piece.steps],
        aftermath=Aftermath(
            relinks=tuple(relink for piece in pieces for relink in piece.relinks),
            cuts=tuple(cut for piece in pieces for cut in piece.cuts),
            drops=tuple(drop for piece in pieces for drop in piece.drops),
        ),
    )
    return JobPlan(
        plan=plan,
        moves=tuple(move for piece in pieces for move in piece.moves),
        pins=tuple(_pins(pieces, facts)),
        space=tuple(space for piece in pieces for space in piece.space),
        disks=tuple(piece.job for piece in pieces),
        notes=tuple(note for piece in pieces for note in piece.notes),
    )


def _pins(pieces: Iterable[Piece], facts: JobFacts) -> Iterator[Pin]:
    for piece in pieces:
        dropped = {drop.path for drop in piece.drops}
        for chain in (facts.chains[piece.job.target], *piece.chains):
            for image in chain.images:
                yield Pin(
                    target=piece.job.target,
                    path=image.path,
                    identity=image.identity,
                    exclusive=image.path in piece.written | dropped,
                    written=image.path in piece.written - piece.read,
                )


def plain(image: Image) -> Path:
    """The path by which others should name this image."""
    return image.path if ".." in image.spelled.parts else image.spelled


def settled(disk: Disk) -> tuple[Move, ...]:
    """No move, but what the XML may say of the layers below is not true any more."""
    if disk.source is None or disk.format is None or disk.type not in ("file", "block"):
        return ()
    return (
        Move(
            target=disk.target,
            path=disk.source,
            format=disk.format,
            block_device=disk.type == "block",
            over=False,
        ),
    )


def find_layer(target: str, path: Path, chain: Chain) -> int:
    """Which layer of the chain a path (links resolved) is. Raises NotFoundError."""
    for number, image in enumerate(chain.images):
        if path in (image.path, image.spelled):
            return number
    raise NotFoundError(
        f"{target}: could not find image '{path}' in chain for '{chain.active.spelled}'",
        remedy=f"its layers are: {', '.join(os.fspath(image.path) for image in chain.images)}",
    )


def require_whole_file(disk: Disk) -> None:
    """Raises UnsupportedError for a disk that is only a part of its file."""
    if disk.sliced:
        raise UnsupportedError(
            f"{disk.target}: is a part of its file (<slices>)", remedy="leave this disk out"
        )


def require_writable(target: str, image: Image, facts: JobFacts) -> None:
    """Raises UnsupportedError for an image that somebody has made read-only."""
    if image.path not in facts.writable:
        raise UnsupportedError(
            f"{target}: {image.spelled} cannot be written",
            remedy="make it writable, if it may be changed",
        )
