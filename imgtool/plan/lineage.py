"""Who needs which image: the domain now, its snapshots, strangers. The survey fills it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imgtool.model.domain import Disk, SnapshotMode
from imgtool.model.errors import ChainError
from imgtool.model.image import Chain, Image
from imgtool.model.snapshot import Snapshot

FileId = tuple[int, int]  # device and inode


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A recorded snapshot, and what its copy of the domain XML leads to."""

    snapshot: Snapshot
    disks: tuple[Disk, ...]  # of the domain as it was
    chains: Mapping[str, Chain]  # by target; what cannot be read is left out

    def mode(self, target: str) -> SnapshotMode:
        """How a disk took part; a disk that is not listed did not."""
        for disk in self.snapshot.disks:
            if disk.name == target:
                return disk.mode or SnapshotMode.NO
        return SnapshotMode.NO

    def chain(self, target: str) -> Chain:
        """Raises ChainError if an image that this snapshot needs is gone."""
        if target not in self.chains:
            raise ChainError(
                f"{target}: an image that snapshot {self.snapshot.name} needs cannot be read",
                remedy="imgtool check says which",
            )
        return self.chains[target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A chain that is not this domain's: another domain's, or an overlay that nobody records."""

    who: str  # for messages
    chain: Chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """Every image that has to do with a domain."""

    current: Mapping[str, Chain]  # by target
    held: Mapping[str, Held]  # by snapshot name
    strangers: tuple[Stranger, ...] = ()
    used: frozenset[FileId] = frozenset()  # images of `current` that have data of their own
    unsaved: frozenset[FileId] = frozenset()  # active states that no internal snapshot equals
    equal: Mapping[FileId, frozenset[str]] = field(default_factory=dict)
    """Ids of the internal snapshots that show just what the image shows now."""

    def own_chains(self) -> Iterator[Chain]:
        """The chains of the domain and of all its snapshots."""
        yield from self.current.values()
        for held in self.held.values():
            yield from held.chains.values()

    def images(self) -> dict[FileId, Image]:
        """Every image of the domain's own chains."""
        return {image.identity.file: image for chain in self.own_chains() for image in chain.images}

    def children(self, file: FileId) -> tuple[Image, ...]:
        """Own overlays whose base is this file, each once."""
        found: dict[FileId, Image] = {}
        for chain in self.own_chains():
            for base, overlay in zip(chain.images, chain.images[1:], strict=False):
                if base.identity.file == file:
                    found[overlay.identity.file] = overlay
        return tuple(found.values())

    def parent(self, file: FileId) -> Image | None:
        """The base of this file, or None."""
        for chain in self.own_chains():
            for base, overlay in zip(chain.images, chain.images[1:], strict=False):
                if overlay.identity.file == file:
                    return base
        return None

    def strangers_to(self, file: FileId) -> tuple[str, ...]:
        """Who else reads this file, at any depth."""
        return tuple(
            dict.fromkeys(
                stranger.who
                for stranger in self.strangers
                if any(image.identity.file == file for image in stranger.chain.images)
            )
        )

    def holders(self, file: FileId, *, but: str = "") -> tuple[str, ...]:
        """Snapshots whose external state is what this file shows."""
        return tuple(
            name
            for name, held in self.held.items()
            if name != but
            and any(
                held.mode(target) is SnapshotMode.EXTERNAL and chain.active.identity.file == file
                for target, chain in held.chains.items()
            )
        )

    def tag_holders(self, file: FileId, *, but: str = "") -> tuple[str, ...]:
        """Snapshots whose internal state is a tag inside this file."""
        return tuple(
            name
            for name, held in self.held.items()
            if name != but
            and any(
                held.mode(target) is SnapshotMode.INTERNAL and chain.active.identity.file == file
                for target, chain in held.chains.items()
            )
        )

    def needed(self, *, but: str = "") -> set[FileId]:
        """Files that snapshots (all `but` one) and strangers need, with all that is below them."""
        chains = [stranger.chain for stranger in self.strangers]
        for name, held in self.held.items():
            if name != but:
                chains += [
                    chain
                    for target, chain in held.chains.items()
                    if held.mode(target) is not SnapshotMode.NO
                ]
        return files_of(chains)


def files_of(chains: Iterable[Chain]) -> set[FileId]:
    """The files of all layers."""
    return {image.identity.file for chain in chains for image in chain.images}


def is_relative(image: Image) -> bool:
    """Whether an overlay names its base relatively."""
    return image.backing is not None and not Path(image.backing).is_absolute()
