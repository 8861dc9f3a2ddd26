"""Plan a snapshot: one overlay or one in-place change per disk, then metadata, then the pivot."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import BadRequestError, ChainError, ExistsError, UnsupportedError
from imgtool.model.image import Chain, Format, Image, Qcow2Features
from imgtool.model.plan import (
    ChangeInPlace,
    CreateOverlay,
    Move,
    Pin,
    Plan,
    PutRecord,
    SetCurrent,
    Space,
    Step,
)
from imgtool.model.snapshot import Snapshot, SnapshotDisk, SnapshotRequest
from imgtool.plan.names import backing_name, check_overlay, check_snapshot_name
from imgtool.plan.select import Choice
from imgtool.plan.undertaking import Undertaking, require_sound

MAX_LAYERS = 200  # QEMU and libvirt start no deeper chain
_SCRATCH_CLUSTER = 65536  # bytes; of the scratch layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a new overlay goes."""

    overlay: Path  # final name, absolute, as asked for
    folder: Path  # its folder, symbolic links resolved
    taken: bool  # something is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """An overlay that was made beforehand."""

    image: Image
    backing_file: tuple[int, int] | None  # device and inode of its base, if that is there
    has_data: bool  # clusters of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts(Undertaking):
    """What the survey found and the caller decided."""

    created: int  # seconds since the epoch
    chains: Mapping[str, Chain]  # of every disk whose chain can be read
    places: Mapping[str, Place] = field(default_factory=dict)
    prepared: Mapping[str, Prepared] = field(default_factory=dict)
    snapshots: frozenset[str] = frozenset()  # names of those recorded
    current: str | None = None
    relative: bool = False
    metadata: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPlan:
    """The plan with what is only known to its maker."""

    plan: Plan
    moves: tuple[Move, ...]
    pins: tuple[Pin, ...]
    space: tuple[Space, ...]
    snapshot: Snapshot  # to be recorded; its domain_xml is not stamped yet
    notes: tuple[str, ...] = ()  # what a person should know, a line each


def plan_snapshot(
    request: SnapshotRequest, choices: Sequence[Choice], facts: Facts
) -> SnapshotPlan:
    """A snapshot of the chosen disks. `request.name` may be empty: the creation time then.

    Raises BadRequestError, ExistsError, ChainError, UnsupportedError; each names the disk.
    """
    name = request.name or str(facts.created)
    check_snapshot_name(name)
    taking = [choice for choice in choices if choice.mode is not SnapshotMode.NO]
    _require_free_name(name, facts, [choice.disk.target for choice in taking])
    _require_own_files(taking, facts)
    steps: list[Step] = []
    moves: list[Move] = []
    for choice in taking:
        for image in facts.chains[choice.disk.target].images:
            require_sound(choice.disk.target, image)
        if choice.mode is SnapshotMode.INTERNAL:
            steps.append(_change(choice, name, facts, len(steps)))
        elif choice.disk.target in facts.prepared:
            moves.append(_reuse(choice, facts))
        else:
            overlay = _overlay(choice, facts, len(steps))
            steps.append(overlay)
            moves.append(Move(target=overlay.target, path=overlay.overlay, format=Format.QCOW2))
    _require_distinct(moves, facts)
    summary = f"snapshot {name} of {facts.head.domain.name}"
    plan = facts.plan(summary, steps, records=_records(name, facts))
    return SnapshotPlan(
        plan=plan,
        moves=tuple(moves),
        pins=tuple(_pins(taking, facts)),
        space=tuple(_space(plan, facts)),
        snapshot=_snapshot(name, request, choices, moves, facts),
        notes=tuple(_notes(moves, facts)),
    )


def _records(name: str, facts: Facts) -> tuple[PutRecord | SetCurrent, ...]:
    if not facts.metadata:
        return ()
    return (PutRecord(name=name), SetCurrent(name=name, previous=facts.current))


def _snapshot(
    name: str,
    request: SnapshotRequest,
    choices: Sequence[Choice],
    moves: Sequence[Move],
    facts: Facts,
) -> Snapshot:
    sources = {move.target: move for move in moves}
    disks = []
    for choice in choices:
        target = choice.disk.target
        entry = SnapshotDisk(name=target, mode=choice.mode)
        if target in sources:
            move = sources[target]
            entry = replace(
                entry,
                type="block" if move.block_device else "file",
                driver=move.format,
                source=os.fspath(move.path),
            )
        disks.append(entry)
    return Snapshot(
        name=name,
        created=facts.created,
        description=request.description,
        parent=facts.current,
        disks=tuple(disks),
        domain_xml=facts.head.xml,
        transaction=facts.txid,
    )


def _require_free_name(name: str, facts: Facts, targets: Iterable[str]) -> None:
    if name in facts.snapshots:
        raise ExistsError(
            f"domain moment {name} already exists", remedy="choose another snapshot name"
        )
    for target in targets:
        made = [facts.prepared[target].image] if target in facts.prepared else []
        for image in (*facts.chains[target].images, *made):
            if any(name in (entry.tag, entry.id) for entry in image.snapshots):
                raise ExistsError(
                    f"{target}: {image.spelled} has an internal snapshot {name!r} already",
                    remedy="choose another snapshot name",
                )


def _require_own_files(taking: Sequence[Choice], facts: Facts) -> None:
    """No other disk may use the active layer of a disk that is in the plan, at any depth."""
    for choice in taking:
        target = choice.disk.target
        file = facts.chains[target].active.identity.file
        for other, chain in facts.chains.items():
            if other != target and any(image.identity.file == file for image in chain.images):
                raise BadRequestError(
                    f"{target} and {other} use one file: {facts.chains[target].active.spelled}",
                    remedy="give each disk a file of its own",
                )


def _require_distinct(moves: Sequence[Move], facts: Facts) -> None:
    seen: dict[Path, str] = {}
    for move in moves:
        place = facts.places.get(move.target)  # an overlay that was prepared fits one disk only
        path = place.folder / move.path.name if place else move.path
        if path in seen:
            raise BadRequestError(
                f"{seen[path]} and {move.target} would both get {move.path}",
                remedy="give each disk a file of its own",
            )
        seen[path] = move.target


def require_depth(target: str, chain: Chain) -> None:
    if len(chain.images) + 1 > MAX_LAYERS:
        raise ChainError(
            f"{target}: backing chains more than {MAX_LAYERS} layers deep are not supported",
            remedy="shorten the chain first",
        )


def _overlay(choice: Choice, facts: Facts, number: int) -> CreateOverlay:
    target = choice.disk.target
    chain, place = facts.chains[target], facts.places[target]
    require_depth(target, chain)
    if place.taken:
        raise ExistsError(
            f"external snapshot file for disk {target} already exists: {place.overlay}",
            remedy="choose another file, or see --reuse-external",
        )
    check_overlay(target, place.overlay)
    base = chain.active
    relative = facts.relative or choice.mirror is not None
    # A relative name is looked up from the real folder; an absolute one stays as it was spelled.
    named = base.path if relative else base.spelled
    return CreateOverlay(
        target=target,
        base=base.path,
        base_format=base.format,
        backing=backing_name(named, place.folder, relative=relative),
        overlay=place.overlay,
        staged=facts.staged(place.overlay, number),
        virtual_size=base.virtual_size,
        features=base.features or Qcow2Features(),
    )


def _reuse(choice: Choice, facts: Facts) -> Move:
    target = choice.disk.target
    chain, made = facts.chains[target], facts.prepared[target]
    require_depth(target, chain)
    require_sound(target, made.image)
    base, image = chain.active, made.image
    problem = ""
    if image.identity.file == base.identity.file:
        problem = "is the disk's image itself"
    elif image.virtual_size != base.virtual_size:
        problem = f"shows {image.virtual_size} bytes, the disk {base.virtual_size}"
    elif image.backing is None:
        problem = f"has no base; it should be {base.spelled}"
    elif made.backing_file != base.identity.file:
        problem = f"has base {image.backing}, not the disk's image {base.spelled}"
    elif image.backing_format != base.format:
        problem = f"records format {image.backing_format or 'none'} of its base, not {base.format}"
    elif made.has_data and not facts.force:
        problem = "has data of its own, which the guest would see (--force accepts that)"
    if problem:
        raise BadRequestError(
            f"{target}: {image.spelled} {problem}",
            remedy="make it with: qemu-img create -f qcow2 "
            f"-F {base.format} -b {base.spelled} {image.spelled}",
        )
    return Move(
        target=target, path=image.spelled, format=Format.QCOW2, block_device=image.block_device
    )


def _change(choice: Choice, name: str, facts: Facts, number: int) -> ChangeInPlace:
    target = choice.disk.target
    image = facts.chains[target].active
    if image.features is None:
        raise UnsupportedError(
            f"{target}: internal snapshot unsupported for storage type {image.format}",
            remedy=f"take an external one: --diskspec {target},snapshot=external",
        )
    if image.features.refcount_bits == 1:
        raise UnsupportedError(
            f"{target}: {image.spelled} counts references in one bit, so no cluster can be shared",
            remedy=f"qemu-img amend -f qcow2 -o refcount_bits=16 {image.spelled}",
        )
    return facts.change(target, image, [("snapshot", "-c", name)], number)


def _notes(moves: Sequence[Move], facts: Facts) -> Iterable[str]:
    for move in moves:
        base, made = facts.chains[move.target].active, facts.prepared.get(move.target)
        lost = [name for name in base.bitmaps if made is None or name not in made.image.bitmaps]
        if lost:
            yield (
                f"{move.target}: the bitmaps of {base.spelled} stay in it and record no more "
                f"writes; {move.path} has none of them: {', '.join(lost)}"
            )


def _pins(taking: Sequence[Choice], facts: Facts) -> Iterable[Pin]:
    for choice in taking:
        target = choice.disk.target
        chain = facts.chains[target]
        for image in chain.images:
            changed = choice.mode is SnapshotMode.INTERNAL and image is chain.active
            yield Pin(target=target, path=image.path, identity=image.identity, exclusive=changed)
        if target in facts.prepared:
            image = facts.prepared[target].image
            yield Pin(target=target, path=image.path, identity=image.identity)


def _space(plan: Plan, facts: Facts) -> Iterable[Space]:
    for step in plan.steps:
        if isinstance(step, CreateOverlay):
            yield overlay_space(step)
            continue
        image = facts.chains[step.target].active
        features = image.features or Qcow2Features()
        file_size = image.identity.size
        counts = file_size * features.refcount_bits // 8 // features.cluster_size
        touched = _l2_tables(file_size, features) + counts // features.cluster_size + 8
        redo = min(file_size, touched * max(features.cluster_size, _SCRATCH_CLUSTER))
        # Redo and undo are as large as each other.
        yield Space(target=step.target, folder=plan.workspace.parent, size=2 * redo)
        if not image.block_device:
            growth = 8 * _l2_tables(image.virtual_size, features) + 8 * features.cluster_size
            yield Space(target=step.target, folder=image.path.parent, size=growth)


def overlay_space(step: CreateOverlay) -> Space:
    """What a new, empty overlay takes."""
    l1 = 8 * _l2_tables(step.virtual_size, step.features)
    size = 5 * step.features.cluster_size + l1
    return Space(target=step.target, folder=step.overlay.parent, size=size)


def _l2_tables(size: int, features: Qcow2Features) -> int:
    """How many L2 tables map `size` bytes; each has one entry of 8 bytes in the L1 table."""
    entry = 16 if features.extended_l2 else 8
    return -(-size // (features.cluster_size // entry * features.cluster_size))
