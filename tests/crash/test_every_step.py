"""Every effect fails or is the last one of the process; the machine is old or new afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import CrashPoints
from .dying import Fate
from .matrix import calls, some_points, strike
from .scenario import KINDS, make_scenario

SOME = 12  # effects of each kind and fate in a quick run


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("kind", KINDS)
def test_old_or_new_after_some_effects(
    kind: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_scenario(kind, place)
    total = calls(scenario)
    points = some_points(total, SOME, len(kind) + len(fate.name))
    strike(scenario, fate, points)
    crash_points(f"some steps, {kind}, {fate.name.lower()}", len(points))


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_old_or_new_after_every_effect(
    kind: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_scenario(kind, place)
    total = calls(scenario)
    assert total > 30
    seen = strike(scenario, fate, range(1, total + 1))
    assert all(seen.values()), "a matrix that never gets to both sides proves nothing"
    crash_points(f"every step, {kind}, {fate.name.lower()}", total)
