"""The layers that a block commit is about, and who else needs them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from imgtool.model.domain import SnapshotMode
from imgtool.model.image import Chain, Image
from imgtool.model.plan import Drop
from imgtool.plan.blockjob import JobFacts
from imgtool.plan.lineage import FileId


@dataclass(frozen=True, slots=True)
class Span:
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


def who_needs(span: Span, facts: JobFacts) -> Iterator[str]:
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


def removable(span: Span, facts: JobFacts) -> tuple[tuple[Drop, ...], list[str]]:
    """What --delete removes, and why something stays; with it stays all that is below it."""
    if users := tuple(dict.fromkeys(_still_on_top(span, facts))):
        return (), [f"{span.target}: {span.top.spelled} stays: {', '.join(users)} needs it"]
    drops: list[Drop] = []
    for image in reversed(span.merged[1:]):
        if names := tuple(_named_by(image, facts)):
            who = ", ".join(names)
            note = f"{span.target}: {image.spelled} stays, with what is below: {who} names it"
            return tuple(drops), [note]
        if image.block_device:
            return tuple(drops), [f"{span.target}: {image.spelled} is a block device and stays"]
        drops.append(Drop(target=span.target, path=image.path, inode=image.identity.inode))
    return tuple(drops), []


def _named_by(image: Image, facts: JobFacts) -> Iterator[str]:
    """Snapshots in which the disk took no part, but whose copy of the domain XML names it."""
    for name, held in facts.lineage.held.items():
        active = [chain.active.identity.file for chain in held.chains.values()]
        if image.identity.file in active:
            yield f"snapshot {name}"


def _still_on_top(span: Span, facts: JobFacts) -> Iterator[str]:
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
