"""Signals at every moment: old or new, the right exit code, nobody and nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from imgtool.engine.interrupt import Interrupt
from imgtool.model.errors import Interrupted
from imgtool.testing import Outcome

from .command import children_of, imgtool, start
from .conftest import CrashPoints
from .dying import Doom, DyingFiles, DyingQemu, Fate
from .scenario import KINDS, Scenario, make_scenario

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
OF_PYTHON = ("Traceback", "Fatal Python error: init")  # printed before the first line of ours
PATIENCE = 60  # seconds until an orphan of a killed process must have gone


@dataclass(slots=True)
class Signalling(Doom):
    """From the n-th call on, a signal comes before each call: an impatient Ctrl-C."""

    interrupt: Interrupt = field(default_factory=Interrupt)
    signum: int = signal.SIGINT
    once: bool = True

    def call(self, name: str, work: Callable[[], Any], error: Exception) -> Any:
        self.calls += 1
        self.trace.append(name)
        if self.at and (self.calls == self.at or (self.calls > self.at and not self.once)):
            self.interrupt.deliver(self.signum)
        return work()


@dataclass(slots=True)
class Stopping(Doom):
    """KeyboardInterrupt before or after the n-th call: a library's caller without handlers."""

    def call(self, name: str, work: Callable[[], Any], error: Exception) -> Any:
        self.calls += 1
        self.trace.append(name)
        if self.calls != self.at:
            return work()
        if self.fate is Fate.FAIL_AFTER:
            work()
        raise KeyboardInterrupt


@pytest.mark.parametrize("once", [True, False], ids=["once", "again-and-again"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_before_some_effects(
    kind: str, once: bool, place: Path, crash_points: CrashPoints
) -> None:
    _signal_at(kind, place, crash_points, once=once, step=9)


@pytest.mark.parametrize("once", [True, False], ids=["once", "again-and-again"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_a_signal_before_every_effect(
    kind: str, once: bool, place: Path, crash_points: CrashPoints
) -> None:
    _signal_at(kind, place, crash_points, once=once, step=1)


def _signal_at(kind: str, place: Path, crash_points: CrashPoints, *, once: bool, step: int) -> None:
    scenario = make_scenario(kind, place)
    total = _calls(scenario)
    seen = dict.fromkeys(Outcome, 0)
    points = sorted({*range(1, total + 1, step), *range(max(1, total - 12), total + 1)})
    for at in points:
        scenario.fresh()
        signum = SIGNALS[at % len(SIGNALS)]
        doom = Signalling(at=at, signum=signum, once=once)
        with pytest.raises(Interrupted) as caught:
            with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
                scenario.take(replace(world, interrupt=doom.interrupt))
        about = f"{signum.name} at call {at}: {doom.trace[at - 1]}; {caught.value}"
        outcome = scenario.outcome()  # without recovery
        assert caught.value.exit_code == 128 + signum, about
        assert ("came too late" in caught.value.message) is (outcome is Outcome.NEW), about
        seen[outcome] += 1
    assert all(seen.values()), seen
    crash_points(f"signals, {kind}, {'once' if once else 'again and again'}", len(points))


def _calls(scenario: Scenario) -> int:
    doom = Doom()
    with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
        scenario.take(world)
    return doom.calls


@pytest.mark.parametrize("fate", [Fate.FAIL_BEFORE, Fate.FAIL_AFTER], ids=["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
def test_ctrl_c_in_somebody_elses_program(
    kind: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    _stop_at(kind, fate, place, crash_points, step=11)


@pytest.mark.parametrize("fate", [Fate.FAIL_BEFORE, Fate.FAIL_AFTER], ids=["before", "after"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_ctrl_c_at_every_effect_in_somebody_elses_program(
    kind: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    _stop_at(kind, fate, place, crash_points, step=1)


def _stop_at(kind: str, fate: Fate, place: Path, crash_points: CrashPoints, *, step: int) -> None:
    scenario = make_scenario(kind, place)
    total = _calls(scenario)
    points = range(1, total + 1, step)
    for at in points:
        scenario.fresh()
        doom = Stopping(at=at, fate=fate)
        opened = _descriptors()
        with pytest.raises(KeyboardInterrupt):
            with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
                scenario.take(world)
        for left in _descriptors() - opened:  # of calls whose result never arrived
            os.close(left)
        call = doom.trace[at - 1]
        if call.startswith(("lock(", "unlock(", "remove_empty(")):
            scenario.recover()  # what means nothing is left for the next one to tidy up
        try:
            scenario.outcome()
        except AssertionError as error:
            raise AssertionError(f"Ctrl-C at call {at}: {call}") from error
        assert not children_of(scenario.folder)
    crash_points(f"KeyboardInterrupt, {kind}, {fate.name.lower()}", len(points))


def test_ctrl_c_while_qemu_img_runs(place: Path) -> None:
    """The child is not left to go on writing, and to hold the lock."""
    scenario = make_scenario("external", place)
    doom = Doom()
    before = signal.signal(signal.SIGALRM, _interrupt)
    try:
        for delay in (0.02, 0.05, 0.1, 0.2):
            scenario.fresh()
            signal.setitimer(signal.ITIMER_REAL, delay)
            try:
                with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
                    scenario.take(world)
                    time.sleep(delay)
            except KeyboardInterrupt:
                pass
            assert not children_of(scenario.folder)
            scenario.recover()
            scenario.outcome()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _interrupt(_signum: int, _frame: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_real_signals(kind: str, place: Path, crash_points: CrashPoints) -> None:
    _signal_the_command(kind, place, crash_points, times=8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_real_signals(kind: str, place: Path, crash_points: CrashPoints) -> None:
    _signal_the_command(kind, place, crash_points, times=100)


def _signal_the_command(kind: str, place: Path, crash_points: CrashPoints, *, times: int) -> None:
    scenario = make_scenario(kind, place)
    span = _span(scenario)
    chance = random.Random(f"{kind} {times}")
    for number in range(times):
        scenario.fresh()
        signum = SIGNALS[number % len(SIGNALS)]
        process = start(*_arguments(scenario))
        time.sleep(span * (number + chance.random()) / times)
        process.send_signal(signum)
        if number % 2:
            time.sleep(chance.random() * 0.02)
            process.send_signal(signum)  # it may have gone by now: then nothing happens
        _output, stderr = process.communicate(timeout=60)
        outcome = scenario.outcome()
        about = f"{signum.name}, run {number}: exit {process.returncode}: {stderr}"
        if any(word in stderr for word in OF_PYTHON):
            assert "/imgtool/" not in stderr, about
            assert outcome is Outcome.OLD, about
            continue
        # -signum: before Python runs our handler, or after it has put the old one back
        assert process.returncode in (0, 128 + signum, -signum), about
        if process.returncode == 0 or "came too late" in stderr:
            assert outcome is Outcome.NEW, about
        if "nothing" in stderr:
            assert outcome is Outcome.OLD, about
        assert not children_of(scenario.folder), about
    crash_points(f"real signals, {kind}", times)


@pytest.mark.parametrize("kind", KINDS)
def test_sigkill_and_the_next_command(kind: str, place: Path, crash_points: CrashPoints) -> None:
    _kill_the_command(kind, place, crash_points, times=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_sigkills(kind: str, place: Path, crash_points: CrashPoints) -> None:
    _kill_the_command(kind, place, crash_points, times=100)


def _kill_the_command(kind: str, place: Path, crash_points: CrashPoints, *, times: int) -> None:
    """The next command is the same one again: it ends what was left, then does its own work."""
    scenario = make_scenario(kind, place)
    span = _span(scenario)
    chance = random.Random(f"kill {kind} {times}")
    for number in range(times):
        scenario.fresh()
        process = start(*_arguments(scenario))
        time.sleep(span * (number + chance.random()) / times)
        process.kill()
        process.communicate(timeout=60)
        pending = any(path.stat().st_size for path in scenario.folder.glob(".imgtool/*/journal"))
        done = _again_until_free(scenario)
        about = f"run {number}, pending: {pending}: exit {done.returncode}: {done.stderr}"
        assert done.returncode in (0, 2), about
        assert (done.returncode == 2) is ("already exists" in done.stderr), about
        assert pending is ("was interrupted; it is" in done.stderr), about
        assert scenario.outcome() is Outcome.NEW, about
    crash_points(f"SIGKILL, {kind}", times)


def _again_until_free(scenario: Scenario) -> subprocess.CompletedProcess[str]:
    """Exit 3 while a child of the killed one holds the lock: it has not ended yet.

    Nobody can be asked who that is: a process that ends loses its command line before its files.
    """
    until = time.monotonic() + PATIENCE
    while True:
        done = imgtool(*_arguments(scenario))
        if done.returncode != 3 or time.monotonic() > until:
            return done


def _arguments(scenario: Scenario) -> list[str]:
    """With as many disks at once as usual."""
    words = scenario.arguments
    at = words.index("--jobs")
    return [*words[:at], *words[at + 2 :]]


def _span(scenario: Scenario) -> float:
    """Seconds that an undisturbed run takes."""
    began = time.monotonic()
    done = imgtool(*_arguments(scenario))
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


def _descriptors() -> set[int]:
    with os.scandir("/proc/self/fd") as entries:
        found = {int(entry.name) for entry in entries}
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}
