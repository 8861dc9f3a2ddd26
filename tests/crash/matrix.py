"""A matrix: the same operation again and again, each time with trouble at another effect."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
from imgtool.model.errors import ImgtoolError, PendingError
from imgtool.testing import Outcome

from .dying import DeadError, Doom, DyingFiles, DyingQemu, Fate
from .scenario import Scenario


def strike(scenario: Scenario, fate: Fate, points: range) -> dict[Outcome, int]:
    """Run into each of these points; afterwards it is old or new, as its end has said.

    Returns how often it was the one and the other.
    """
    seen: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
    for at in points:
        scenario.fresh()
        doom = Doom(fate=fate, at=at)
        ended = end_in(scenario, doom)
        struck = f"call {at}: {doom.trace[at - 1]}; {ended!r}"
        try:
            outcome = scenario.outcome()
        except AssertionError as error:
            raise AssertionError(struck) from error
        if ended is None:
            assert outcome is Outcome.NEW, struck
        elif not isinstance(ended, PendingError | DeadError):
            assert outcome is Outcome.OLD, struck
        seen[outcome] += 1
    return seen


def some_points(total: int, count: int, offset: int) -> range:
    """About `count` of the effects 1 to `total`, evenly; `offset` decides where they begin."""
    step = max(1, total // count)
    return range(1 + offset % step, total + 1, step)


def calls(scenario: Scenario) -> int:
    """How many effects an undisturbed run has."""
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


class Taking(Protocol):
    """An operation that can be begun in a world of its own."""

    def world(
        self, files: Files | None = None, qemu: QemuImg | None = None
    ) -> AbstractContextManager[World]: ...

    def take(self, world: World) -> None: ...


def run_into(scenario: Taking, doom: Doom) -> BaseException | None:
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
