"""What a snapshot's record must say once images are elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.model.plan import Move
from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.plan.lineage import FileId, Held


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """Where an image is from now on: a file, whatever it was before."""

    path: Path
    format: Format

    def move(self, target: str) -> Move:
        """Let a disk name it."""
        return Move(target=target, path=self.path, format=self.format, over=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repointed:
    """A record with its own `<disk>`s changed, and the disks of its domains that have to be."""

    snapshot: Snapshot
    moves: tuple[Move, ...]  # in its copy of the domain XML
    inactive_moves: tuple[Move, ...]  # in that of the inactive one, if it has both


def all_repointed(
    held: Iterable[Held],
    settled: Mapping[FileId, Settled],
    files: Mapping[Path, FileId],
    inactive: Mapping[str, tuple[Disk, ...]],
) -> tuple[tuple[Repointed, ...], tuple[str, ...]]:
    """The records that change, and what a person should know of those that cannot, wholly."""
    found, notes = [], []
    for each in held:
        name = each.snapshot.name
        changed = repointed(each, settled, files, inactive.get(name, ()))
        if changed is None:
            continue
        if changed.snapshot.domain_xml:
            found.append(changed)
        else:
            notes.append(f"snapshot {name} has no copy of the domain XML and stays as it is")
        if each.snapshot.memory_file:
            notes.append(f"snapshot {name}: its memory stays in {each.snapshot.memory_file}")
    return tuple(found), tuple(notes)


def repointed(
    held: Held,
    settled: Mapping[FileId, Settled],
    files: Mapping[Path, FileId],
    inactive: tuple[Disk, ...] = (),
) -> Repointed | None:
    """The record of a snapshot with every image of `settled` in its new place; None: as it is.

    `files` says what the paths in it lead to. One that leads nowhere any more goes along with the
    image beside which it was, unless another image has that name now. `inactive` are the disks of
    its inactive domain XML.
    """
    snapshot = held.snapshot
    moves = tuple(
        settled[chain.active.identity.file].move(target)
        for target, chain in held.chains.items()
        if chain.active.identity.file in settled
    )
    inactive_moves = tuple(_moves(inactive, settled, files))
    disks = tuple(_moved(disk, held, settled, files) for disk in snapshot.disks)
    revert_disks = tuple(_moved(disk, held, settled, files) for disk in snapshot.revert_disks)
    new = replace(snapshot, disks=disks, revert_disks=revert_disks)
    if new == snapshot and not moves and not inactive_moves:
        return None
    return Repointed(snapshot=new, moves=moves, inactive_moves=inactive_moves)


def _moves(
    disks: tuple[Disk, ...], settled: Mapping[FileId, Settled], files: Mapping[Path, FileId]
) -> Iterator[Move]:
    for disk in disks:
        file = None if disk.source is None else files.get(disk.source)
        if file is not None and file in settled:
            yield settled[file].move(disk.target)


def _moved(
    disk: SnapshotDisk,
    held: Held,
    settled: Mapping[FileId, Settled],
    files: Mapping[Path, FileId],
) -> SnapshotDisk:
    path = Path(disk.source)
    if not path.is_absolute():
        return disk
    if path in files:
        place = settled.get(files[path])
        if place is None:
            return disk
        return replace(disk, type="file", driver=place.format, source=os.fspath(place.path))
    frozen = held.chains[disk.name].active if disk.name in held.chains else None
    if frozen is None or path.parent != frozen.spelled.parent:
        return disk
    place = settled.get(frozen.identity.file)
    if place is None or path.name in {each.path.name for each in settled.values()}:
        return disk
    return replace(disk, source=os.fspath(place.path.with_name(path.name)))
