"""Plan what mends a domain without losing anything: one transaction."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from imgtool.model.domain import SnapshotMode
from imgtool.model.image import Format, Image, Qcow2Features
from imgtool.model.plan import Move, Pin, Plan, PutRecord, RecordStep, SetCurrent, Space
from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.plan.checkup_records import (
    adoptable_snapshots,
    orphan_tags,
    rightful_current,
    stale_tags,
    unrooted,
)
from imgtool.plan.finding import Examined
from imgtool.plan.lineage import FileId
from imgtool.plan.undertaking import Undertaking


@dataclass(frozen=True, slots=True, kw_only=True)
class MendFacts:
    """What was found, and what the user consents to."""

    seen: Examined
    work: Undertaking
    created: int  # seconds since the epoch; of records that are made
    drop_tags: bool = False  # internal snapshots without a record, and stale ones
    adopt: bool = False  # record snapshots of which only the overlays are left


@dataclass(frozen=True, slots=True, kw_only=True)
class MendPlan:
    """The plan, and what is only known to its maker. `done` empty: there is nothing to do."""

    plan: Plan
    done: tuple[str, ...]  # what is mended, a line each
    adopted: tuple[tuple[Snapshot, tuple[Move, ...]], ...] = ()
    """Snapshots to record; the domain XML that goes in is the present one with these moves."""
    rewritten: tuple[tuple[str, bool], ...] = ()
    """Snapshots whose records are written again, and whether they lose their parent."""
    pins: tuple[Pin, ...] = ()
    space: tuple[Space, ...] = ()


@dataclass(slots=True)
class _Draft:
    commands: dict[FileId, list[tuple[str, ...]]] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)

    def add(self, image: Image, command: tuple[str, ...], line: str) -> None:
        self.commands.setdefault(image.identity.file, []).append(command)
        self.done.append(line)


def plan_mending(facts: MendFacts) -> MendPlan:
    """Leaks, formats of bases, the current mark, parents; with consent, tags and records."""
    seen, draft = facts.seen, _Draft()
    _record_formats(seen, draft)
    if facts.drop_tags and not seen.doubts:  # what cannot be read may well know these tags
        _drop_tags(seen, draft)
    _free_leaks(seen, draft)
    images = seen.lineage.images()
    changes = tuple(
        facts.work.change(seen.target_of(images[file]), images[file], commands, number)
        for number, (file, commands) in enumerate(draft.commands.items())
    )
    adopted = tuple(_adopted(facts)) if facts.adopt else ()
    rewritten = tuple(_rewritten(seen))
    draft.done += [f"snapshot {each.name} is recorded" for each, _ in adopted]
    draft.done += [
        f"snapshot {name} has no parent any more" if orphan else f"snapshot {name}: mark cleared"
        for name, orphan in rewritten
    ]
    current = _current(seen, adopted)
    if current is not None:
        draft.done.append(f"snapshot {current.name} is current")
    records: list[RecordStep] = [PutRecord(name=each.name) for each, _ in adopted]
    records += [current] if current else []
    plan = facts.work.plan(f"repair of {seen.name}", changes, records=records)
    return MendPlan(
        plan=plan,
        done=tuple(draft.done),
        adopted=adopted,
        rewritten=rewritten,
        pins=tuple(_pins(draft, seen)),
        space=tuple(_space(images[file], facts) for file in draft.commands),
    )


def _record_formats(seen: Examined, draft: _Draft) -> None:
    """In overlays whose base all other records of the store call the same."""
    chains = [*seen.lineage.current.values()]
    chains += [chain for held in seen.lineage.held.values() for chain in held.chains.values()]
    known: set[FileId] = set()
    for chain in chains:
        for base, overlay in zip(chain.images, chain.images[1:], strict=False):
            file = overlay.identity.file
            fmt = seen.recorded_format(base.identity.file)
            if overlay.backing_format or not fmt or file in known or not _mendable(overlay, seen):
                continue
            known.add(file)
            command = ("rebase", "-u", "-F", fmt, "-b", overlay.backing or "")
            draft.add(overlay, command, f"{overlay.spelled} records that its base is {fmt}")


def _drop_tags(seen: Examined, draft: _Draft) -> None:
    for image, tag in orphan_tags(seen):
        # -d takes the first of that name, and all of that name go
        if _mendable(image, seen):
            line = f"{image.spelled}: internal snapshot {tag.tag!r} (id {tag.id}) is dropped"
            draft.add(image, ("snapshot", "-d", tag.tag), line)
    for image, name, count in stale_tags(seen):
        if _mendable(image, seen):
            for _ in range(count):  # the older ones are the first
                draft.add(
                    image, ("snapshot", "-d", name), f"{image.spelled}: a stale {name!r} goes"
                )


def _free_leaks(seen: Examined, draft: _Draft) -> None:
    for file, image in seen.lineage.images().items():
        report = seen.reports.get(file)
        if report is not None and report.leaks and _mendable(image, seen):
            line = f"{image.spelled}: {report.leaks} leaked clusters are freed"
            draft.add(image, ("check", "-q", "-r", "leaks"), line)


def _mendable(image: Image, seen: Examined) -> bool:
    """A whole qcow2 that can be blocked while it is changed."""
    report = seen.reports.get(image.identity.file)
    whole = report is None or not (report.corruptions or report.errors or report.problem)
    modern = image.features is not None and image.features.compat != "0.10"
    sound = not (image.corrupt or image.dirty or image.encrypted or image.data_file)
    return image.format is Format.QCOW2 and whole and modern and sound


def _adopted(facts: MendFacts) -> Iterator[tuple[Snapshot, tuple[Move, ...]]]:
    seen = facts.seen
    for found in adoptable_snapshots(seen):
        disks, moves = [], []
        for disk in facts.work.head.domain.disks:
            base = found.bases.get(disk.target)
            if base is None:
                disks.append(SnapshotDisk(name=disk.target, mode=SnapshotMode.NO))
                continue
            moves.append(
                Move(
                    target=disk.target,
                    path=base.spelled,
                    format=base.format,
                    block_device=base.block_device,
                    over=False,
                )
            )
            disks.append(
                SnapshotDisk(
                    name=disk.target,
                    mode=SnapshotMode.EXTERNAL,
                    driver=Format.QCOW2,
                    source=os.fspath(disk.source or ""),
                )
            )
        snapshot = Snapshot(
            name=found.name,
            created=facts.created,
            description="recorded by a repair",
            parent=seen.current or rightful_current(seen),
            disks=tuple(disks),
            transaction=facts.work.txid,
        )
        yield snapshot, tuple(moves)


def _rewritten(seen: Examined) -> Iterator[tuple[str, bool]]:
    orphans = set(unrooted(seen))
    yield from ((name, True) for name in sorted(orphans))
    for name in seen.claims:
        if name not in orphans and name != seen.current:
            yield name, False


def _current(
    seen: Examined, adopted: tuple[tuple[Snapshot, tuple[Move, ...]], ...]
) -> SetCurrent | None:
    """What the disks build on is current, if nothing is; a snapshot just recorded is."""
    if adopted:
        return SetCurrent(name=adopted[-1][0].name, previous=seen.current)
    if seen.lineage.held and seen.current is None:
        name = rightful_current(seen)
        return SetCurrent(name=name, previous=None) if name else None
    return None


def _pins(draft: _Draft, seen: Examined) -> Iterator[Pin]:
    for file, image in seen.lineage.images().items():
        if file in draft.commands:
            yield Pin(
                target=seen.target_of(image),
                path=image.path,
                identity=image.identity,
                exclusive=True,
            )


def _space(image: Image, facts: MendFacts) -> Space:
    """Redo and undo: at most all metadata, each piece of it in a cluster of the scratch layer."""
    features = image.features or Qcow2Features()
    clusters = image.identity.size // features.cluster_size + 1
    metadata = clusters * (16 + features.refcount_bits // 8) + 16 * max(
        features.cluster_size, 65536
    )
    return Space(
        target=facts.seen.target_of(image),
        folder=facts.work.workspace.parent,
        size=2 * min(image.identity.size, metadata),
    )
