"""What a domain must read as, now and at each of its snapshots: a model, kept without any image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import BadRequestError, ExistsError, ImgtoolError
from imgtool.model.image import Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one state of a disk is kept: an image, or an internal snapshot of it."""

    path: Path
    format: Format
    tag: str | None = None
    internal: bool = True  # the image can have internal snapshots

    def __str__(self) -> str:
        return self.path.name if self.tag is None else f"{self.path.name}@{self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A listed snapshot. `places` and `contents` are of the disks that it has taken, by target."""

    name: str
    parent: str | None
    modes: Mapping[str, SnapshotMode]  # of all disks
    places: Mapping[str, Place]  # where the disk reads as it did at the snapshot
    contents: Mapping[str, bytes]  # what it then read as
    sources: Mapping[str, Path]  # what the domain XML named at the snapshot, of all disks
    edits: int = 0  # how often the domain XML had been edited


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """A domain as it must be. An operation makes another one of it; nothing changes in place."""

    active: Mapping[str, Place]  # what the domain XML names, by target
    contents: Mapping[str, bytes]  # what a guest reads now, by target
    files: frozenset[Path]  # all images
    chains: Mapping[str, tuple[Place, ...]]  # by target, base first; if not: to be learned
    moments: tuple[Moment, ...] = ()  # oldest first
    current: str | None = None  # name of a moment
    relative: frozenset[Path] = frozenset()  # overlays that name their base relatively
    spare: frozenset[Path] = frozenset()  # images that stay, whether a chain needs them or not
    under: Mapping[Path, frozenset[Path]] = field(default_factory=dict)
    """The layers below each image that a snapshot has taken."""
    own: frozenset[Path] = frozenset()  # what the snapshots name, with all that is below it
    edits: int = 0  # how often somebody has edited the XML by hand

    def moment(self, name: str) -> Moment:
        (found,) = (each for each in self.moments if each.name == name)
        return found

    def readings(self) -> Iterator[tuple[str, Place, bytes]]:
        """All that can be read: what it is, where it is, what it must read as."""
        for target, place in self.active.items():
            yield f"{target} now", place, self.contents[target]
        for moment in self.moments:
            for target, place in moment.places.items():
                yield f"{target} at {moment.name}", place, moment.contents[target]

    def tags(self, path: Path) -> set[str]:
        """The internal snapshots that an image must have."""
        places = (place for moment in self.moments for place in moment.places.values())
        return {place.tag for place in places if place.path == path and place.tag is not None}

    def named(self) -> frozenset[Path]:
        """Images that the snapshots' copies of the domain XML name."""
        return frozenset(path for moment in self.moments for path in moment.sources.values())

    def refusal(self, name: str, modes: Mapping[str, SnapshotMode]) -> type[ImgtoolError] | None:
        """How imgtool must refuse this snapshot, if it must."""
        if set(modes.values()) == {SnapshotMode.NO}:
            return BadRequestError
        for target, mode in modes.items():
            if mode is SnapshotMode.INTERNAL and not self.active[target].internal:
                return BadRequestError
        return ExistsError if name in {moment.name for moment in self.moments} else None

    def with_snapshot(
        self, name: str, modes: Mapping[str, SnapshotMode], *, relative: bool
    ) -> Expected:
        """After a snapshot; `modes` is of all disks. Overlays get libvirt's names."""
        active, places = dict(self.active), {}
        for target, mode in modes.items():
            top = self.active[target]
            if mode is SnapshotMode.INTERNAL:
                places[target] = replace(top, tag=name)
            elif mode is SnapshotMode.EXTERNAL:
                places[target] = top
                active[target] = replace(
                    top,
                    path=overlay_of(top.path, name),
                    format=Format.QCOW2,
                    internal=top.internal or top.format is Format.RAW,
                )
        made = frozenset(place.path for place in active.values()) - self.files
        chains = {
            target: (*chain, active[target]) if active[target] != chain[-1] else chain
            for target, chain in self.chains.items()
        }
        under = {
            place.path: frozenset(layer.path for layer in self.chains[target][:-1])
            for target, place in places.items()
        }
        moment = Moment(
            name=name,
            parent=self.current,
            modes=dict(modes),
            places=places,
            contents={target: self.contents[target] for target in places},
            sources={target: place.path for target, place in self.active.items()},
            edits=self.edits,
        )
        return replace(
            self,
            active=active,
            chains=chains,
            under={**self.under, **under},
            files=self.files | made,
            moments=(*self.moments, moment),
            current=name,
            relative=self.relative | made if relative else self.relative,
        )

    def reverted(self, name: str, *, keep: str = "", force: bool = False) -> Expected:
        """After a revert; the layout is to be learned. `keep`: a snapshot that holds what was.

        Raises AssertionError if something has been lost that nobody allowed to be.
        """
        moment = self.moment(name)
        kept = Moment(
            name=keep,
            parent=self.current,
            modes={},  # to be learned
            places={},
            contents=self.contents,
            sources={},
            edits=self.edits,
        )
        if not keep and not force:
            for target in moment.contents:
                held = [each.contents[target] for each in self.moments if target in each.contents]
                shown = self.contents[target]
                assert any(_shows(each, shown) for each in held), f"{target}: is lost"
        return replace(
            self,
            contents={**self.contents, **moment.contents},
            chains={},
            moments=(*self.moments, kept) if keep else self.moments,
            current=name,
            edits=moment.edits,
        )

    def without(self, name: str) -> Expected:
        """After a snapshot is deleted; the layout is to be learned.

        Only what it had frozen goes: not an image in which it had a tag, which shows something
        else now, nor a layer below, whoever made that.
        """
        places = self.moment(name).places.values()
        left = {place.path for place in places if place.tag is not None}
        left |= {path for place in places for path in self.under.get(place.path, ())}
        parent = self.moment(name).parent
        moments = tuple(
            replace(each, parent=parent) if each.parent == name else each
            for each in self.moments
            if each.name != name
        )
        current = parent if self.current == name else self.current
        spare = self.spare | left
        return replace(self, chains={}, moments=moments, current=current, spare=spare)

    def forgotten(self, name: str) -> Expected:
        """After the metadata of a snapshot is deleted, and nothing else."""
        return replace(self.without(name), chains=self.chains, spare=self.spare | self.files)

    def committed(
        self,
        spans: Mapping[str, tuple[int, int]],
        *,
        stay: bool = False,
        delete: bool = False,
        relative: bool = False,
    ) -> Expected:
        """After layers from `top` down are merged into `base`; (base, top) by target.

        `stay`: the domain stays on an active `top`. `relative`: the layer above names `base` so.
        What nothing needs any more goes with `delete` only, and not if a snapshot names it.
        """
        chains, named = dict(self.chains), self.relative
        for target, (base, top) in spans.items():
            above = chains[target][top + 1 :]
            if above or not stay:
                chains[target] = (*chains[target][: base + 1], *above)
            if relative:
                named |= {place.path for place in above[:1]}
        left = self.named() & self.files if delete else self.files
        return replace(self._through(chains), relative=named, spare=self.spare | left)

    def pulled(self, bases: Mapping[str, int | None], *, relative: bool = False) -> Expected:
        """After the active layers of these disks build on that layer, or on none."""
        chains, named = dict(self.chains), self.relative
        for target, base in bases.items():
            below = () if base is None else chains[target][: base + 1]
            if relative and below:
                named |= {chains[target][-1].path}
            chains[target] = (*below, chains[target][-1])
        return replace(self._through(chains), relative=named, spare=self.spare | self.files)

    def rebased(self, target: str) -> Expected:
        """After the active layer of a disk builds on something else: which is to be learned."""
        chains = {disk: chain for disk, chain in self.chains.items() if disk != target}
        return replace(self, chains=chains, spare=self.spare | self.files)

    def renamed(self, target: str, *, relative: bool) -> Expected:
        """After all overlays of a chain name their bases so."""
        overlays = {place.path for place in self.chains[target][1:]}
        named = self.relative | overlays if relative else self.relative - overlays
        return replace(self, relative=named)

    def resized(self, target: str, size: int) -> Expected:
        """After a disk has got another size in bytes; what is added reads as zeros."""
        data = self.contents[target][:size]
        data += bytes(size - len(data))
        return replace(self, contents={**self.contents, target: data})

    def _through(self, chains: Mapping[str, tuple[Place, ...]]) -> Expected:
        """The same contents, seen through other layers."""
        return replace(self, chains=chains, active={disk: chains[disk][-1] for disk in chains})

    def written(self, target: str, offset: int, data: bytes) -> Expected:
        """After a guest's write; `offset` in bytes."""
        old = self.contents[target]
        new = old[:offset] + data + old[offset + len(data) :]
        if len(new) != len(old):
            raise ValueError("a guest cannot write past the end of its disk")
        return replace(self, contents={**self.contents, target: new})


def _shows(held: bytes, shown: bytes) -> bool:
    """Whether all that has been written is held; a size alone is no data."""
    both = min(len(held), len(shown))
    return held[:both] == shown[:both] and not any(shown[both:])


def overlay_of(source: Path, snapshot: str) -> Path:
    """The name that libvirt gives: the last suffix gives way to the snapshot's name."""
    stem, dot, _ = source.name.rpartition(".")
    return source.with_name(f"{stem if dot else source.name}.{snapshot}")
