"""Every effect of a copy job fails or is the last one: old, or a job with two ways out, or new."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from imgtool.engine.interrupt import Interrupt
from imgtool.model.errors import ImgtoolError, Interrupted, PendingError

from .conftest import CrashPoints
from .copyjobs import ACTS, Copying, make_copying
from .dying import DeadError, Doom, DyingFiles, DyingQemu, Fate
from .matrix import calls, run_into
from .strace import changing_calls, spread
from .strace import run_into as strike
from .test_signals import Signalling
from .test_syscalls import FAULTS

SOME = 4  # effects of each command in a quick run


@pytest.mark.parametrize("kind", ACTS)
def test_some_effects(kind: str, place: Path, crash_points: CrashPoints) -> None:
    fate = Fate.FAIL_BEFORE if kind == "abort" else Fate.DIE
    copying = make_copying(kind, place)
    total = calls(copying)
    step = max(1, total // SOME)
    points = range(1 + len(kind) % step, total + 1, step)
    _strike(copying, fate, points)
    crash_points(f"copy job, {kind}, {fate.name.lower()}", len(points))


@pytest.mark.parametrize(
    ("kind", "fate"),
    [
        ("copy", Fate.DIE),
        ("reuse", Fate.DIE),
        ("pivot", Fate.DIE),
        ("pivot", Fate.FAIL_BEFORE),
        ("abort", Fate.FAIL_BEFORE),
    ],
)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_effect(kind: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    _strike_all(kind, fate, place, crash_points)


@pytest.mark.parametrize(
    ("kind", "fate"),
    [
        ("copy", Fate.FAIL_BEFORE),
        ("copy", Fate.FAIL_AFTER),
        ("reuse", Fate.FAIL_BEFORE),
        ("reuse", Fate.FAIL_AFTER),
        ("anew", Fate.DIE),
        ("anew", Fate.FAIL_BEFORE),
        ("anew", Fate.FAIL_AFTER),
        ("pivot", Fate.FAIL_AFTER),
        ("abort", Fate.DIE),
        ("abort", Fate.FAIL_AFTER),
    ],
)
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_every_other_effect(kind: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    _strike_all(kind, fate, place, crash_points)


def _strike_all(kind: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    copying = make_copying(kind, place)
    total = calls(copying)
    seen = _strike(copying, fate, range(1, total + 1))
    if fate is Fate.DIE and kind in ("copy", "reuse"):
        assert {"old", "copying", "ready", "moved"} <= set(seen), seen
    crash_points(f"every step, copy job, {kind}, {fate.name.lower()}", total)


def _strike(copying: Copying, fate: Fate, points: range) -> Counter[str]:
    seen: Counter[str] = Counter()
    for at in points:
        ended, struck = _crash(copying, fate, at)
        try:
            now = _aborted(copying)
            if isinstance(ended, ImgtoolError) and not isinstance(ended, PendingError):
                assert now != "moved", "it said that nothing has changed"
                assert now != "copying", "an error leaves no half of a copy behind"
            if ended is None:
                assert now == ("kept" if copying.kind == "abort" else "moved")
            if now in ("copying", "ready"):
                _crash(copying, fate, at)
                copying.again()
                assert copying.has_moved()
        except (AssertionError, ImgtoolError) as error:
            raise AssertionError(struck) from error
        seen[now] += 1
    return seen


def _crash(copying: Copying, fate: Fate, at: int) -> tuple[BaseException | None, str]:
    """Run into it, and recover; returns what the command ended with, and what it was struck at."""
    copying.fresh()
    doom = Doom(fate=fate, at=at)
    ended = run_into(copying, doom)
    struck = f"call {at} of {copying.kind}: {doom.trace[at - 1]}; {ended!r}"
    assert ended is None or isinstance(ended, ImgtoolError | DeadError), struck
    copying.recover()
    return ended, struck


def _aborted(copying: Copying) -> str:
    """What the domain is after the crash; where a job is open, it is aborted."""
    ending = copying.ending()
    if ending is not None:
        copying.abort()
        assert copying.ending() is None
    if ending == "ready" or (ending is None and copying.kind == "abort"):
        copying.require_copies()
        return str(ending or "kept")
    if ending is None and copying.has_moved():
        return "moved"
    if copying.kind != "reuse":  # there, the old bytes of the destination are gone
        assert copying.is_plain()
    return str(ending or "old")


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "count", [pytest.param(2, marks=pytest.mark.long), pytest.param(200, marks=pytest.mark.soak)]
)
@pytest.mark.strace
@pytest.mark.timeout(1800)
def test_system_calls(fault: str, count: int, place: Path, crash_points: CrashPoints) -> None:
    copying = make_copying("copy", place)
    points = changing_calls(copying.arguments, copying.folder, place / "log")
    tried = list(spread(points, count, FAULTS.index(fault)))
    for point in tried:
        copying.fresh()
        done = strike(point, fault, copying.arguments)
        struck = f"{fault} at {point}: exit {done.returncode}: {done.stderr}"
        assert "Traceback" not in done.stderr, struck
        assert done.returncode in ((-9, 137) if "KILL" in fault else (0, 1, 4)), struck
        try:
            copying.recover()
            now = _aborted(copying)
            assert (now == "moved") is (done.returncode == 0) or done.returncode not in (0, 1)
            assert done.returncode != 1 or now != "copying"
        except (AssertionError, ImgtoolError) as error:
            raise AssertionError(struck) from error
    crash_points(f"system calls, copy job, {fault}", len(tried))


@pytest.mark.parametrize("once", [True, False], ids=["once", "again-and-again"])
def test_a_signal_before_some_effects(once: bool, place: Path) -> None:
    _signal_at(place, once=once, step=13)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("once", [True, False], ids=["once", "again-and-again"])
def test_a_signal_before_every_effect(once: bool, place: Path) -> None:
    _signal_at(place, once=once, step=1)


def _signal_at(place: Path, *, once: bool, step: int) -> None:
    """Nothing is left of a copy; or the job is ready, or has pivoted, and it says so."""
    copying = make_copying("copy", place)
    seen: Counter[str] = Counter()
    for at in range(1, calls(copying) + 1, step):
        copying.fresh()
        interrupt = Interrupt()
        doom = Signalling(at=at, once=once, interrupt=interrupt)
        with pytest.raises(Interrupted) as raised, copying.world(DyingFiles(doom)) as world:
            copying.take(replace(world, qemu=DyingQemu(doom), interrupt=interrupt))
        struck = f"call {at}: {doom.trace[at - 1]}; {raised.value!r}"
        assert raised.value.exit_code == 130, struck
        ending, said = copying.ending(), raised.value.message
        if ending is not None:
            assert (ending, "is ready, and stays so" in said) == ("ready", True), struck
            copying.again()
        elif copying.has_moved():
            assert "came too late" in said, struck
        else:
            assert copying.is_plain(), struck
            assert "nothing" in said, struck
        seen[str(ending)] += 1
    assert seen["None"], seen
