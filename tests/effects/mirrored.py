"""A domain on /path1/to/old.migrate, mirrored by /path2/to/new.qcow2, and what is done with it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.cli.main import main
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotDisk
from imgtool.testing import KIB, MIB, MadeDomain, guest_bytes_digest, make_image, write_pattern

from .asking import NAME, chain, disk, domain, external, named, take

SIZE = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """vda: common <- old.qcow2, in path1/to; path2/to is empty."""

    made: MadeDomain
    old: Path
    migrate: Path
    new: Path

    @property
    def root(self) -> Path:
        return self.old.parents[2]

    def asked(self, **more: Any) -> SnapshotDisk:
        return external(file=self.migrate, mirror=str(self.new), **more)

    def mirrored(self, **how: Any) -> api.SnapshotResult:
        """Take the mirrored snapshot."""
        return take(self.made, self.asked(), **how)

    def copy(self) -> None:
        """What chain-copy does."""
        for path in (self.old, self.old.with_name("common")):
            shutil.copy(path, self.new.parent)

    def end(self, *, pivot: bool, said: list[str] | None = None, **how: Any) -> api.MirrorEndResult:
        notes: list[str] = [] if said is None else said
        with api.open_world(self.made.uri, say=notes.append) as world:
            return api.end_mirror(
                world, self.made.name, NAME, api.MirrorEndOptions(pivot=pivot, **how)
            )

    def guest(self) -> str:
        """What the guest would see now."""
        source = named(self.made).source
        assert source is not None
        return guest_bytes_digest(source, Format.QCOW2)

    def layers(self) -> list[Path]:
        """What QEMU itself opens now, top first."""
        source = named(self.made).source
        assert source is not None
        return [Path(name).resolve() for name in chain(source)]

    def snapshots(self) -> list[str]:
        with api.open_world(self.made.uri) as world:
            return [each.name for each in api.snapshots(world, self.made.name)]


@dataclass(frozen=True, slots=True)
class Typed:
    """How a command line ended in this process, which saves starting another."""

    returncode: int
    stdout: str
    stderr: str


def typed(capsys: pytest.CaptureFixture[str], *words: str) -> Typed:
    """Run the command to its end."""
    capsys.readouterr()
    code = main(words)
    told = capsys.readouterr()
    return Typed(code, told.out, told.err)


def make_move(root: Path) -> Move:
    """The domain, before anything is done."""
    one, two = root / "path1/to", root / "path2/to"
    one.mkdir(parents=True)
    two.mkdir(parents=True)
    make_image(one / "common", size=SIZE)
    write_pattern(one / "common", Format.QCOW2, 0, MIB, 1)
    old = make_image(one / "old.qcow2", size=SIZE, backing="common", backing_format=Format.QCOW2)
    write_pattern(old, Format.QCOW2, 512 * KIB, MIB, 2)
    return Move(
        made=domain(root, disk(old)),
        old=old,
        migrate=one / "old.migrate",
        new=two / "new.qcow2",
    )
