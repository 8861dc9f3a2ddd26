"""How many crash points the tests have tried, printed at the end; and a place to try them in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOM = 1 << 30  # bytes that must be free in memory
CrashPoints = Callable[[str, int], None]


@pytest.fixture
def place() -> Iterator[Path]:
    """An empty folder, in memory if it can be: a domain is restored there a thousand times.

    What a power cut keeps is not looked at.
    """
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with tempfile.TemporaryDirectory(dir=memory if roomy else None, prefix="crash-") as folder:
        yield Path(folder)


@pytest.fixture
def crash_points(record_property: Callable[[str, object], None]) -> CrashPoints:
    """Say how many crash points a test has tried; the sums are printed at the end."""
    return lambda what, count: record_property("crash points", f"{what}: {count}")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = [
        str(value)
        for report in terminalreporter.getreports("passed")
        for name, value in report.user_properties
        if name == "crash points"
    ]
    if lines:
        terminalreporter.section("crash points tried")
        terminalreporter.write_line("\n".join(sorted(lines)))
        total = sum(int(line.rpartition(": ")[2]) for line in lines)
        terminalreporter.write_line(f"{total} in all")
