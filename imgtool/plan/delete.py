"""Plan the deletion of snapshots: data moves down or up, whichever is less and harms nobody.

An external snapshot froze an image. Once the snapshot goes, that image and the one overlay above
it need not be two any more: the overlay is merged down into it, or it is pulled up into its
overlays and dropped. A merge destroys what the snapshot froze, so it follows the pivot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path

from imgtool.model.domain import SnapshotMode
from imgtool.model.image import Format, Image
from imgtool.model.plan import (
    Aftermath,
    Drop,
    DropRecord,
    LateRecord,
    MergeDown,
    Move,
    Pin,
    Plan,
    PullImage,
    Relink,
    Repoint,
    SetCurrent,
    Space,
    Step,
)
from imgtool.model.snapshot import Snapshot
from imgtool.plan.lineage import FileId, Held, Lineage, files_of, is_relative
from imgtool.plan.names import backing_name
from imgtool.plan.undertaking import Undertaking, node, require_sound

MERGEABLE = frozenset({Format.RAW, Format.QCOW2})


class Way(Enum):
    """What becomes of the image that a snapshot froze."""

    LEAVE = auto()  # somebody else needs it as it is
    DROP = auto()  # nobody builds on it
    MERGE = auto()  # its only overlay goes down into it
    PULL = auto()  # it goes up into its overlays


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFacts(Undertaking):
    """What the survey found and the caller decided."""

    lineage: Lineage
    writable: frozenset[Path]  # images that may be opened for writing
    folders: Mapping[Path, Path]  # folder as spelled: folder with links resolved
    current: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletePlan:
    """The plan, and what is only known to its maker."""

    plan: Plan
    pins: tuple[Pin, ...]
    space: tuple[Space, ...]
    ways: tuple[tuple[str, Way, Path, int], ...]  # disk, way, image frozen, bytes to move
    reparented: tuple[Snapshot, ...]  # children of the deleted one, with their new parent
    renamed: Mapping[str, tuple[Move, ...]]
    """By snapshot: what its copy of the domain XML must name from now on."""
    notes: tuple[str, ...]  # what a person should know, a line each


@dataclass(slots=True)
class _Draft:
    steps: list[Step] = field(default_factory=list)
    merges: list[MergeDown] = field(default_factory=list)
    relinks: list[Relink] = field(default_factory=list)
    repoints: list[Repoint] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    renamed: dict[str, tuple[Move, ...]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    written: set[Path] = field(default_factory=set)
    dropped: set[Path] = field(default_factory=set)
    ways: list[tuple[str, Way, Path, int]] = field(default_factory=list)
    space: list[Space] = field(default_factory=list)


def plan_delete(name: str, facts: DeleteFacts) -> DeletePlan:
    """Delete one snapshot with its data on all disks; every other snapshot stays revertible.

    Raises UnsupportedError, ChainError: what cannot be done without harming others.
    """
    held = facts.lineage.held[name]
    draft = _Draft()
    for target in _targets(held):
        if held.mode(target) is SnapshotMode.INTERNAL:
            _delete_tag(target, held, facts, draft)
        elif held.mode(target) is SnapshotMode.EXTERNAL:
            _release(target, held, facts, draft)
    reparented = tuple(
        replace(each.snapshot, parent=held.snapshot.parent)
        for each in facts.lineage.held.values()
        if each.snapshot.parent == name
    )
    plan = facts.plan(
        f"deletion of snapshot {name} of {facts.head.domain.name}",
        draft.steps,
        aftermath=Aftermath(
            merges=tuple(draft.merges),
            relinks=tuple(draft.relinks),
            repoints=tuple(draft.repoints),
            records=_late_records(held, facts),
            drops=tuple(draft.drops),
        ),
    )
    return DeletePlan(
        plan=plan,
        pins=tuple(_pins(held, facts, draft)),
        space=tuple(draft.space),
        ways=tuple(draft.ways),
        reparented=reparented,
        renamed=draft.renamed,
        notes=tuple(draft.notes),
    )


def _targets(held: Held) -> Iterator[str]:
    for disk in held.snapshot.disks:
        if disk.mode not in (None, SnapshotMode.NO):
            yield disk.name


def _late_records(held: Held, facts: DeleteFacts) -> tuple[LateRecord, ...]:
    """The record goes last; ReplaceRecords are put before it by the caller, who has the XML."""
    name = held.snapshot.name
    current: tuple[LateRecord, ...] = ()
    if facts.current == name:
        current = (SetCurrent(name=held.snapshot.parent, previous=name),)
    return (*current, DropRecord(name=name))


def _delete_tag(target: str, held: Held, facts: DeleteFacts, draft: _Draft) -> None:
    image = held.chain(target).active
    ids = [each.id for each in image.snapshots if each.tag == held.snapshot.name]
    if not ids:
        return  # nothing is left of it
    # -d takes a tag, never an id (other than -a); libvirt may have made a tag twice.
    commands = [("snapshot", "-d", held.snapshot.name)] * len(ids)
    draft.steps.append(facts.change(target, image, commands, len(draft.steps)))
    draft.written.add(image.path)
    draft.ways.append((target, Way.LEAVE, image.path, 0))
    # What it shows is not what the tag held: that may be the only copy of something.
    draft.notes += _left(target, held.chain(target).images, held, facts)


def _left(target: str, images: tuple[Image, ...], held: Held, facts: DeleteFacts) -> Iterator[str]:
    """Layers that nothing needs any more. Who has made them is not known, so they stay."""
    lineage = facts.lineage
    needed = lineage.needed(but=held.snapshot.name) | files_of(lineage.current.values())
    for image in reversed(images):
        if image.identity.file in needed:
            return
        yield f"{target}: {image.spelled} stays, although nothing needs it any more"


def _release(target: str, held: Held, facts: DeleteFacts, draft: _Draft) -> None:
    """Let go of the image that the snapshot froze on one disk."""
    if target not in held.chains:
        return  # gone already: only the record is left of it
    base = held.chains[target].active
    name = held.snapshot.name
    way, size = _choose(target, base, name, facts, draft)
    draft.ways.append((target, way, base.path, size))
    children = facts.lineage.children(base.identity.file)
    if way is Way.DROP:
        _drop(target, base, draft)
        draft.notes += _left(target, held.chains[target].images[:-1], held, facts)
    elif way is Way.MERGE:
        _merge(target, base, children[0], facts, draft)
        draft.space.append(Space(target=target, folder=base.path.parent, size=size))
    elif way is Way.PULL:
        for child in children:
            _pull(target, base, child, facts, draft)
            each = size // len(children)
            draft.space.append(Space(target=target, folder=child.path.parent, size=each))
        if not _still_needed(base, name, facts):
            _drop(target, base, draft)


def _choose(
    target: str, base: Image, name: str, facts: DeleteFacts, draft: _Draft
) -> tuple[Way, int]:
    lineage, file = facts.lineage, base.identity.file
    children = lineage.children(file)
    if lineage.holders(file, but=name) or _is_current(file, lineage):
        return Way.LEAVE, 0
    if not children:
        needed = lineage.strangers_to(file) or lineage.tag_holders(file, but=name)
        return (Way.LEAVE, 0) if needed or base.block_device else (Way.DROP, 0)
    for image in (base, *children):
        require_sound(target, image)
    no_merge = _why_no_merge(base, children, name, facts)
    no_pull = _why_no_pull(base, children, name, facts)
    if no_merge and no_pull:
        draft.notes.append(
            f"{target}: {base.spelled} stays below: it cannot take the data of its overlay "
            f"({no_merge}), nor give its own up ({no_pull})"
        )
        return Way.LEAVE, 0
    down = children[0].allocation
    up = base.allocation * len(children)
    if no_pull or (not no_merge and down <= up):
        return Way.MERGE, down
    return Way.PULL, up


def _why_no_merge(base: Image, children: tuple[Image, ...], name: str, facts: DeleteFacts) -> str:
    lineage = facts.lineage
    top = children[0]
    strangers = lineage.strangers_to(base.identity.file)
    reasons = {
        f"it has {len(children)} overlays": len(children) > 1,
        f"{', '.join(strangers)} builds on it": bool(strangers),
        f"{base.format} takes no merge": base.format not in MERGEABLE,
        "it cannot be written": base.path not in facts.writable,
        "its overlay has internal snapshots inside": bool(top.snapshots),
        "its overlay has bitmaps inside": bool(top.bitmaps),
        "it is larger than its overlay": base.virtual_size > top.virtual_size,
        "it is a block device that is too small": base.block_device
        and base.virtual_size < top.virtual_size,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _why_no_pull(base: Image, children: tuple[Image, ...], name: str, facts: DeleteFacts) -> str:
    tags = facts.lineage.tag_holders(base.identity.file, but=name)
    reasons = {
        f"snapshot {', '.join(tags)} has its state inside": bool(tags),
        "an overlay of it cannot be written": any(
            child.path not in facts.writable for child in children
        ),
        # What a tag does not hold itself it reads from below; a pull copies for the active state.
        "an overlay of it has internal snapshots inside": any(
            child.snapshots for child in children
        ),
        "an overlay of it is not qcow2": any(child.format != Format.QCOW2 for child in children),
        "it has internal snapshots that nobody records": bool(base.snapshots) and not tags,
        "it has bitmaps inside": bool(base.bitmaps),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _is_current(file: FileId, lineage: Lineage) -> bool:
    return any(chain.active.identity.file == file for chain in lineage.current.values())


def _still_needed(base: Image, name: str, facts: DeleteFacts) -> bool:
    file = base.identity.file
    lineage = facts.lineage
    return bool(
        base.block_device
        or base.path not in facts.writable  # somebody wants it to stay as it is
        or lineage.strangers_to(file)
        or lineage.holders(file, but=name)
        or lineage.tag_holders(file, but=name)
        or _is_current(file, lineage)
    )


def _merge(target: str, base: Image, top: Image, facts: DeleteFacts, draft: _Draft) -> None:
    """`top` goes down into `base`; whatever named `top` names `base` from then on."""
    lineage = facts.lineage
    draft.merges.append(MergeDown(target=target, layers=(node(base), node(top))))
    draft.written |= {base.path, top.path}
    for overlay in lineage.children(top.identity.file):
        folder = facts.folders[overlay.spelled.parent]
        relative = is_relative(overlay)
        draft.relinks.append(
            Relink(
                target=target,
                image=overlay.path,
                backing=backing_name(
                    base.path if relative else base.spelled, folder, relative=relative
                ),
                backing_format=base.format,
            )
        )
        draft.written.add(overlay.path)
    for disk, chain in lineage.current.items():
        if chain.active.identity.file == top.identity.file:
            draft.repoints.append(
                Repoint(
                    target=disk,
                    was=chain.active.spelled,
                    path=base.spelled,
                    format=base.format,
                    block_device=base.block_device,
                )
            )
    for name, held in lineage.held.items():
        for disk, chain in held.chains.items():
            if chain.active.identity.file == top.identity.file:
                moved = Move(
                    target=disk,
                    path=base.spelled,
                    format=base.format,
                    block_device=base.block_device,
                    over=False,
                )
                draft.renamed[name] = (*draft.renamed.get(name, ()), moved)
    if not lineage.strangers_to(top.identity.file):
        _drop(target, top, draft)


def _pull(target: str, base: Image, child: Image, facts: DeleteFacts, draft: _Draft) -> None:
    """`child` takes over what it shows of `base`, and builds on the base below."""
    below = facts.lineage.parent(base.identity.file)
    folder = facts.folders[child.spelled.parent]
    name = ""
    if below is not None:
        relative = is_relative(child)
        named = below.path if relative else below.spelled
        name = backing_name(named, folder, relative=relative)
    draft.steps.append(
        PullImage(
            target=target,
            image=child.path,
            backing=name,
            backing_format=below.format if below else None,
            old_backing=child.backing or "",
            old_backing_format=base.format,
            below=() if below else (node(base),),
        )
    )
    draft.written.add(child.path)


def _drop(target: str, image: Image, draft: _Draft) -> None:
    if image.block_device:
        return
    draft.drops.append(Drop(target=target, path=image.path, inode=image.identity.inode))
    draft.dropped.add(image.path)


def _pins(held: Held, facts: DeleteFacts, draft: _Draft) -> Iterator[Pin]:
    for image in facts.lineage.images().values():
        if image.path in draft.written | draft.dropped:
            yield Pin(
                target=_target_of(image, facts),
                path=image.path,
                identity=image.identity,
                exclusive=True,
                written=image.path in draft.written,
            )
    for target, chain in facts.lineage.current.items():
        for image in chain.images:
            if image.path not in draft.written | draft.dropped:
                yield Pin(target=target, path=image.path, identity=image.identity)


def _target_of(image: Image, facts: DeleteFacts) -> str:
    chains = [*facts.lineage.current.items()]
    for held in facts.lineage.held.values():
        chains += held.chains.items()
    return next(
        (target for target, chain in chains if image.path in {each.path for each in chain.images}),
        "disk",
    )
