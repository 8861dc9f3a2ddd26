"""The harness finds what a power cut can break, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from .conftest import PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem, loop_device, scratch_folder
from .record import Work
from .replay import Check, run_with_cuts

pytestmark = pytest.mark.power

OLD = b"old " * (16 << 10)  # 64 KiB: many sectors, so that torn content can be told
NEW = b"new " * (20 << 10)
EVERY_FS = pytest.mark.parametrize("fs", [XFS, EXT4, EXT4_BARE, BTRFS], ids=str)


def prepare(root: Path) -> None:
    (root / "file").write_bytes(OLD)


def save(root: Path) -> None:
    """As it should be done."""
    _save(root, sync_file=True, sync_folder=True)


def save_without_any_sync(root: Path) -> None:
    _save(root, sync_file=False, sync_folder=False)


def save_without_folder_sync(root: Path) -> None:
    _save(root, sync_file=True, sync_folder=False)


def save_in_place(root: Path) -> None:
    """Synced, and wrong: there is a moment when the file is neither old nor new."""
    with (root / "file").open("r+b") as file:
        file.write(NEW)
        file.flush()
        os.fsync(file.fileno())


def old_or_new(root: Path) -> str | None:
    content = (root / "file").read_bytes()
    return None if content in (OLD, NEW) else f"{len(content)} bytes, neither old nor new"


def new(root: Path) -> str | None:
    return None if (root / "file").read_bytes() == NEW else "not the new content"


@EVERY_FS
def test_a_synced_save_is_old_or_new(power: PowerCuts, fs: FileSystem) -> None:
    report = power(
        fs, prepare=prepare, act=save, check=old_or_new, check_done=new, subsets=40, seed=1
    )
    assert not report.bad, report.explain()
    assert report.flushes >= 2, "the syncs did not reach the disk"
    assert report.cuts > report.subsets > 0


@pytest.mark.parametrize("fs", [XFS, EXT4_BARE], ids=str)
def test_a_save_without_sync_is_found(power: PowerCuts, fs: FileSystem) -> None:
    report = power(
        fs, prepare=prepare, act=save_without_any_sync, check=old_or_new, subsets=40, seed=1
    )
    assert report.bad, report.explain()


# not on btrfs, which never writes in place
@pytest.mark.parametrize("fs", [XFS, EXT4, EXT4_BARE], ids=str)
def test_a_write_in_place_is_found_torn(power: PowerCuts, fs: FileSystem) -> None:
    report = power(fs, prepare=prepare, act=save_in_place, check=old_or_new, subsets=40, seed=1)
    assert report.bad, report.explain()


@EVERY_FS
def test_a_promise_that_was_not_synced_is_found(power: PowerCuts, fs: FileSystem) -> None:
    report = power(
        fs,
        prepare=prepare,
        act=save_without_folder_sync,
        check=old_or_new,
        check_done=new,
        subsets=40,
        seed=1,
    )
    assert {bad.reason for bad in report.bad} == {"not the new content"}, report.explain()


@pytest.mark.parametrize("fs", [XFS, EXT4, EXT4_BARE], ids=str)
def test_a_neighbour_shows_what_lies_between_two_syncs(power: PowerCuts, fs: FileSystem) -> None:
    """The file is synced in the end; but its name was on the disk before there was a content."""

    def slowly(root: Path) -> None:
        with (root / "slow").open("wb") as file:
            time.sleep(0.2)
            file.write(NEW)
            file.flush()
            os.fsync(file.fileno())

    def none_or_whole(root: Path) -> str | None:
        path = root / "slow"
        return "no content" if path.exists() and path.read_bytes() != NEW else None

    alone, beside = (
        power(
            fs,
            prepare=prepare,
            act=slowly,
            check=none_or_whole,
            subsets=5,
            seed=5,
            neighbour=pause,
        )
        for pause in (None, 0.02)
    )
    assert not alone.bad, alone.explain()
    assert beside.bad, beside.explain()


def test_what_a_check_changes_is_gone_at_the_next_cut(power: PowerCuts) -> None:
    def spoil(root: Path) -> str | None:
        verdict = old_or_new(root)
        (root / "file").write_bytes(b"spoiled")
        return verdict

    report = power(XFS, prepare=prepare, act=save, check=spoil, subsets=10, seed=2)
    assert not report.bad, report.explain()


def test_a_loop_device_is_another_than_that_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    with loop_device(file) as first:
        pass
    with loop_device(file, other_than=first) as second:
        assert second != first
    with loop_device(file) as held, loop_device(file, other_than=held) as third:
        assert third != held


def test_device_numbers_change_as_at_a_reboot(power: PowerCuts) -> None:
    devices: list[int] = []

    def note(root: Path) -> None:
        devices.append(root.stat().st_dev)
        save(root)

    def differs(root: Path) -> str | None:
        return "the same device" if root.stat().st_dev == devices[0] else None

    report = power(XFS, prepare=prepare, act=note, check=differs, subsets=3, seed=4)
    assert not report.bad, report.explain()


def test_a_check_that_raises_is_a_bad_cut(power: PowerCuts) -> None:
    def fail(root: Path) -> str | None:
        raise FileNotFoundError(root)

    report = power(XFS, prepare=prepare, act=save, check=fail, subsets=3, seed=3)
    assert len(report.bad) == report.cuts
    assert all("FileNotFoundError" in bad.reason for bad in report.bad)


def crash(root: Path) -> None:
    raise RuntimeError("the work failed")


def lose_the_disk(root: Path) -> None:
    os.kill(int((root.parent / "disk" / "pid").read_text()), signal.SIGKILL)
    save(root)


def interrupt(root: Path) -> str | None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("before", "work", "check", "error"),
    [
        (crash, save, old_or_new, RuntimeError),
        (prepare, crash, old_or_new, RuntimeError),
        (prepare, lose_the_disk, old_or_new, OSError),
        (prepare, save, interrupt, KeyboardInterrupt),
    ],
    ids=["prepare", "work", "disk", "check"],
)
def test_nothing_stays_behind_when_it_fails(
    before: Work, work: Work, check: Check, error: type[BaseException]
) -> None:
    with scratch_folder() as folder:
        with pytest.raises(error):
            run_with_cuts(XFS, folder, before, work, check, subsets=1, seed=1)
        loops = subprocess.run(
            ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert str(folder) not in loops
        assert str(folder) not in Path("/proc/self/mounts").read_text()
        assert not [line for line in _command_lines() if str(folder) in line]


def _command_lines() -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            yield (process / "cmdline").read_text(errors="replace")


def _save(root: Path, *, sync_file: bool, sync_folder: bool) -> None:
    with (root / "file.tmp").open("wb") as file:
        file.write(NEW)
        if sync_file:
            file.flush()
            os.fsync(file.fileno())
    (root / "file.tmp").rename(root / "file")
    if sync_folder:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)
