"""Recovery that cannot know which way to go waits: it touches nothing until it can."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool import api
from imgtool.model.errors import PendingError, StoreError
from imgtool.testing import Outcome
from tests.power.workload import process

from .dying import DeadError, Doom, DyingFiles, Fate
from .scenario import Scenario, digest, make_scenario


def cut_short(xml: Path) -> None:
    xml.write_bytes(xml.read_bytes()[:200])


def replace_by_link(xml: Path) -> None:
    xml.rename(xml.parent / "real")
    xml.symlink_to("real")


def rename_inside(xml: Path) -> None:
    xml.write_bytes(xml.read_bytes().replace(b"<name>vm<", b"<name>other<"))


@pytest.mark.parametrize("spoil", [cut_short, replace_by_link, rename_inside])
def test_a_domain_that_cannot_be_read_is_no_reason_to_go_back(
    spoil: Callable[[Path], None], place: Path
) -> None:
    """The process died right after the pivot: the XML, whatever has happened to it, says new."""
    scenario = make_scenario("mixed", place)
    die_after_the_pivot(scenario)
    xml = scenario.folder / "vm.xml"
    good = xml.read_bytes()
    spoil(xml)
    left = digest(scenario.folder)

    with scenario.world() as world:
        recovery = api.recover(world)
    assert not recovery.ended
    (problem,) = recovery.problems
    assert isinstance(problem, StoreError)
    assert str(xml) in problem.message
    assert digest(scenario.folder) == left

    xml.unlink()
    (scenario.folder / "real").unlink(missing_ok=True)
    xml.write_bytes(good)
    xml.chmod(0o644)
    scenario.recover()
    assert scenario.outcome() is Outcome.NEW


def test_a_journal_that_cannot_be_read_is_reported(place: Path) -> None:
    scenario = make_scenario("mixed", place)
    die_after_the_pivot(scenario)
    (journal,) = scenario.folder.glob(".imgtool/*/journal")
    content = journal.read_bytes()
    journal.unlink()
    os.mkfifo(journal)

    with scenario.world() as world:
        recovery = api.recover(world)
    (problem,) = recovery.problems
    assert isinstance(problem, PendingError)
    assert str(journal) in problem.message

    journal.unlink()
    journal.write_bytes(content)
    scenario.recover()
    assert scenario.outcome() is Outcome.NEW


def die_after_the_pivot(scenario: Scenario) -> None:
    counting = Doom()
    with scenario.world(DyingFiles(counting)) as world:
        scenario.take(world)
    scenario.fresh()
    pivot = next(
        number
        for number, call in enumerate(counting.trace, 1)
        if call.startswith("write_atomically") and "/vm.xml" in call
    )
    # write_atomically itself, its three syncs, and then no more
    doom = Doom(fate=Fate.DIE, at=pivot + 4)
    with process(), pytest.raises(DeadError):
        with scenario.world(DyingFiles(doom)) as world:
            scenario.take(world)
