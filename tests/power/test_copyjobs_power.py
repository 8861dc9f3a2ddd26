"""The power goes while imgtool copies disks in a job and moves the domain to the copies.

Whatever is left: the guest finds its bytes, a job that calls itself ready or has pivoted has whole
copies, and one that is copying can be aborted to nothing, or taken up again.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool import api
from imgtool.host.files import Files
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format
from imgtool.testing import guest_bytes_digest

from .conftest import PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem
from .workload import UnsyncedFiles, make_disks, uri

pytestmark = pytest.mark.power

FEW, MANY = 6, 100
TARGETS = {"vdb": Format.QCOW2, "vdc": Format.RAW}
soak = pytest.mark.soak


class Copying:
    """Two disks, one of them over a base, copied and pivoted."""

    def __init__(self, files: Files | None = None) -> None:
        self.files = files or Files()
        self.guests: dict[str, str] = {}
        self.seen: set[str] = set()
        self.last = ""
        self.turn = 0

    def prepare(self, root: Path) -> None:
        (root / "all" / "vms").mkdir(parents=True)
        made = make_disks(root / "all" / "vms")
        for target, fmt in TARGETS.items():
            self.guests[target] = guest_bytes_digest(made.image(target), fmt)

    def act(self, root: Path) -> None:
        self.copy(root, self.files)

    def copy(self, root: Path, files: Files) -> None:
        """Copy and pivot, or go on with that."""
        targets = [api.CopyTarget(disk=name, dest=str(self.dest(root, name))) for name in TARGETS]
        with api.open_world(uri(root), files=files) as world:
            api.block_copy(world, "vm", targets, api.CopyOptions(pivot=True))

    def dest(self, root: Path, target: str) -> Path:
        return root / "all" / f"{target}-copy"

    def check(self, root: Path) -> str | None:
        """Recover and look; then end it, abort or again in turns."""
        try:
            return self._check(root)
        except (AssertionError, ImgtoolError, OSError) as error:
            return repr(error)

    def check_done(self, root: Path) -> str | None:
        """The command has said that it has pivoted."""
        problem = self.check(root)
        return problem if problem or self.last == "pivoted" else f"not pivoted, but {self.last}"

    def _check(self, root: Path) -> str | None:
        with api.open_world(uri(root)) as world:
            recovery = api.recover(world)
            assert not recovery.problems, recovery
            assert not recovery.pending, recovery
            phase = str(api.block_job(world, "vm", "vdb").ending) if recovery.jobs else "none"
        self._require_guest(root)
        if phase == "none":
            self.last = "pivoted" if self._moved(root) else "old"
        else:
            self.last = phase
        self.seen.add(self.last)
        self.turn += 1
        if phase == "ready":
            for target, fmt in TARGETS.items():
                found = guest_bytes_digest(self.dest(root, target), fmt)
                assert found == self.guests[target], f"{target}: ready, and not whole"
        if phase != "none" and self.turn % 2:
            with api.open_world(uri(root)) as world:
                api.block_job_abort(world, "vm", "vdb")
            if phase == "copying":
                assert not list((root / "all").glob("*-copy")), "left behind"
            assert not list((root / "all").glob(".imgtool-*")), "left behind"
            return None
        if self.last != "pivoted":
            self.copy(root, Files())
            assert self._moved(root)
            self._require_guest(root)
        return None

    def _require_guest(self, root: Path) -> None:
        with api.open_world(uri(root)) as world:
            disks = world.store.head("vm").domain.disks
        for disk in disks:
            if disk.target in TARGETS:
                assert disk.source is not None
                assert disk.format is not None
                found = guest_bytes_digest(disk.source, disk.format)
                assert found == self.guests[disk.target], f"{disk.target}: other bytes"

    def _moved(self, root: Path) -> bool:
        with api.open_world(uri(root)) as world:
            domain = world.store.head("vm").domain
        sources = {disk.target: disk.source for disk in domain.disks}
        moved = {sources[name] == self.dest(root, name) for name in TARGETS}
        assert len(moved) == 1, f"torn: {sources}"
        return moved.pop()


@pytest.mark.parametrize(
    ("fs", "subsets"),
    [
        pytest.param(XFS, FEW, marks=pytest.mark.long),
        *(pytest.param(fs, MANY, marks=soak) for fs in (XFS, EXT4, EXT4_BARE, BTRFS)),
    ],
    ids=str,
)
def test_no_cut_tears_a_copy_job(power: PowerCuts, fs: FileSystem, subsets: int) -> None:
    work = Copying()
    report = power(
        fs,
        prepare=work.prepare,
        act=work.act,
        check=work.check,
        check_done=work.check_done,
        subsets=subsets,
        seed=1,
    )
    assert not report.bad, report.explain()
    assert report.flushes > 20, "the syncs did not reach the disk"
    assert {"old", "copying", "ready", "pivoted"} <= work.seen, work.seen


@soak
def test_without_syncs_it_is_found_torn(power: PowerCuts) -> None:
    work = Copying(files=UnsyncedFiles())
    report = power(XFS, prepare=work.prepare, act=work.act, check=work.check, subsets=MANY, seed=1)
    assert report.bad, report.explain()
