"""Every effect of a move fails or is the last one: the old place or the new one, complete."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import CrashPoints
from .dying import Fate
from .matrix import calls, strike
from .moves import make_moving

SOME = 6  # effects of each way and fate in a quick run


@pytest.mark.parametrize(
    ("how", "fate"),
    [
        ("keep-source", Fate.DIE),
        ("flatten", Fate.FAIL_BEFORE),
        ("delete-source", Fate.DIE),
        ("delete-source", Fate.FAIL_BEFORE),
    ],
    ids=str,
)
def test_old_or_new_after_some_effects(
    how: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_moving(how, place)
    total = calls(scenario)
    step = max(1, total // SOME)
    points = range(1 + len(how) % step, total + 1, step)
    strike(scenario, fate, points)
    crash_points(f"move, {how}, {fate.name.lower()}", len(points))


@pytest.mark.parametrize(
    ("how", "fate"),
    [
        ("keep-source", Fate.FAIL_AFTER),
        ("flatten", Fate.DIE),
        ("delete-source", Fate.DIE),
        ("delete-source", Fate.FAIL_BEFORE),
    ],
    ids=str,
)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_old_or_new_after_every_effect(
    how: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_moving(how, place)
    total = calls(scenario)
    seen = strike(scenario, fate, range(1, total + 1))
    assert all(seen.values()), "a matrix that never gets to both sides proves nothing"
    crash_points(f"every step, move, {how}, {fate.name.lower()}", total)
