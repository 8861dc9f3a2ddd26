"""Every effect fails or is the last one of the process; the machine is old or new afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.model.errors import ImgtoolError, PendingError
from imgtool.testing import Outcome

from .conftest import CrashPoints
from .dying import DeadError, Doom, DyingFiles, DyingQemu, Fate
from .scenario import KINDS, Scenario, make_scenario


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("kind", KINDS)
def test_old_or_new_after_every_effect(
    kind: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_scenario(kind, place)
    total = _calls(scenario)
    seen: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    for at in range(1, total + 1):
        scenario.fresh()
        doom = Doom(fate=fate, at=at)
        ended = end_in(scenario, doom)
        outcome = scenario.outcome()
        struck = f"call {at} of {total}: {doom.trace[at - 1]}; {ended!r}"
        if ended is None:
            assert outcome is Outcome.NEW, struck
        elif not isinstance(ended, PendingError | DeadError):
            assert outcome is Outcome.OLD, struck
        seen[outcome] += 1
    assert total > 30
    assert all(seen.values()), "a matrix that never gets to both sides proves nothing"
    crash_points(f"every step, {kind}, {fate.name.lower()}", total)


def _calls(scenario: Scenario) -> int:
    doom = Doom()
    with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
        scenario.take(world)
    return doom.calls


def end_in(scenario: Scenario, doom: Doom) -> BaseException | None:
    """Run into the doom, then recover; returns what the first process ended with."""
    ended = run_into(scenario, doom)
    assert not isinstance(ended, OSError), f"not a sentence: {ended!r} at {doom.trace[-1]}"
    tidying = doom.trace[doom.at - 1].startswith(("lock(", "unlock(", "remove_empty("))
    if isinstance(ended, PendingError | DeadError) or tidying:
        scenario.recover()
    return ended


def run_into(scenario: Scenario, doom: Doom) -> BaseException | None:
    """Run into the doom, as a process of its own would; returns what that ended with."""
    ended: BaseException | None = None
    opened = _descriptors()
    try:
        with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
            scenario.take(world)
    except (ImgtoolError, OSError, DeadError) as error:
        ended = error
    for left in _descriptors() - opened:  # the end of a process closes them, and drops its locks
        os.close(left)
    return ended


def _descriptors() -> set[int]:
    with os.scandir("/proc/self/fd") as entries:
        found = {int(entry.name) for entry in entries}
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}
