"""Every effect of a block job fails or is the last one; running it again completes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.model.errors import ImgtoolError, PendingError
from imgtool.testing import Outcome

from .conftest import CrashPoints
from .dying import Doom, DyingFiles, DyingQemu, Fate
from .jobs import JOBS, Job, make_job
from .matrix import end_in, some_points

SOME = 5  # effects of each job and fate in a quick run


@pytest.mark.parametrize("fate", [Fate.DIE, Fate.FAIL_BEFORE], ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("name", JOBS)
def test_some_effects(name: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    job = make_job(name, place)
    total = _calls(job)
    points = some_points(total, SOME, len(name))
    _strike(job, fate, points)
    crash_points(f"{name}, {fate.name.lower()}", len(points))


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("name", JOBS)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_effect(name: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    job = make_job(name, place)
    total = _calls(job)
    seen = _strike(job, fate, range(1, total + 1))
    # Whoever stays on the overlay sees no difference: there, old and new are one.
    assert seen[Outcome.OLD]
    assert seen[Outcome.NEW] or name == "commit-keep-overlay"
    crash_points(f"every step, {name}, {fate.name.lower()}", total)


def _calls(job: Job) -> int:
    doom = Doom()
    with job.world(DyingFiles(doom), DyingQemu(doom)) as world:
        job.take(world)
    return doom.calls


def _strike(job: Job, fate: Fate, points: range) -> dict[Outcome, int]:
    seen: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    for at in points:
        job.fresh()
        doom = Doom(fate=fate, at=at)
        ended = end_in(job, doom)
        if ended is None:
            job.recover()  # what failed was tidying up, which is left to whoever comes next
        struck = f"call {at}: {doom.trace[at - 1]}; {ended!r}"
        try:
            outcome = job.outcome()
        except AssertionError as error:
            raise AssertionError(struck) from error
        one = job.kind == "commit-keep-overlay"
        if ended is None:
            assert outcome is Outcome.NEW or one, struck
        elif isinstance(ended, ImgtoolError) and not isinstance(ended, PendingError):
            assert outcome is Outcome.OLD, struck
        seen[outcome] += 1
        if outcome is Outcome.OLD:
            _again(job, struck)
    return seen


def _again(job: Job, struck: str) -> None:
    with job.world() as world:
        job.take(world)
    try:
        outcome = job.outcome()
    except AssertionError as error:
        raise AssertionError(f"again after {struck}") from error
    assert outcome is Outcome.NEW or job.kind == "commit-keep-overlay", struck
