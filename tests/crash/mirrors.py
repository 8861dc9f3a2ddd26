"""Mirrors to be disturbed: two disks, an old place, a new one, again and again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.model.domain import Disk, SnapshotMode
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing import KIB, MIB, Outcome, capture, make_domain, make_image, write_pattern

from .jobs import Act, sight
from .scenario import Scenario, digest

SIZE = MIB
TARGETS = ("vda", "vdb")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirroring(Scenario):
    """One thing that is done with mirrors."""

    act: Act
    after: str  # digest of what an undisturbed run leaves, where that is always the same

    @property
    def arguments(self) -> list[str]:
        specs = []
        for each in _wishes(self.folder):
            specs += ["--diskspec", f"{each.name},file={each.source},mirror={each.mirror}"]
        words = {
            "files": ["mirror-create", "vm", *specs],
            "snapshot": ["snapshot-create-as", "vm", "s1", "--disk-only", *specs],
            "pivot": ["snapshot-delete", "vm", "s1", "--mirror-pivot"],
            "abort": ["snapshot-delete", "vm", "s1", "--mirror-abort"],
        }
        return ["-c", f"dir:{self.folder}", "--jobs", "1", *words[self.kind]]

    def take(self, world: World) -> None:
        self.act(world)

    def outcome(self) -> Outcome:
        """Old or new in what a guest, QEMU and `ls` can see, or AssertionError."""
        found = digest(self.folder)
        if found == digest(self.template):
            return Outcome.OLD
        if found == self.after:
            return Outcome.NEW
        now = sight(self.state())
        if now == sight(self.before):
            return Outcome.OLD
        assert now == sight(self.new), f"neither {sight(self.before)} nor the new, but {now}"
        return Outcome.NEW


def make_mirroring(name: str, parent: Path) -> Mirroring:
    """Make the domain below `parent`, and find out what an undisturbed run makes of it."""
    folder, template = parent / "store", parent / "template"
    prepare, act = MIRRORINGS[name]
    folder.mkdir()
    make_two_places(folder)
    prepare(folder)
    shutil.copytree(folder, template, symlinks=True)
    shutil.rmtree(folder)
    shutil.copytree(template, folder, symlinks=True)  # copies are less sparse, and a plan counts
    before = capture(f"dir:{folder}", "vm", [folder])
    with api.open_world(f"dir:{folder}") as world:
        act(world)
    new = capture(f"dir:{folder}", "vm", [folder])
    made = Mirroring(
        kind=name,
        folder=folder,
        template=template,
        before=before,
        new=new,
        act=act,
        after=digest(folder),
    )
    made.fresh()
    return made


def make_two_places(folder: Path) -> None:
    """old/vda: common <- vda; old/vdb: raw."""
    for place in ("old", "new"):
        (folder / place).mkdir()
    old = folder / "old"
    make_image(old / "common", size=SIZE)
    write_pattern(old / "common", Format.QCOW2, 0, 256 * KIB, 1)
    make_image(old / "vda", size=SIZE, backing="common", backing_format=Format.QCOW2)
    write_pattern(old / "vda", Format.QCOW2, 128 * KIB, 256 * KIB, 2)
    make_image(old / "vdb", Format.RAW, SIZE)
    write_pattern(old / "vdb", Format.RAW, 0, 64 * KIB, 3)
    disks = [
        Disk(target=target, source=old / target, format=fmt, format_name=fmt)
        for target, fmt in zip(TARGETS, (Format.QCOW2, Format.RAW), strict=True)
    ]
    make_domain(folder, "vm", disks)


def _wishes(folder: Path) -> list[SnapshotDisk]:
    return [
        SnapshotDisk(
            name=target,
            source=str(folder / "old" / f"{target}.migrate"),
            mirror=str(folder / "new" / f"{target}.new"),
        )
        for target in TARGETS
    ]


def _home(world: World) -> Path:
    return Path(world.store.uri.removeprefix("dir:"))


def _nothing(folder: Path) -> None:
    """The domain as it is made is what is needed."""


def _create_files(world: World) -> object:
    return api.create_mirror_files(world, "vm", _wishes(_home(world)))


def _mirrored(world: World) -> object:
    disks = tuple(replace(each, mode=SnapshotMode.EXTERNAL) for each in _wishes(_home(world)))
    request = SnapshotRequest(name="s1", disks=disks)
    return api.take_snapshot(world, "vm", request, api.SnapshotOptions(disk_only=True))


def _is_mirrored(folder: Path) -> None:
    with api.open_world(f"dir:{folder}") as world:
        _mirrored(world)


def _is_copied(folder: Path) -> None:
    """And the guest has run since, and written to one disk."""
    _is_mirrored(folder)
    for name in ("common", "vda", "vdb"):
        shutil.copy(folder / "old" / name, folder / "new")
    write_pattern(folder / "old/vda.migrate", Format.QCOW2, 64 * KIB, 192 * KIB, 4)


def _end(*, pivot: bool) -> Act:
    def act(world: World) -> object:
        return api.end_mirror(world, "vm", "s1", api.MirrorEndOptions(pivot=pivot))

    return act


MIRRORINGS: dict[str, tuple[Callable[[Path], None], Act]] = {
    "files": (_nothing, _create_files),
    "snapshot": (_nothing, _mirrored),
    "pivot": (_is_copied, _end(pivot=True)),
    "abort": (_is_mirrored, _end(pivot=False)),
}
