"""Every effect of a revert or a deletion fails or is the last one: old or new afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool import api
from imgtool.testing import KIB, read_pattern

from .branches import JOBS, make_branching, write
from .conftest import CrashPoints
from .dying import DeadError, Doom, DyingFiles, DyingQemu, Fate
from .matrix import calls, run_into, some_points, strike

SOME = 8  # effects of each job and fate in a quick run


@pytest.mark.parametrize("fate", [Fate.DIE, Fate.FAIL_BEFORE], ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("job", JOBS)
def test_old_or_new_after_some_effects(
    job: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_branching(job, place)
    total = calls(scenario)
    points = some_points(total, SOME, len(job))
    strike(scenario, fate, points)
    crash_points(f"{job}, {fate.name.lower()}", len(points))


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("job", JOBS)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_old_or_new_after_every_effect(
    job: str, fate: Fate, place: Path, crash_points: CrashPoints
) -> None:
    scenario = make_branching(job, place)
    total = calls(scenario)
    seen = strike(scenario, fate, range(1, total + 1))
    assert all(seen.values()), "a matrix that never gets to both sides proves nothing"
    crash_points(f"every step, {job}, {fate.name.lower()}", total)


def test_what_a_guest_writes_before_recovery_stays(place: Path) -> None:
    """Killed with the domain on the merged base already: merging again would lose its writes."""
    scenario = make_branching("delete-last", place)
    doom = Doom()
    with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
        scenario.take(world)
    dropped = [at for at, call in enumerate(doom.trace, 1) if call.startswith("unlink(")]
    at = next(at for at in dropped if "vm-vda.last" in doom.trace[at - 1])
    scenario.fresh()
    assert isinstance(run_into(scenario, Doom(fate=Fate.DIE, at=at)), DeadError)
    with scenario.world() as world:
        write(world, 0x77)
        assert not api.recover(world).problems
        for chain in api.chains(world, "vm").values():
            active = chain.active
            assert set(read_pattern(active.path, active.format, 64 * KIB, 4 * KIB)) == {0x77}
