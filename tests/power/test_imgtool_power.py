"""The power goes while imgtool works: every snapshot is old or new afterwards, and none is lost."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.testing import Outcome
from tests.crash.dying import Doom

from .conftest import PROPERTY, PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem, scratch_folder
from .replay import run_with_two_cuts
from .workload import KINDS, Killed, Snapshotting, UnsyncedFiles

pytestmark = pytest.mark.power

SUBSETS = 200
FEW = 20
PARTS = 16  # of the long matrices, so that none comes near the time limit of a test
long = pytest.mark.long
soak = pytest.mark.soak
on_each = pytest.mark.parametrize("fs", [XFS, EXT4, EXT4_BARE], ids=str)
on_strict = pytest.mark.parametrize("fs", [XFS, EXT4_BARE], ids=str)  # these forgive least
on_more = pytest.mark.parametrize(
    "fs", [XFS, *(pytest.param(fs, marks=long) for fs in (EXT4, EXT4_BARE, BTRFS))], ids=str
)


@on_each
@pytest.mark.parametrize(
    ("kind", "subsets"),
    [
        *((kind, FEW) for kind in KINDS),
        *(pytest.param(kind, SUBSETS, marks=long) for kind in KINDS),
    ],
)
def test_a_snapshot_is_old_or_new(
    power: PowerCuts, fs: FileSystem, kind: str, subsets: int
) -> None:
    prove(power, fs, Snapshotting(kind), subsets)


@on_more
def test_after_an_earlier_snapshot_with_the_journal_elsewhere(
    power: PowerCuts, fs: FileSystem
) -> None:
    prove(power, fs, Snapshotting("mixed", earlier=True, state=True), FEW)


@on_more
def test_while_others_sync(power: PowerCuts, fs: FileSystem) -> None:
    prove(power, fs, Snapshotting("mixed"), FEW, neighbour=0.005)


@on_more
@pytest.mark.parametrize("kind", [*KINDS])
def test_without_syncs_it_is_found_torn(power: PowerCuts, fs: FileSystem, kind: str) -> None:
    work = Snapshotting(kind, files=UnsyncedFiles())
    report = power(fs, prepare=work.prepare, act=work.act, check=work.check, subsets=FEW, seed=1)
    assert report.bad, report.explain()


@pytest.mark.parametrize("rebooted", [True, False], ids=["rebooted", "at-once"])
@pytest.mark.parametrize("promised", Outcome)
@pytest.mark.parametrize(
    "moment",
    [pytest.param(0, marks=long), 1, pytest.param(2, marks=long)],
    ids=["early", "amid", "late"],
)
def test_recovery_is_cut(power: PowerCuts, promised: Outcome, rebooted: bool, moment: int) -> None:
    """The process was killed, before or after the pivot; then the power goes in its recovery."""
    trace = calls("mixed")
    pivot = next(
        n
        for n, call in enumerate(trace, 1)
        if call.startswith("write_atomically") and "/vm.xml" in call
    )
    at = {
        Outcome.OLD: [first(trace, "publish"), last(trace, "copy_range"), pivot],
        Outcome.NEW: [pivot + 2, last(trace, "open_image") + 1, last(trace, "remove_empty")],
    }[promised][moment]
    work = Killed("mixed", at=at, rebooted=rebooted)
    prove_recovery(power, XFS, work)
    assert work.promised is promised, trace[at - 1]


@soak
@on_strict
@pytest.mark.parametrize("rebooted", [True, False], ids=["rebooted", "at-once"])
@pytest.mark.parametrize("part", range(PARTS))
def test_every_recovery_is_cut(power: PowerCuts, fs: FileSystem, rebooted: bool, part: int) -> None:
    """The process was killed before every single call."""
    for at in range(1 + part, len(calls("mixed")) + 1, PARTS):
        prove_recovery(power, fs, Killed("mixed", at=at, rebooted=rebooted))


@soak
@on_strict
@pytest.mark.parametrize("part", range(PARTS))
def test_a_second_recovery_is_cut(power: PowerCuts, fs: FileSystem, part: int) -> None:
    """The process was killed, and so was its first recovery."""
    dice = random.Random(part)
    total = len(calls("mixed"))
    for _ in range(4):
        at, again = dice.randint(total // 3, total), dice.randint(1, 40)
        prove_recovery(power, fs, Killed("mixed", at=at, rebooted=False, again=again))


@pytest.mark.parametrize(
    ("fs", "kind", "firsts"),
    [
        (EXT4_BARE, "mixed", 2),
        pytest.param(EXT4_BARE, "mixed", 6, marks=long),
        *(
            pytest.param(fs, kind, 20, marks=soak)
            for fs in (XFS, EXT4, EXT4_BARE, BTRFS)
            for kind in KINDS
        ),
    ],
    ids=str,
)
def test_the_power_goes_again_in_recovery(
    fs: FileSystem, kind: str, firsts: int, record_property: Callable[[str, object], None]
) -> None:
    """Recovery of what one cut has left is cut as well; the next one still ends in old or new."""
    work = Snapshotting(kind)

    def recover(root: Path) -> None:
        work.recover(root)
        work.promised = work.seems(root)

    with scratch_folder() as folder:
        reports = run_with_two_cuts(
            fs,
            folder,
            prepare=work.prepare,
            act=work.act,
            recover=recover,
            check=work.check,
            check_done=work.check_done,
            firsts=firsts,
            subsets=5,
            seed=1,
        )
    for report in reports:
        record_property(PROPERTY, str(report))
    assert len(reports) == firsts
    assert [report.explain() for report in reports if report.bad] == []


def prove(
    power: PowerCuts,
    fs: FileSystem,
    work: Snapshotting,
    subsets: int,
    neighbour: float | None = None,
    flushes: int = 20,
) -> None:
    """No cut is bad, the syncs reach the disk, and both sides of the pivot were seen."""
    report = power(
        fs,
        prepare=work.prepare,
        act=work.act,
        check=work.check,
        check_done=work.check_done,
        subsets=subsets,
        seed=1,
        neighbour=neighbour,
    )
    assert not report.bad, report.explain()
    assert report.flushes > flushes, "the syncs did not reach the disk"
    assert all(work.outcomes.values()), f"one side only: {work.outcomes}"


def prove_recovery(power: PowerCuts, fs: FileSystem, work: Killed) -> None:
    """Wherever the power goes: if all was on the disk before, the end is the only one there is."""
    report = power(
        fs,
        prepare=work.prepare,
        act=work.act,
        check=work.check_done if work.rebooted else work.check,
        check_done=work.check_done,
        subsets=FEW,
        seed=1,
    )
    assert not report.bad, f"killed at {work.doom.trace[-1]}\n{report.explain()}"


def calls(kind: str) -> list[str]:
    """What a snapshot asks of Files, in order: where its process may be killed."""
    doom = Doom()
    with scratch_folder() as folder:
        work = Snapshotting(kind)
        work.prepare(folder)
        work.die(folder, doom)
    return doom.trace


def first(trace: list[str], name: str) -> int:
    """The number, from 1, of the first call of that name."""
    return next(n for n, call in enumerate(trace, 1) if call.startswith(name))


def last(trace: list[str], name: str) -> int:
    return len(trace) + 1 - first(trace[::-1], name)
