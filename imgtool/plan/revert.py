"""Plan a revert: each disk shows again what it showed then, and nothing is lost unasked."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgtool.model.domain import Disk, SnapshotMode
from imgtool.model.errors import ChainError, LossError, UnsupportedError
from imgtool.model.image import Chain, Format, Image, Qcow2Features
from imgtool.model.plan import (
    Aftermath,
    CopyImage,
    CreateOverlay,
    Drop,
    Move,
    Pin,
    Plan,
    PutRecord,
    RecordStep,
    SetCurrent,
    Space,
    Step,
)
from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.plan.lineage import FileId, Held, Lineage, files_of, is_relative
from imgtool.plan.names import backing_name
from imgtool.plan.undertaking import Undertaking, require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertFacts(Undertaking):
    """What the survey found and the caller decided."""

    created: int  # seconds since the epoch; of the kept branch
    lineage: Lineage
    taken: frozenset[Path]  # names that exist beside the images
    folders: Mapping[Path, Path]  # folder as spelled: folder with links resolved
    records: Mapping[str, str]  # XML of every recorded snapshot, by name
    current: str | None = None
    keep: str = ""  # name of the snapshot under which the present state stays; empty: do not keep
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertPlan:
    """The plan, and what is only known to its maker."""

    plan: Plan
    moves: tuple[Move, ...]  # against the snapshot's copy of the domain XML
    snapshots: tuple[Snapshot, ...]  # for each PutRecord, in order; not stamped yet
    pins: tuple[Pin, ...]
    space: tuple[Space, ...]


@dataclass(slots=True)
class _Draft:
    """What the disks add up to."""

    steps: list[Step] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    leaving: dict[str, Chain] = field(default_factory=dict)  # disks that leave these chains
    staying: list[Chain] = field(default_factory=list)  # what the domain will use
    in_place: dict[str, Image] = field(default_factory=dict)
    names: set[Path] = field(default_factory=set)


def plan_revert(name: str, facts: RevertFacts) -> RevertPlan:
    """Revert to the snapshot `name`.

    External: a fresh overlay over what the snapshot froze. Internal: in place where the image is
    the active layer and nobody else builds on it, else a copy. Disks that took no part stay as
    they are. Raises LossError for what would be lost without `force` or `keep`.
    """
    held = facts.lineage.held[name]
    _require_offline(held)
    draft = _Draft()
    for disk in held.disks:
        _revert_disk(disk, held, facts, draft)
    drops = () if facts.keep else tuple(_drops(draft, facts))
    if not facts.force and not facts.keep:
        _require_no_loss(name, drops, draft, facts)
    snapshots = _snapshots(held, draft, facts)
    records: list[RecordStep] = [
        PutRecord(name=each.name, previous=facts.records.get(each.name)) for each in snapshots
    ]
    records.append(SetCurrent(name=name, previous=facts.current))
    plan = facts.plan(
        f"revert of {facts.head.domain.name} to snapshot {name}",
        draft.steps,
        records=records,
        aftermath=Aftermath(drops=drops),
    )
    return RevertPlan(
        plan=plan,
        moves=tuple(draft.moves),
        snapshots=snapshots,
        pins=tuple(_pins(draft, drops)),
        space=tuple(_space(draft, facts)),
    )


def _require_offline(held: Held) -> None:
    snapshot = held.snapshot
    if snapshot.state not in ("shutoff", "disk-snapshot") or snapshot.memory not in (None, "no"):
        raise UnsupportedError(
            f"snapshot {snapshot.name} is of a running domain ({snapshot.state})",
            remedy=f"virsh snapshot-revert DOMAIN {snapshot.name}",
        )
    if not held.disks:
        raise UnsupportedError(
            f"snapshot {snapshot.name} has no copy of the domain XML",
            remedy="it was made by something else; revert with what made it",
        )


def _revert_disk(disk: Disk, held: Held, facts: RevertFacts, draft: _Draft) -> None:
    mode = held.mode(disk.target)
    now = facts.head.domain.disk(disk.target)
    if mode is SnapshotMode.NO:
        if now is not None and now.source is not None and now.source != disk.source and now.format:
            draft.moves.append(
                Move(
                    target=disk.target,
                    path=now.source,
                    format=now.format,
                    block_device=now.type == "block",
                    over=False,
                )
            )
        if disk.target in facts.lineage.current:
            draft.staying.append(facts.lineage.current[disk.target])
        return
    if mode is SnapshotMode.MANUAL:
        raise UnsupportedError(
            f"{disk.target}: took part by other means (snapshot=manual)",
            remedy="revert this disk by the same means",
        )
    chain = held.chain(disk.target)
    for image in chain.images:
        require_sound(disk.target, image)
    old = facts.lineage.current.get(disk.target)
    if mode is SnapshotMode.INTERNAL:
        _internal(disk, held, chain, old, facts, draft)
        return
    _over(disk, held, chain, facts, draft)
    if old is not None:
        draft.leaving[disk.target] = old


def _internal(
    disk: Disk, held: Held, chain: Chain, old: Chain | None, facts: RevertFacts, draft: _Draft
) -> None:
    image = chain.active
    tags = [each for each in image.snapshots if each.tag == held.snapshot.name]
    if len(tags) != 1:
        count = "no" if not tags else f"{len(tags)}"
        raise ChainError(
            f"{disk.target}: {image.spelled} has {count} internal snapshots {held.snapshot.name!r}",
            remedy="imgtool check tells more",
        )
    file = image.identity.file
    lineage = facts.lineage
    alone = not (lineage.holders(file) or lineage.children(file) or lineage.strangers_to(file))
    if old is not None and old.active.identity.file == file and alone:
        _in_place(disk, image, tags[0].id, chain, facts, draft)
        return
    if old is not None:
        draft.leaving[disk.target] = old
    if tags[0].id in lineage.equal.get(file, frozenset()):
        _over(disk, held, chain, facts, draft)  # the image shows that state anyway
        return
    size = tags[0].virtual_size or image.virtual_size
    if size > image.virtual_size:  # qemu-img reads no more of a snapshot than the image shows now
        raise UnsupportedError(
            f"{disk.target}: at snapshot {held.snapshot.name} it had {size} bytes, and "
            f"{image.spelled}, which others build on, has {image.virtual_size} now",
            remedy=f"make that as large again: qemu-img resize -f qcow2 {image.spelled} {size}",
        )
    _copy_out(disk, tags[0].id, size, held, facts, draft)


def _copy_out(
    disk: Disk, snapshot_id: str, size: int, held: Held, facts: RevertFacts, draft: _Draft
) -> None:
    """An image of its own for what an internal snapshot shows."""
    chain = held.chain(disk.target)
    image = chain.active
    path = _free_name(image.spelled, held.snapshot.name, facts, draft)
    draft.steps.append(
        CopyImage(
            target=disk.target,
            base=image.path,
            base_format=image.format,
            snapshot_id=snapshot_id,
            overlay=path,
            staged=facts.staged(path, len(draft.steps)),
            virtual_size=size,
            features=image.features or Qcow2Features(),
        )
    )
    draft.moves.append(Move(target=disk.target, path=path, format=Format.QCOW2, over=False))
    draft.staying.append(chain)


def _in_place(
    disk: Disk, image: Image, snapshot_id: str, chain: Chain, facts: RevertFacts, draft: _Draft
) -> None:
    keep = (("snapshot", "-c", facts.keep),) if facts.keep else ()
    commands = (*keep, ("snapshot", "-a", snapshot_id))
    draft.steps.append(facts.change(disk.target, image, commands, len(draft.steps)))
    draft.in_place[disk.target] = image
    draft.staying.append(chain)


def _over(disk: Disk, held: Held, chain: Chain, facts: RevertFacts, draft: _Draft) -> None:
    """A fresh overlay over what the snapshot froze."""
    base = chain.active
    path = _free_name(base.spelled, held.snapshot.name, facts, draft)
    siblings = facts.lineage.children(base.identity.file)
    relative = any(is_relative(each) for each in (*siblings, base))
    named = base.path if relative else base.spelled
    draft.steps.append(
        CreateOverlay(
            target=disk.target,
            base=base.path,
            base_format=base.format,
            backing=backing_name(named, facts.folders[path.parent], relative=relative),
            overlay=path,
            staged=facts.staged(path, len(draft.steps)),
            virtual_size=base.virtual_size,
            features=base.features or Qcow2Features(),
        )
    )
    draft.moves.append(Move(target=disk.target, path=path, format=Format.QCOW2))
    draft.staying.append(chain)


def _free_name(base: Path, snapshot: str, facts: RevertFacts, draft: _Draft) -> Path:
    """BASE.SNAPSHOT-N beside the base, with the smallest N from 1 that is free: no clock."""
    stem, dot, _ = base.name.rpartition(".")
    stem = stem if dot else base.name
    number = 1
    while (path := base.with_name(f"{stem}.{snapshot}-{number}")) in facts.taken | draft.names:
        number += 1
    draft.names.add(path)
    return path


def _drops(draft: _Draft, facts: RevertFacts) -> Iterator[Drop]:
    """The images of the chains that are left which nothing needs any more."""
    needed = facts.lineage.needed() | files_of(draft.staying)
    needed |= files_of(
        chain for target, chain in facts.lineage.current.items() if target not in draft.leaving
    )
    seen: set[FileId] = set()
    for target, chain in draft.leaving.items():
        for image in reversed(chain.images):
            file = image.identity.file
            if file in needed or image.block_device:
                break
            if file not in seen:
                seen.add(file)
                yield Drop(target=target, path=image.path, inode=image.identity.inode)


def _require_no_loss(name: str, drops: Sequence[Drop], draft: _Draft, facts: RevertFacts) -> None:
    lost = []
    by_path = {image.path: image for image in facts.lineage.images().values()}
    for drop in drops:
        if by_path[drop.path].identity.file in facts.lineage.used:
            lost.append(f"{drop.target} ({by_path[drop.path].spelled})")
    lost += _out_of_sight({drop.path for drop in drops}, draft, facts)
    lost += [
        f"{target} ({image.spelled})"
        for target, image in draft.in_place.items()
        if image.identity.file in facts.lineage.unsaved
    ]
    if lost:
        raise LossError(
            f"what was written since would be lost: {', '.join(lost)}",
            remedy=f"--keep keeps it as a snapshot of its own, --force drops it: "
            f"imgtool snapshot-revert {facts.head.domain.name} {name} --keep",
        )


def _out_of_sight(dropped: set[Path], draft: _Draft, facts: RevertFacts) -> Iterator[str]:
    """What disks show now that no snapshot would tell of, although its image stays.

    Such as an image that stays for the sake of a tag inside, or as somebody's base. An overlay
    without data of its own shows what the layer below shows.
    """
    lineage = facts.lineage
    for target, chain in draft.leaving.items():
        for image in reversed(chain.images):
            file = image.identity.file
            if lineage.holders(file) or lineage.equal.get(file):
                break
            if file in lineage.used:
                if image.path not in dropped:
                    yield f"{target} ({image.spelled})"
                break


def _snapshots(held: Held, draft: _Draft, facts: RevertFacts) -> tuple[Snapshot, ...]:
    """What is recorded: the kept branch, and where the snapshot's disks continue now."""
    kept = (_kept(draft, facts),) if facts.keep else ()
    continued = {
        move.target: SnapshotDisk(
            name=move.target,
            mode=SnapshotMode.EXTERNAL,
            driver=move.format,
            source=os.fspath(move.path),
        )
        for move in draft.moves
        if held.mode(move.target) is SnapshotMode.EXTERNAL
    }
    snapshot = held.snapshot
    parents = {each.snapshot.parent for each in facts.lineage.held.values()}
    if snapshot.name in parents or any(each.parent == snapshot.name for each in kept):
        # As libvirt keeps it: children have their own overlays, and these are the ones in use.
        snapshot = replace(snapshot, revert_disks=tuple(continued.values()))
    else:
        disks = tuple(continued.get(disk.name, disk) for disk in snapshot.disks)
        snapshot = replace(snapshot, disks=disks, revert_disks=())
    return (*kept, snapshot)


def _kept(draft: _Draft, facts: RevertFacts) -> Snapshot:
    disks = []
    for disk in facts.head.domain.disks:
        entry = SnapshotDisk(name=disk.target, mode=SnapshotMode.NO)
        if disk.target in draft.in_place:
            entry = replace(entry, mode=SnapshotMode.INTERNAL)
        elif disk.target in draft.leaving:
            top = draft.leaving[disk.target].active.spelled
            stem, dot, _ = top.name.rpartition(".")
            source = top.with_name(f"{stem if dot else top.name}.{facts.keep}")
            entry = SnapshotDisk(
                name=disk.target,
                mode=SnapshotMode.EXTERNAL,
                driver=Format.QCOW2,
                source=os.fspath(source),
            )
        disks.append(entry)
    return Snapshot(
        name=facts.keep,
        created=facts.created,
        parent=facts.current,
        description="kept by a revert",
        disks=tuple(disks),
        domain_xml=facts.head.xml,
        transaction=facts.txid,
    )


def _pins(draft: _Draft, drops: Iterable[Drop]) -> Iterator[Pin]:
    dropped = {drop.path for drop in drops}
    changed = {image.path for image in draft.in_place.values()}
    chains = [("disk", chain) for chain in draft.staying]
    chains += list(draft.leaving.items())
    for target, chain in chains:
        for image in chain.images:
            yield Pin(
                target=target,
                path=image.path,
                identity=image.identity,
                exclusive=image.path in dropped | changed,
                written=image.path in changed,
            )


def _space(draft: _Draft, facts: RevertFacts) -> Iterator[Space]:
    images = {image.path: image for image in facts.lineage.images().values()}
    for step in draft.steps:
        if isinstance(step, CopyImage):
            size = images[step.base].allocation
            yield Space(target=step.target, folder=step.overlay.parent, size=size)
        elif isinstance(step, CreateOverlay):
            size = 5 * step.features.cluster_size
            yield Space(target=step.target, folder=step.overlay.parent, size=size)
