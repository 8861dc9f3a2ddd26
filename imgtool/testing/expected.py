"""What a domain must be like after an operation, worked out from what it was before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.testing.state import DiskState, Entry, Layer, Record, State, Tag, differences


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterSnapshot:
    """Says what is wrong with a state as the one after a snapshot: for `assert_old_or_new`.

    Knows the directory store's files. Of the domain XML it checks that no line got lost but those
    that name a source or a driver, and that the disks are as planned.
    """

    before: State
    name: str
    overlays: Mapping[str, Path]  # by target; of the external disks
    internal: frozenset[str] = frozenset()  # targets

    def __call__(self, now: State) -> list[str]:
        expected = replace(
            self.before,
            xml=now.xml,
            transaction=now.transaction,
            disks=tuple(self._disk(disk, now) for disk in self.before.disks),
            records=tuple(sorted((*self.before.records, *self._record(now)), key=_name)),
            current=self.name,
            entries=self._entries(now),
        )
        return [*differences(expected, now), *self._xml(now)]

    def _disk(self, disk: DiskState, now: State) -> DiskState:
        if disk.target in self.internal:
            tags = next((one.top.tags for one in now.disks if one.target == disk.target), ())
            number = tags[-1].id if tags else "?"
            tag = Tag(id=number, tag=self.name, guest=disk.top.guest)
            top = replace(disk.top, tags=(*disk.top.tags, tag))
            return replace(disk, layers=(*disk.layers[:-1], top))
        if disk.target not in self.overlays:
            return disk
        path = self.overlays[disk.target]
        overlay = _overlay(disk.top, path, now.disk(disk.target).top)
        return replace(disk, source=str(path), format="qcow2", layers=(*disk.layers, overlay))

    def _record(self, now: State) -> Iterator[Record]:
        found = [record for record in now.records if record.name == self.name]
        modes = {disk.target: "no" for disk in self.before.disks}
        modes |= dict.fromkeys(self.internal, "internal")
        modes |= dict.fromkeys(self.overlays, "external")
        for record in found or [Record(name=self.name, parent=None, disks=(), xml="", exact="")]:
            said = {name: (mode, source) for name, mode, _, source in record.disks}
            yield replace(
                record,
                parent=self.before.current,
                disks=tuple(
                    (target, mode, "qcow2" if target in self.overlays else "", self._source(target))
                    for target, mode in modes.items()
                    if mode != "no" or target in said
                ),
            )

    def _source(self, target: str) -> str:
        return str(self.overlays[target]) if target in self.overlays else ""

    def _entries(self, now: State) -> tuple[Entry, ...]:
        """All of before, the overlays like their bases, and what the store keeps of a snapshot."""
        home = Path(now.state_dir, now.uuid)
        own = {
            str(path)
            for path in (
                Path(now.state_dir),
                home,
                home / "snapshots",
                home / "snapshots" / f"{self.name}.xml",
                home / "current",
            )
        }
        made = {entry.path: entry for entry in self.before.entries}
        for target, path in self.overlays.items():
            base = made.get(self.before.disk(target).top.path)
            if base is not None:
                mode = f"{int(base.mode, 8) & ~0o007:04o}"  # never readable by all
                made[str(path)] = replace(base, path=str(path), mode=mode)
        made |= {entry.path: entry for entry in now.entries if entry.path in own - made.keys()}
        return tuple(sorted(made.values(), key=lambda entry: Path(entry.path)))

    def _xml(self, now: State) -> Iterator[str]:
        lines = iter(now.xml.splitlines())
        for line in self.before.xml.splitlines():
            if not line.strip().startswith(("<source", "<driver")) and line not in lines:
                yield f"xml: this line is gone: {line}"
                return
        if now.transaction in ("", self.before.transaction):
            yield f"transaction: {now.transaction!r} is no new id"


def _overlay(base: Layer, path: Path, found: Layer) -> Layer:
    """An empty overlay; how it spells its base, and what the base does not decide, as found."""
    resolved = os.path.realpath(path.parent / (found.backing or "nothing"))
    features = found.features
    if base.features and features:
        features = replace(base.features, refcount_bits=features.refcount_bits)
    return Layer(
        path=os.path.realpath(path),
        format="qcow2",
        virtual_size=base.virtual_size,
        backing=found.backing if resolved == base.path else base.path,
        backing_format=base.format,
        features=features,
        guest=base.guest,
    )


def _name(record: Record) -> str:
    return record.name
