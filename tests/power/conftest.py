"""The `power` fixture, and the counts of cuts at the end of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pytest

from .disk import FileSystem, scratch_folder
from .record import Work
from .replay import Check, CutReport, run_with_cuts

PROPERTY = "power cuts"


class PowerCuts(Protocol):
    """run_with_cuts in a folder of its own; the report is printed at the end of the run."""

    def __call__(
        self,
        fs: FileSystem,
        *,
        prepare: Work,
        act: Work,
        check: Check,
        subsets: int,
        seed: int,
        check_done: Check | None = None,
        neighbour: float | None = None,
    ) -> CutReport: ...


@pytest.fixture
def power(record_property: Callable[[str, object], None]) -> PowerCuts:
    """Run some work with power cuts."""

    def run(
        fs: FileSystem,
        *,
        prepare: Work,
        act: Work,
        check: Check,
        subsets: int,
        seed: int,
        check_done: Check | None = None,
        neighbour: float | None = None,
    ) -> CutReport:
        with scratch_folder() as folder:
            report = run_with_cuts(
                fs, folder, prepare, act, check, subsets, seed, check_done, neighbour
            )
        record_property(PROPERTY, str(report))
        return report

    return run


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each report: which test, and how many cuts it tried."""
    lines = [
        f"{report.nodeid.rpartition('::')[2]}: {value}"
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in report.user_properties
        if name == PROPERTY
    ]
    if lines:
        terminalreporter.section(PROPERTY)
        for line in lines:
            terminalreporter.write_line(line)
