"""Snapshots to be disturbed: the same domain at the same paths, again and again."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
from imgtool.model.domain import SnapshotMode
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing import Memory, Outcome, State, assert_old_or_new, capture, make_three_disks
from imgtool.testing.images import file_digest

KINDS = ("external", "internal", "mixed")
NAME = "s1"
_DISKS = {
    "external": {},
    "internal": {"vdc": SnapshotMode.NO},  # raw images have no internal snapshots
    "mixed": {"vdc": SnapshotMode.EXTERNAL},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A snapshot of three disks (two qcow2, one raw) in a directory store."""

    kind: str
    folder: Path  # the store and the images
    template: Path  # a copy of the folder as it was before
    before: State
    new: State  # after an undisturbed run
    memory: Memory = field(default_factory=Memory, compare=False)

    @property
    def arguments(self) -> list[str]:
        """The same for the command line, with one disk at a time."""
        return ["-c", f"dir:{self.folder}", "--jobs", "1", *self.command]

    @property
    def command(self) -> list[str]:
        """What follows the global options."""
        words = ["snapshot-create-as", "vm", NAME]
        if self.kind == "external":
            words.append("--disk-only")
        for target, mode in _DISKS[self.kind].items():
            words += ["--diskspec", f"{target},snapshot={mode}"]
        return words

    def fresh(self) -> None:
        """Put everything back as it was before."""
        shutil.rmtree(self.folder)
        shutil.copytree(self.template, self.folder, symlinks=True)

    def take(self, world: World) -> None:
        """Take the snapshot."""
        _take(self.kind, world)

    def recover(self) -> None:
        """As the next process would."""
        with self.world() as world:
            recovery = api.recover(world)
        assert not recovery.problems, recovery.problems
        assert not recovery.pending

    @contextmanager
    def world(self, files: Files | None = None, qemu: QemuImg | None = None) -> Iterator[World]:
        """The store, with one disk at a time, so that calls come in a fixed order."""
        with api.open_world(f"dir:{self.folder}", files=files, jobs=1) as world:
            yield replace(world, qemu=qemu) if qemu else world

    def outcome(self) -> Outcome:
        """Old or new, or AssertionError."""
        if digest(self.folder) == digest(self.template):
            return Outcome.OLD  # to the last byte; `capture` would only say so more slowly
        return assert_old_or_new(self.before, self.new, self.state())

    def state(self) -> State:
        return capture(f"dir:{self.folder}", "vm", [self.folder], memory=self.memory)


def make_scenario(kind: str, parent: Path) -> Scenario:
    """Make the domain below `parent`, and find out what an undisturbed run makes of it."""
    folder, template = parent / "store", parent / "template"
    folder.mkdir()
    make_three_disks(folder)
    shutil.copytree(folder, template, symlinks=True)
    before = capture(f"dir:{folder}", "vm", [folder])
    with api.open_world(f"dir:{folder}") as world:
        _take(kind, world)
    new = capture(f"dir:{folder}", "vm", [folder])
    scenario = Scenario(kind=kind, folder=folder, template=template, before=before, new=new)
    scenario.fresh()
    return scenario


def digest(folder: Path) -> str:
    """Names, modes, owners and bytes of everything below a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        facts = path.lstat()
        name = os.fsencode(path.relative_to(folder))
        total.update(b"%s\0%o %d %d\0" % (name, facts.st_mode, facts.st_uid, facts.st_gid))
        if path.is_file():
            total.update(file_digest(path).encode())
    return total.hexdigest()


def _take(kind: str, world: World) -> None:
    disks = tuple(SnapshotDisk(name=name, mode=mode) for name, mode in _DISKS[kind].items())
    request = SnapshotRequest(name=NAME, disks=disks)
    api.take_snapshot(world, "vm", request, api.SnapshotOptions(disk_only=kind == "external"))
