"""Every effect of what is done with mirrors fails or is the last one; again completes it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imgtool.model.errors import ImgtoolError, PendingError
from imgtool.testing import Outcome

from .conftest import CrashPoints
from .dying import DeadError, Doom, DyingFiles, DyingQemu, Fate
from .matrix import calls, end_in, run_into, some_points
from .mirrors import MIRRORINGS, Mirroring, make_mirroring

SOME = 3  # effects of each and fate in a quick run
AGAIN = 3  # one of so many that were undone is done again


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("name", MIRRORINGS)
def test_some_effects(name: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    made = make_mirroring(name, place)
    total = calls(made)
    points = some_points(total, SOME, len(name) + len(fate.name))
    _strike(made, fate, points)
    crash_points(f"{name}, {fate.name.lower()}", len(points))


@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
@pytest.mark.parametrize("name", MIRRORINGS)
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_every_effect(name: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    made = make_mirroring(name, place)
    total = calls(made)
    seen = _strike(made, fate, range(1, total + 1))
    assert all(seen.values()), "a matrix that never gets to both sides proves nothing"
    crash_points(f"every step, {name}, {fate.name.lower()}", total)


def test_a_file_that_the_domain_was_given_meanwhile_stays(place: Path) -> None:
    """The process died before its commit; nobody ran recovery before using what it left."""
    made = make_mirroring("files", place)
    doom = Doom()
    with made.world(DyingFiles(doom), DyingQemu(doom)) as world:
        made.take(world)
    commit = next(at for at, call in reversed([*enumerate(doom.trace, 1)]) if "append" in call)
    made.fresh()
    assert isinstance(run_into(made, Doom(fate=Fate.DIE, at=commit)), DeadError)
    xml = made.folder / "vm.xml"
    used = made.folder / "old/vda.migrate"
    was = str(used.with_name("vda"))
    text = re.sub(f"(['\"]){re.escape(was)}\\1", rf"\g<1>{used}\g<1>", xml.read_text())
    xml.write_text(text)
    assert str(used) in text
    made.recover()
    assert used.exists()
    assert not (made.folder / "new/vda.new").exists()
    assert xml.read_text() == text


def _strike(made: Mirroring, fate: Fate, points: range) -> dict[Outcome, int]:
    seen: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    for at in points:
        made.fresh()
        doom = Doom(fate=fate, at=at)
        ended = end_in(made, doom)
        if ended is None:
            made.recover()  # what failed was tidying up, which is left to whoever comes next
        struck = f"call {at}: {doom.trace[at - 1]}; {ended!r}"
        try:
            outcome = made.outcome()
        except AssertionError as error:
            raise AssertionError(struck) from error
        if ended is None:
            assert outcome is Outcome.NEW, struck
        elif isinstance(ended, ImgtoolError) and not isinstance(ended, PendingError):
            assert outcome is Outcome.OLD, struck
        seen[outcome] += 1
        if outcome is Outcome.OLD and fate is Fate.DIE and at % AGAIN == 0:
            with made.world() as world:
                made.take(world)
            assert made.outcome() is Outcome.NEW, f"again after {struck}"
    return seen
