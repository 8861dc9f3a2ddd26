"""Every effect of chain-copy fails or is the last one; the same call completes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgtool import api
from imgtool.model.errors import ImgtoolError

from .chaincopy import ChainCopy, make_chain_copy
from .conftest import CrashPoints
from .disks import small_disk
from .dying import Doom, DyingFiles, DyingQemu, Fate
from .matrix import run_into
from .scenario import digest

SOME = 8  # effects of each fate in a quick run


@contextmanager
def copying_on(kind: str, place: Path) -> Iterator[ChainCopy]:
    """Within a file system without reflinks, or on xfs, which has them."""
    if kind == "xfs":
        with small_disk("xfs", place) as folder:
            yield make_chain_copy(folder)
    else:
        yield make_chain_copy(place)


FATES = [Fate.DIE, Fate.FAIL_BEFORE, Fate.FAIL_AFTER]


WHERE = pytest.mark.parametrize(
    ("kind", "fate"),
    [("folder", fate) for fate in FATES] + [("xfs", Fate.DIE)],
    ids=["die", "fail_before", "fail_after", "xfs-die"],
)


@WHERE
def test_some_effects(kind: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    with copying_on(kind, place) as copying:
        total = _calls(copying)
        points = range(1 + FATES.index(fate), total + 1, max(1, total // SOME))
        _strike(copying, fate, points)
    crash_points(f"chain-copy on {kind}, {fate.name.lower()}", len(points))


@WHERE
@pytest.mark.long
def test_every_effect(kind: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    with copying_on(kind, place) as copying:
        total = _calls(copying)
        _strike(copying, fate, range(1, total + 1))
    crash_points(f"chain-copy on {kind}, every effect, {fate.name.lower()}", total)


@pytest.mark.long
def test_dying_again_and_again(place: Path, crash_points: CrashPoints) -> None:
    """Each process gets a little further than the one before, and the last one is done."""
    copying = make_chain_copy(place)
    for at in range(4, 2 * _calls(copying)):
        if at == 4:
            copying.fresh()
        ended = run_into(copying, Doom(fate=Fate.DIE, at=at))
        copying.assert_never_half(f"process {at}")
        if ended is None:
            break
    copying.assert_complete("in the end")
    crash_points("chain-copy, again and again", at)


def test_what_a_crash_leaves_can_be_swept(place: Path, crash_points: CrashPoints) -> None:
    copying = make_chain_copy(place)
    total = _calls(copying)
    points = range(2, total + 1, max(1, total // SOME))
    for at in points:
        copying.fresh()
        doom = Doom(fate=Fate.DIE, at=at)
        run_into(copying, doom)
        with copying.world() as world:
            api.sweep(world, "vm")
        struck = f"call {at}: {doom.trace[at - 1]}"
        assert copying.names() <= {"base.raw", "mid"}, struck
        assert not (copying.store / ".imgtool").exists(), struck
        copying.assert_never_half(struck)
    crash_points("chain-copy, swept", len(points))


def _calls(copying: ChainCopy) -> int:
    doom = Doom()
    with copying.world(DyingFiles(doom), DyingQemu(doom)) as world:
        copying.take(world)
    copying.assert_complete("undisturbed")
    return doom.calls


def _strike(copying: ChainCopy, fate: Fate, points: range) -> None:
    copying.fresh()
    before = digest(copying.store)
    for at in points:
        copying.fresh()
        doom = Doom(fate=fate, at=at)
        ended = run_into(copying, doom)
        struck = f"call {at}: {doom.trace[at - 1]}; {ended!r}"
        assert not isinstance(ended, OSError), struck
        copying.assert_never_half(struck)
        if ended is None:
            # What failed was tidying up, and all is there.
            assert copying.names() == {"base.raw", "mid"}, struck
        elif isinstance(ended, ImgtoolError):
            assert ended.exit_code == 1, struck
        with copying.world() as world:
            copying.take(world)
        copying.assert_complete(struck)
        assert digest(copying.store) == before, struck
