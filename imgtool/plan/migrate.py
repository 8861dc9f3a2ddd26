"""Plan a move: the disks of a domain, with all that their snapshots need, go to another folder.

The copies name their bases relatively. The sources are touched after the pivot, and on demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import Disk, SnapshotMode
from imgtool.model.errors import UnsupportedError
from imgtool.model.image import Chain
from imgtool.model.plan import (
    Aftermath,
    CopyLayer,
    Drop,
    Made,
    Move,
    Pin,
    Plan,
    PutRecord,
    Space,
)
from imgtool.plan.blockjob import require_whole_file
from imgtool.plan.lineage import FileId, Lineage
from imgtool.plan.names import check_overlay
from imgtool.plan.relocation import Layer, layers_of, names_for, new_backing
from imgtool.plan.repointing import Repointed, Settled, repointed
from imgtool.plan.undertaking import Undertaking, require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateRequest:
    """Where to, and what becomes of the sources."""

    to: Path  # absolute, as the XML will spell it
    delete_source: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateFacts(Undertaking):
    """What the survey found and the caller decided."""

    lineage: Lineage
    chains: Mapping[str, Chain]  # of the disks that are asked for, whole, by target
    folder: Path  # the new one, links resolved
    taken: frozenset[str]  # names that are in it
    files: Mapping[Path, FileId]  # what the paths in snapshots' records lead to
    records: Mapping[str, str]  # XML of every recorded snapshot, by name
    inactive: Mapping[str, tuple[Disk, ...]]  # of the inactive domain that a record has besides
    shared: frozenset[FileId] = frozenset()  # files whose copies need no space of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedDisk:
    """What becomes of one disk."""

    target: str
    source: Path  # the active layer of before
    dest: Path  # and of afterwards
    layers: int  # images that are copied for it; what disks share counts for the first of them
    size: int  # bytes to copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A source that stays, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratePlan:
    """The plan, and what is only known to its maker."""

    plan: Plan
    moves: tuple[Move, ...]
    snapshots: tuple[Repointed, ...]  # for each PutRecord, in order; not stamped yet
    pins: tuple[Pin, ...]
    space: tuple[Space, ...]
    disks: tuple[MovedDisk, ...]
    kept: tuple[Kept, ...]
    notes: tuple[str, ...]  # what a person should know, a line each

    @property
    def empty(self) -> bool:
        """Whether all is there already."""
        return not self.plan.steps

    @property
    def dropped(self) -> tuple[Path, ...]:
        """The sources that go."""
        return tuple(drop.path for drop in self.plan.aftermath.drops)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Moving:
    """The images that go, bases first, and what becomes of each."""

    layers: tuple[Layer, ...]
    settled: Mapping[FileId, Settled]
    kept: Mapping[FileId, str]  # why the source stays; empty: it does not


def plan_migrate(request: MigrateRequest, facts: MigrateFacts) -> MigratePlan:
    """Copy every layer of the disks in `facts.chains` and of their snapshots, then pivot.

    Raises UnsupportedError, ChainError, ExistsError, BadRequestError.
    """
    tree = layers_of(tuple(facts.chains), facts.chains, facts.lineage)
    moving = _moving(tree, request, facts)
    for target, place in _named(moving, facts):
        check_overlay(target, place)
    steps = tuple(_copies(moving, request, facts))
    drops = tuple(_drops(moving))
    snapshots, notes = _snapshots(moving, facts)
    plan = facts.plan(
        f"migration of {facts.head.domain.name} to {request.to}",
        steps,
        records=[
            PutRecord(name=each.snapshot.name, previous=facts.records[each.snapshot.name])
            for each in snapshots
        ],
        aftermath=Aftermath(drops=drops),
    )
    return MigratePlan(
        plan=plan,
        moves=tuple(_moves(moving, facts)),
        snapshots=snapshots,
        pins=tuple(_pins(tree, drops)),
        space=tuple(_space(moving, steps, facts)),
        disks=tuple(_disks(moving, facts)),
        kept=tuple(_kept(moving)),
        notes=(*notes, *_notes(moving, request)),
    )


def _moving(tree: Iterable[Layer], request: MigrateRequest, facts: MigrateFacts) -> _Moving:
    layers = tuple(_going(tree, facts))
    first = frozenset(chain.active.identity.file for chain in facts.chains.values())
    names = names_for(layers, first, facts.taken)
    return _Moving(
        layers=layers,
        settled={
            each.file: Settled(path=request.to / names[each.file], format=each.image.format)
            for each in layers
        },
        kept={each.file: _reason(each, request, facts) for each in layers},
    )


def _going(tree: Iterable[Layer], facts: MigrateFacts) -> Iterator[Layer]:
    """The images that are not in the new folder yet."""
    going: set[FileId] = set()
    for layer in tree:
        disk = facts.head.domain.disk(layer.target)
        if disk is not None:
            require_whole_file(disk)
        if layer.image.path.parent != facts.folder or layer.image.block_device:
            require_sound(layer.target, layer.image)
            going.add(layer.file)
            yield layer
        elif layer.base is not None and layer.base.identity.file in going:
            raise UnsupportedError(
                f"{layer.target}: {layer.image.spelled} is in {facts.folder} already, "
                f"its base {layer.base.spelled} is not",
                remedy=f"choose another folder, or pull first: imgtool flatten "
                f"{facts.head.domain.name} {layer.target}",
            )


def _copies(moving: _Moving, request: MigrateRequest, facts: MigrateFacts) -> Iterator[CopyLayer]:
    for number, layer in enumerate(moving.layers):
        backing = None
        if layer.base is not None:
            base = moving.settled.get(layer.base.identity.file)
            base_name = layer.base.path.name if base is None else base.path.name
            backing = new_backing(layer, base_name, facts.folder)
        final = moving.settled[layer.file].path
        yield CopyLayer(
            target=layer.target,
            source=layer.image.path,
            format=layer.image.format,
            overlay=final,
            staged=facts.staged(final, number),
            size=layer.image.identity.size,
            backing=backing,
            compared=request.delete_source,
        )


def _reason(layer: Layer, request: MigrateRequest, facts: MigrateFacts) -> str:
    """Why a source stays; empty: it does not."""
    if not request.delete_source:
        return "--delete-source is not given"
    if layer.image.block_device:
        return "it is a block device"
    users = [*_staying(layer.file, facts), *facts.lineage.strangers_to(layer.file)]
    return f"{', '.join(dict.fromkeys(users))} needs it" if users else ""


def _staying(file: FileId, facts: MigrateFacts) -> Iterator[str]:
    """Disks of the domain that do not move, and their snapshots, if they read this file."""

    def read(chain: Chain) -> bool:
        return any(image.identity.file == file for image in chain.images)

    for target, chain in facts.lineage.current.items():
        if target not in facts.chains and read(chain):
            yield f"disk {target}"
    for name, held in facts.lineage.held.items():
        for target, chain in held.chains.items():
            stays = target not in facts.chains and held.mode(target) is not SnapshotMode.NO
            if stays and read(chain):
                yield f"disk {target} at snapshot {name}"


def _kept(moving: _Moving) -> Iterator[Kept]:
    for layer in moving.layers:
        if reason := moving.kept[layer.file]:
            yield Kept(path=layer.image.path, reason=reason)


def _drops(moving: _Moving) -> Iterator[Drop]:
    """Overlays before their bases: no chain in the old place is ever without its base."""
    for layer in reversed(moving.layers):
        if not moving.kept[layer.file]:
            image = layer.image
            yield Drop(target=layer.target, path=image.path, inode=image.identity.inode)


def _moves(moving: _Moving, facts: MigrateFacts) -> Iterator[Move]:
    for target, chain in facts.chains.items():
        place = moving.settled.get(chain.active.identity.file)
        if place is not None:
            yield place.move(target)


def _snapshots(
    moving: _Moving, facts: MigrateFacts
) -> tuple[tuple[Repointed, ...], tuple[str, ...]]:
    """The records that change, and what is to be said of those that cannot."""
    found, notes = [], []
    for held in facts.lineage.held.values():
        inactive = facts.inactive.get(held.snapshot.name, ())
        changed = repointed(held, moving.settled, facts.files, inactive)
        if changed is None:
            continue
        if changed.snapshot.domain_xml:
            found.append(changed)
        else:
            notes.append(
                f"snapshot {held.snapshot.name} has no copy of the domain XML and stays as it is"
            )
    return tuple(found), tuple(notes)


def _named(moving: _Moving, facts: MigrateFacts) -> Iterator[tuple[str, Path]]:
    """What the XML of the domain or of a snapshot will name."""
    for chains in (facts.chains, *(held.chains for held in facts.lineage.held.values())):
        for target, chain in chains.items():
            place = moving.settled.get(chain.active.identity.file)
            if place is not None:
                yield target, place.path


def _pins(tree: Iterable[Layer], drops: Iterable[Drop]) -> Iterator[Pin]:
    dropped = {drop.path for drop in drops}
    for layer in tree:
        yield Pin(
            target=layer.target,
            path=layer.image.path,
            identity=layer.image.identity,
            exclusive=layer.image.path in dropped,
            written=False,
        )


def _space(moving: _Moving, steps: Iterable[Made], facts: MigrateFacts) -> Iterator[Space]:
    for layer, step in zip(moving.layers, steps, strict=True):
        if layer.file not in facts.shared:
            size = layer.image.allocation
            yield Space(target=layer.target, folder=step.overlay.parent, size=size)


def _disks(moving: _Moving, facts: MigrateFacts) -> Iterator[MovedDisk]:
    for target, chain in facts.chains.items():
        own = [layer for layer in moving.layers if layer.target == target]
        place = moving.settled.get(chain.active.identity.file)
        yield MovedDisk(
            target=target,
            source=chain.active.spelled,
            dest=chain.active.spelled if place is None else place.path,
            layers=len(own),
            size=sum(layer.image.allocation for layer in own),
        )


def _notes(moving: _Moving, request: MigrateRequest) -> Iterator[str]:
    if request.delete_source:
        for layer in moving.layers:
            if reason := moving.kept[layer.file]:
                yield f"{layer.target}: {layer.image.path} stays: {reason}"
