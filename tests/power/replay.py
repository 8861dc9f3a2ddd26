"""Cut the power at many moments of a piece of work, and look at what is left each time."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from .cuts import Cut, Piece, flush_cuts, subset_cuts
from .disk import FileSystem, copy_image, loop_device, mounted
from .log import read_data
from .record import Recording, Work, record

Check = Callable[[Path], str | None]


@dataclass(frozen=True, slots=True)
class BadCut:
    """A cut, and what was wrong after it."""

    cut: Cut
    reason: str

    def __str__(self) -> str:
        return f"{self.cut}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutReport:
    """How it went. `writes` and `flushes`: of the work, in the disk's log."""

    fs: str
    cuts: int
    subsets: int  # of the cuts, those with a random subset
    bad: tuple[BadCut, ...]
    writes: int
    flushes: int
    seed: int
    seconds: float  # for all the cuts with their checks

    def __str__(self) -> str:
        return (
            f"{self.fs}: {self.cuts} cuts ({self.subsets} random subsets, seed {self.seed}),"
            f" {len(self.bad)} bad; {self.writes} writes, {self.flushes} flushes;"
            f" {self.cuts / self.seconds:.0f} cuts/s"
        )

    def explain(self, count: int = 5) -> str:
        """The report and its first bad cuts, for an assertion's message."""
        return "\n  ".join([str(self), *map(str, self.bad[:count])])


def run_with_cuts(
    fs: FileSystem,
    workdir: Path,
    prepare: Work,
    act: Work,
    check: Check,
    subsets: int,
    seed: int,
    check_done: Check | None = None,
    neighbour: float | None = None,
) -> CutReport:
    """Do `act` once, then check the file system as each of many power cuts would leave it.

    The power goes at every flush, and at up to `subsets` random moments with a random subset of
    what was not flushed; random, but for `seed`, which repeats the choice for one log only. All
    the callables get the same mount point, so absolute paths hold; the device number of its
    files changes, as it may at a reboot. `prepare` runs before, and is synced. `check` says what
    is wrong, or returns None; it may change the disk (recovery!), which no other cut sees. What
    it raises is a bad cut too, as is a file system that cannot be mounted. `check_done`, if
    given, is the check for cuts after `act` returned: was what it promised there to stay?

    With a `neighbour`, another program syncs a file of its own every so many seconds during
    `act`, as happens on a busy host: names and sizes get to the disk between any two steps, long
    before the contents; each sync is one more cut. It can also hide that `act` lacks a sync of
    its own, so test without as well.

    `workdir` is an empty folder. Raises ToolError, and what prepare and act raise. Nothing stays
    mounted, attached or running; the log and images stay in `workdir`.
    """
    mountpoint, folder = _places(workdir)
    recording = record(fs, folder, mountpoint, prepare=prepare, act=act, neighbour=neighbour)
    return _report(fs, mountpoint, recording, check, subsets, seed, check_done)


def run_with_two_cuts(
    fs: FileSystem,
    workdir: Path,
    prepare: Work,
    act: Work,
    recover: Work,
    check: Check,
    firsts: int,
    subsets: int,
    seed: int,
    check_done: Check | None = None,
) -> tuple[CutReport, ...]:
    """The same for `recover`, on up to `firsts` of the disks that cuts in `act` have left.

    One report for each of them, with cuts at every flush and up to `subsets` others.
    """
    mountpoint, folder = _places(workdir)
    recording = record(fs, folder, mountpoint, prepare=prepare, act=act, neighbour=None)
    dice = random.Random(seed)
    cuts = subset_cuts(recording.entries, recording.start, firsts, fs.sector, dice)
    left = [workdir / f"disk-{number}" for number in range(len(cuts))]
    for disk, _ in zip(left, rebuild(recording, cuts, folder / "cut"), strict=True):
        (folder / "cut").rename(disk)

    reports = []
    for disk in left:
        shutil.rmtree(folder)
        folder.mkdir()
        second = record(
            fs, folder, mountpoint, prepare=_nothing, act=recover, neighbour=None, disk=disk
        )
        disk.unlink()
        reports.append(_report(fs, mountpoint, second, check, subsets, seed, check_done))
    return tuple(reports)


def _places(workdir: Path) -> tuple[Path, Path]:
    """The mount point, and a folder for images and logs."""
    mountpoint, folder = workdir / "mnt", workdir / "disk"
    mountpoint.mkdir()
    folder.mkdir()
    return mountpoint, folder


def _nothing(root: Path) -> None: ...


def _report(
    fs: FileSystem,
    mountpoint: Path,
    recording: Recording,
    check: Check,
    subsets: int,
    seed: int,
    check_done: Check | None,
) -> CutReport:
    """Make the cuts and judge them."""
    entries, start, done = recording.entries, recording.start, recording.done
    random_cuts = subset_cuts(entries, start, subsets, fs.sector, random.Random(seed))
    cuts = (*flush_cuts(entries, start, done), *random_cuts)

    image, bad, began = recording.base.parent / "cut", [], time.monotonic()
    with loop_device(recording.base):  # mostly takes the number that the work had
        for cut in rebuild(recording, cuts, image):
            verdict = check_done if check_done and cut.at >= done else check
            with_another_number = mounted(fs, image, mountpoint, other_than=recording.device)
            if (reason := _judge(with_another_number, mountpoint, verdict)) is not None:
                bad.append(BadCut(cut, reason))
    return CutReport(
        fs=fs.name,
        cuts=len(cuts),
        subsets=len(random_cuts),
        bad=tuple(bad),
        writes=sum(entry.is_write for entry in entries[start:]),
        flushes=sum(entry.is_flush for entry in entries[start:]),
        seed=seed,
        seconds=time.monotonic() - began,
    )


def rebuild(recording: Recording, cuts: Sequence[Cut], image: Path) -> Iterator[Cut]:
    """Make `image` the disk as each cut left it, and yield the cut; in order of their flushes.

    What cuts have in common is applied once, to the recording's base, which therefore changes.
    """
    applied = 0
    with recording.log.open("rb") as log, recording.base.open("r+b", buffering=0) as base:
        for cut in sorted(cuts, key=lambda cut: cut.settled):
            for i in range(applied, cut.settled):
                whole = Piece(i, 0, recording.entries[i].length)
                _apply(recording, log.fileno(), whole, base.fileno())
            applied = cut.settled
            copy_image(recording.base, image)
            with image.open("r+b", buffering=0) as disk:
                for piece in cut.kept:
                    _apply(recording, log.fileno(), piece, disk.fileno())
            yield cut


def _apply(recording: Recording, log: int, piece: Piece, disk: int) -> None:
    entry = recording.entries[piece.entry]
    data = read_data(log, entry, piece.start, piece.length)
    at = entry.offset + piece.start
    while data:
        written = os.pwrite(disk, data, at)
        data, at = data[written:], at + written


def _judge(disk: AbstractContextManager[object], mountpoint: Path, check: Check) -> str | None:
    """What is wrong with the file system of `disk`, or None."""
    try:
        with disk:
            return check(mountpoint)
    except Exception as error:  # whatever it is, this cut broke something
        return f"{type(error).__name__}: {error}"
