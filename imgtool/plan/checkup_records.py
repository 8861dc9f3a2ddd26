"""Compare the metadata of snapshots with each other, and with what is in the images."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import SnapshotMode
from imgtool.model.image import Chain, Image, InternalSnapshot
from imgtool.plan.finding import Examined, Finding, Severity
from imgtool.plan.lineage import FileId, Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Adoptable:
    """A snapshot that only its overlays are left of: they are in use, and no record names them."""

    name: str
    bases: dict[str, Image]  # by disk: what the snapshot froze


def record_findings(seen: Examined) -> Iterator[Finding]:
    """What is wrong with snapshots."""
    yield from _tags(seen)
    for held in seen.lineage.held.values():
        yield from _missing_tags(held, seen)
        yield from _interrupted(held, seen)
        yield from _written(held, seen)
    yield from _tree(seen)
    yield from _current(seen)
    yield from _lost_mirrors(seen)
    for adoptable in adoptable_snapshots(seen):
        targets = ", ".join(adoptable.bases)
        yield Finding(
            severity=Severity.NOTE,
            kind="not-recorded",
            message=f"{targets}: on overlays of a snapshot {adoptable.name} that is not recorded",
            remedy=seen.remedy("check", seen.name, "--repair", "--adopt"),
            disk=next(iter(adoptable.bases)),
        )


def _lost_mirrors(seen: Examined) -> Iterator[Finding]:
    for target, mirror in seen.lost_mirrors:
        yield Finding(
            severity=Severity.ERROR,
            kind="mirror-missing",
            message=f"{target}: {mirror}, its mirror of snapshot {seen.current}, is gone",
            remedy=seen.remedy("snapshot-delete", seen.name, seen.current or "", "--mirror-abort"),
            disk=target,
            path=mirror,
        )


def orphan_tags(seen: Examined) -> Iterator[tuple[Image, InternalSnapshot]]:
    """Internal snapshots that no record of the store knows."""
    for file, image in seen.lineage.images().items():
        ours = seen.lineage.tag_holders(file)
        for tag in image.snapshots:
            if tag.tag not in ours and (file, tag.tag) not in seen.foreign_tags:
                yield image, tag


def stale_tags(seen: Examined) -> Iterator[tuple[Image, str, int]]:
    """Image, name and number of recorded tags that are there too often, and older than theirs.

    libvirt makes a tag a second time when a snapshot is tried again after a crash, and reverts to
    the first. A record is dated before its tag is made: the last one is its own if it was made
    then or later, and all others before (or all within that one second). Else nobody knows.
    """
    for image, name, tags, created in _duplicates(seen):
        *older, last = [tag.created for tag in tags]
        tried_again = last >= created and all(each < created for each in older)
        if tried_again or {*older, last} == {created}:
            yield image, name, len(tags) - 1


def _duplicates(
    seen: Examined,
) -> Iterator[tuple[Image, str, list[InternalSnapshot], int]]:
    for file, image in seen.lineage.images().items():
        for name in seen.lineage.tag_holders(file):
            tags = [tag for tag in image.snapshots if tag.tag == name]
            if len(tags) > 1:
                yield image, name, tags, seen.lineage.held[name].snapshot.created


def _tags(seen: Examined) -> Iterator[Finding]:
    drop = seen.remedy("check", seen.name, "--repair", "--drop-orphan-tags")
    for image, tag in orphan_tags(seen):
        target = seen.target_of(image)
        yield Finding(
            severity=Severity.WARNING,
            kind="tag-without-record",
            message=f"{target}: {image.spelled} has an internal snapshot {tag.tag!r} "
            f"(id {tag.id}) that is not recorded",
            remedy=drop,
            disk=target,
            path=image.path,
        )
    stale = {(image.path, name) for image, name, _ in stale_tags(seen)}
    for image, name, tags, _ in _duplicates(seen):
        target = seen.target_of(image)
        mendable = (image.path, name) in stale
        yield Finding(
            severity=Severity.ERROR,
            kind="tag-twice",
            message=f"{target}: {image.spelled} has {len(tags)} internal snapshots {name!r}"
            + ("; the older are of an earlier try" if mendable else "; it is not clear which"),
            remedy=drop
            if mendable
            else shlex.join(["qemu-img", "snapshot", "-l", str(image.spelled)]),
            disk=target,
            path=image.path,
        )


def _missing_tags(held: Held, seen: Examined) -> Iterator[Finding]:
    name = held.snapshot.name
    inside = {
        target: chain.active
        for target, chain in held.chains.items()
        if held.mode(target) is SnapshotMode.INTERNAL
    }
    without = [
        target
        for target, image in inside.items()
        if name not in {tag.tag for tag in image.snapshots}
    ]
    if without:
        where = "in no image" if len(without) == len(inside) else f"not in that of {without[0]}"
        yield Finding(
            severity=Severity.ERROR,
            kind="tag-missing",
            message=f"snapshot {name} is recorded as internal, but is {where}",
            remedy=seen.remedy("snapshot-delete", seen.name, name),
            disk=without[0],
            path=inside[without[0]].path,
        )


def _interrupted(held: Held, seen: Examined) -> Iterator[Finding]:
    marked = [disk.name for disk in held.snapshot.disks if disk.deleting]
    if marked:
        name = held.snapshot.name
        children = [
            each.snapshot.name
            for each in seen.lineage.held.values()
            if each.snapshot.parent == name
        ]
        yield Finding(
            severity=Severity.ERROR,
            kind="deletion-interrupted",
            message=f"libvirt was interrupted while it deleted {' or '.join(children) or name}",
            remedy=seen.remedy("snapshot-delete", seen.name, (children or [name])[0]),
            disk=marked[0],
        )


def _written(held: Held, seen: Examined) -> Iterator[Finding]:
    """What a snapshot froze is written by the domain: a deletion has got as far as that disk."""
    name = held.snapshot.name
    active = {chain.active.identity.file for chain in seen.lineage.current.values()}
    for target, chain in held.chains.items():
        external = held.mode(target) is SnapshotMode.EXTERNAL
        if external and chain.active.identity.file in active:
            yield Finding(
                severity=Severity.ERROR,
                kind="frozen-image-in-use",
                message=f"{target}: the domain writes {chain.active.spelled}, which snapshot "
                f"{name} froze: it was being deleted",
                remedy=seen.remedy("snapshot-delete", seen.name, name),
                disk=target,
                path=chain.active.path,
            )


def _tree(seen: Examined) -> Iterator[Finding]:
    for name in unrooted(seen):
        parent = seen.lineage.held[name].snapshot.parent
        yield Finding(
            severity=Severity.WARNING,
            kind="parent",
            message=f"snapshot {name}: its parent {parent} is not recorded, or is its descendant",
            remedy=seen.remedy("check", seen.name, "--repair"),
        )


def unrooted(seen: Examined) -> Iterator[str]:
    """Snapshots whose parent is not there; of those in a circle, the oldest."""
    held = seen.lineage.held
    loops: set[frozenset[str]] = set()
    for name, each in held.items():
        if each.snapshot.parent is not None and each.snapshot.parent not in held:
            yield name
            continue
        line = [name]
        while (parent := held[line[-1]].snapshot.parent) in held and parent not in line:
            line.append(str(parent))
        if parent in line:
            loops.add(frozenset(line[line.index(str(parent)) :]))
    for loop in sorted(loops, key=sorted):
        yield min(loop, key=lambda one: (held[one].snapshot.created, one))


def _current(seen: Examined) -> Iterator[Finding]:
    held = seen.lineage.held
    if held and seen.current is None:
        name = rightful_current(seen)
        yield Finding(
            severity=Severity.WARNING if name else Severity.NOTE,
            kind="no-current",
            message="no snapshot is the current one"
            + (f"; the disks build on {name}" if name else ", and the disks build on none"),
            remedy=seen.remedy("snapshot-current", seen.name, name) if name else "",
        )
    stale = [name for name in seen.claims if name != seen.current]
    if stale:
        yield Finding(
            severity=Severity.WARNING,
            kind="current-twice",
            message=f"libvirt's records of {', '.join(seen.claims)} each claim to be current; "
            "which one wins is decided when it starts",
            remedy=seen.remedy("check", seen.name, "--repair"),
        )


def rightful_current(seen: Examined) -> str | None:
    """The snapshot that the disks build on most directly; None where they build on none."""
    best: tuple[int, int, str] | None = None
    for name, held in seen.lineage.held.items():
        depths = [
            _depth(target, chain, held.mode(target), seen)
            for target, chain in held.chains.items()
            if held.mode(target) in (SnapshotMode.EXTERNAL, SnapshotMode.INTERNAL)
        ]
        if depths and min(depths) >= 0:
            best = max(best or (-1, 0, ""), (sum(depths), held.snapshot.created, name))
    return best[2] if best else None


def _depth(target: str, chain: Chain, mode: SnapshotMode, seen: Examined) -> int:
    """How far up in the disk's chain the snapshot's image is; below 0: the disk has left it."""
    now = seen.lineage.current.get(target)
    files: list[FileId] = [] if now is None else [image.identity.file for image in now.images]
    file = chain.active.identity.file
    if file not in files or (mode is SnapshotMode.EXTERNAL and files[-1] == file):
        return -1
    return files.index(file)


def adoptable_snapshots(seen: Examined) -> Iterator[Adoptable]:
    """Snapshots that libvirt took and could not record: its overlays have its kind of names."""
    frozen = {
        chain.active.identity.file
        for held in seen.lineage.held.values()
        for target, chain in held.chains.items()
        if held.mode(target) is SnapshotMode.EXTERNAL
    }
    found: dict[str, dict[str, Image]] = {}
    for target, chain in seen.lineage.current.items():
        if len(chain.images) < 2:
            continue
        base, top = chain.images[-2:]
        name = _suffix(base.spelled, top.spelled)
        alone = not seen.lineage.strangers_to(base.identity.file)
        if name and alone and base.identity.file not in frozen and not top.block_device:
            found.setdefault(name, {})[target] = base
    for name, bases in found.items():
        if name not in seen.lineage.held:
            yield Adoptable(name=name, bases=bases)


def _suffix(base: Path, overlay: Path) -> str:
    """NAME of /x/disk.NAME over /x/disk.qcow2; empty where it is not that."""
    stem, dot, _ = base.name.rpartition(".")
    stem = (stem if dot else base.name) + "."
    same_folder = base.parent == overlay.parent and overlay.name.startswith(stem)
    return overlay.name.removeprefix(stem) if same_folder else ""
