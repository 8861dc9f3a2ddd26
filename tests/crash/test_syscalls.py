"""Every system call by which imgtool changes a file is the last one, or fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.testing import Outcome

from .branches import make_branching
from .conftest import CrashPoints
from .jobs import make_job
from .mirrors import MIRRORINGS, make_mirroring
from .scenario import KINDS, Scenario, make_scenario
from .strace import Point, changing_calls, run_into, spread

FAULTS = ("signal=KILL", "error=EIO", "error=ENOSPC")
SOME = 8  # points of each kind and fault in a quick run
FEW, MORE = 2, 12  # the same for what moves data, and in its long run
MOVES = {"commit-all": make_job, "delete-last": make_branching}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.strace
def test_some_calls(kind: str, fault: str, place: Path, crash_points: CrashPoints) -> None:
    scenario = make_scenario(kind, place)
    points = changing_calls(scenario.arguments, scenario.folder, place / "log")
    assert len(points) > SOME, points
    offset = KINDS.index(kind) + FAULTS.index(fault)
    tried = [_strike(scenario, point, fault) for point in spread(points, SOME, offset)]
    crash_points(f"system calls, {kind}, {fault}", len(tried))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.strace
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_call(kind: str, fault: str, place: Path, crash_points: CrashPoints) -> None:
    scenario = make_scenario(kind, place)
    points = changing_calls(scenario.arguments, scenario.folder, place / "log")
    seen = [_strike(scenario, point, fault) for point in points]
    assert {Outcome.OLD, Outcome.NEW} <= set(seen)
    crash_points(f"all system calls, {kind}, {fault}", len(seen))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("count", [FEW, pytest.param(MORE, marks=pytest.mark.long)])
@pytest.mark.strace
def test_calls_that_move_data(
    name: str, fault: str, count: int, place: Path, crash_points: CrashPoints
) -> None:
    scenario = MOVES[name](name, place)
    points = changing_calls(scenario.arguments, scenario.folder, place / "log")
    offset = list(MOVES).index(name) + FAULTS.index(fault)
    tried = [_strike(scenario, point, fault) for point in spread(points, count, offset)]
    assert count == FEW or {*tried} == {*Outcome}, tried
    crash_points(f"system calls, {name}, {fault}", len(tried))


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", MIRRORINGS)
@pytest.mark.strace
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_call_of_what_is_mirrored(
    name: str, fault: str, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_mirroring(name, place)
    points = changing_calls(scenario.arguments, scenario.folder, place / "log")
    tried = [_strike(scenario, point, fault) for point in points]
    assert {*tried} == {*Outcome}, tried
    crash_points(f"all system calls, {name}, {fault}", len(tried))


def _strike(scenario: Scenario, point: Point, fault: str) -> Outcome:
    scenario.fresh()
    done = run_into(point, fault, scenario.arguments)
    about = f"{fault} at {point}: exit {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr, about
    killed = fault == "signal=KILL"
    assert done.returncode in ((-9, 137) if killed else (0, 1, 4)), about
    if killed or done.returncode == 4 or _is_tidying(point):
        scenario.recover()
    try:
        outcome = scenario.outcome()
    except AssertionError as error:
        raise AssertionError(about) from error
    if done.returncode == 0:
        assert outcome is Outcome.NEW, about
    if done.returncode == 1:
        assert outcome is Outcome.OLD, about
    return outcome


def _is_tidying(point: Point) -> bool:
    """What could not be removed at the very end means nothing, and the next command removes it."""
    return point.syscall in ("rmdir", "unlink", "unlinkat", "fsync")
