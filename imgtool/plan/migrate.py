"""Plan a move: the disks of a domain, with all that their snapshots need, go to another folder.

The copies name their bases relatively. The sources are touched after the pivot, and on demand.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import Disk
from imgtool.model.errors import UnsupportedError
from imgtool.model.image import Chain, Format
from imgtool.model.plan import (
    Aftermath,
    CopyLayer,
    Drop,
    FlattenImage,
    Made,
    Move,
    Pin,
    Plan,
    PutRecord,
    Space,
)
from imgtool.plan.blockjob import require_whole_file
from imgtool.plan.flatten import flat_copy, require_flat
from imgtool.plan.lineage import FileId, Lineage
from imgtool.plan.names import check_overlay
from imgtool.plan.relocation import Layer, layers_of, names_for, new_backing
from imgtool.plan.repointing import Repointed, Settled, all_repointed
from imgtool.plan.sources import Kept, reason_to_keep
from imgtool.plan.undertaking import Undertaking, require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateRequest:
    """Where to, and what becomes of the sources."""

    to: Path  # absolute, as the XML will spell it
    flatten: bool = False  # one image without a base for each disk
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
    """The images that are copied, bases first, where to, and what becomes of the sources."""

    layers: tuple[Layer, ...]
    settled: Mapping[FileId, Settled]
    kept: tuple[Kept, ...]
    drops: tuple[Drop, ...]


def plan_migrate(request: MigrateRequest, facts: MigrateFacts) -> MigratePlan:
    """Copy every layer of the disks in `facts.chains` and of their snapshots, then pivot.

    Raises UnsupportedError, ChainError, ExistsError, BadRequestError.
    """
    if request.flatten:
        for target in facts.chains:
            require_flat(target, facts.chains[target], facts.lineage)
    tree = layers_of(tuple(facts.chains), facts.chains, facts.lineage)
    moving = _moving(tree, request, facts)
    for target, place in _named(moving, facts):
        check_overlay(target, place)
    steps = tuple(_steps(moving, request, facts))
    snapshots, notes = all_repointed(
        facts.lineage.held.values(), moving.settled, facts.files, facts.inactive
    )
    plan = facts.plan(
        f"migration of {facts.head.domain.name} to {request.to}",
        steps,
        records=[
            PutRecord(name=each.snapshot.name, previous=facts.records[each.snapshot.name])
            for each in snapshots
        ],
        aftermath=Aftermath(drops=moving.drops),
    )
    return MigratePlan(
        plan=plan,
        moves=tuple(_moves(moving, facts)),
        snapshots=snapshots,
        pins=tuple(_pins(tree, moving.drops)),
        space=tuple(_space(moving, steps, facts)),
        disks=tuple(_disks(moving, steps, facts)),
        kept=moving.kept,
        notes=(*notes, *_notes(moving, request, facts)),
    )


def _moving(tree: tuple[Layer, ...], request: MigrateRequest, facts: MigrateFacts) -> _Moving:
    going = tuple(_going(tree, facts))
    first = frozenset(chain.active.identity.file for chain in facts.chains.values())
    layers = tuple(each for each in going if each.file in first) if request.flatten else going
    names = names_for(layers, first, facts.taken)
    sources = {each.file: _reason(each, request, facts) for each in going}
    return _Moving(
        layers=layers,
        settled={
            each.file: Settled(
                path=request.to / names[each.file],
                format=Format.QCOW2 if _flattened(each, request) else each.image.format,
            )
            for each in layers
        },
        kept=tuple(
            Kept(target=each.target, path=each.image.path, reason=sources[each.file])
            for each in going
            if sources[each.file]
        ),
        drops=tuple(  # overlays first: no chain in the old place is ever without its base
            Drop(target=each.target, path=each.image.path, inode=each.image.identity.inode)
            for each in reversed(going)
            if not sources[each.file]
        ),
    )


def _flattened(layer: Layer, request: MigrateRequest) -> bool:
    return request.flatten and layer.base is not None


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


def _steps(moving: _Moving, request: MigrateRequest, facts: MigrateFacts) -> Iterator[Made]:
    for number, layer in enumerate(moving.layers):
        final = moving.settled[layer.file].path
        staged = facts.staged(final, number)
        if _flattened(layer, request):
            yield flat_copy(layer, facts.chains[layer.target], final, staged)
            continue
        backing = None
        if layer.base is not None:
            base = moving.settled.get(layer.base.identity.file)
            base_name = layer.base.path.name if base is None else base.path.name
            backing = new_backing(layer, base_name, facts.folder)
        yield CopyLayer(
            target=layer.target,
            source=layer.image.path,
            format=layer.image.format,
            overlay=final,
            staged=staged,
            size=layer.image.identity.size,
            backing=backing,
            compared=request.delete_source,
        )


def _reason(layer: Layer, request: MigrateRequest, facts: MigrateFacts) -> str:
    """Why a source stays; empty: it does not."""
    if not request.delete_source:
        return "--delete-source is not given"
    return reason_to_keep(layer, facts.chains, facts.lineage)


def _moves(moving: _Moving, facts: MigrateFacts) -> Iterator[Move]:
    for target, chain in facts.chains.items():
        place = moving.settled.get(chain.active.identity.file)
        if place is not None:
            yield place.move(target)


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
        if isinstance(step, FlattenImage) or layer.file not in facts.shared:
            yield Space(target=layer.target, folder=step.overlay.parent, size=_bytes(layer, step))


def _disks(moving: _Moving, steps: Iterable[Made], facts: MigrateFacts) -> Iterator[MovedDisk]:
    made = list(zip(moving.layers, steps, strict=True))
    for target, chain in facts.chains.items():
        own = [pair for pair in made if pair[0].target == target]
        place = moving.settled.get(chain.active.identity.file)
        yield MovedDisk(
            target=target,
            source=chain.active.spelled,
            dest=chain.active.spelled if place is None else place.path,
            layers=len(own),
            size=sum(_bytes(layer, step) for layer, step in own),
        )


def _bytes(layer: Layer, step: Made) -> int:
    """What a step has to copy, at most."""
    return step.size if isinstance(step, FlattenImage) else layer.image.allocation


def _notes(moving: _Moving, request: MigrateRequest, facts: MigrateFacts) -> Iterator[str]:
    if request.delete_source:
        yield from (f"{each.target}: {each.path} stays: {each.reason}" for each in moving.kept)
    for target, chain in facts.chains.items():
        file = chain.active.identity.file
        strangers = facts.lineage.strangers if file in moving.settled else ()
        for who in [each.who for each in strangers if each.chain.active.identity.file == file]:
            yield f"{target}: {who} uses {chain.active.spelled}, too, and stays on it"
    for target, chain in facts.chains.items() if request.flatten else ():
        lost = [name for image in chain.images[:-1] for name in image.bitmaps]
        if lost:
            yield f"{target}: bitmaps of the layers below are not copied: {', '.join(lost)}"
