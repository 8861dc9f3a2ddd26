"""Run commands side by side, and say how long each took and how much memory it had."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOPWATCH = Path(__file__).with_name("stopwatch.py")


class CommandError(Exception):
    """A command that was to be measured failed, so that its time means nothing."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a command, from fork to its end."""

    seconds: float
    cpu: float  # seconds; what a daemon did for it is not in here
    peak: int  # bytes; the largest resident set of the command or of one of its children


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A command to be measured, and what puts everything back before each run of it."""

    name: str
    argv: Sequence[str | Path]
    reset: Callable[[], None] = lambda: None
    runs: int | None = None  # at most so many; None: as many as the others


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All runs of one contender."""

    name: str
    samples: tuple[Sample, ...]

    @property
    def seconds(self) -> float:
        """The median: what others do on the machine disturbs some runs, not this."""
        return statistics.median(sample.seconds for sample in self.samples)

    @property
    def cpu(self) -> float:
        """The median, in seconds."""
        return statistics.median(sample.cpu for sample in self.samples)

    @property
    def peak(self) -> int:
        """Bytes; the most that any run had."""
        return max(sample.peak for sample in self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """Contenders that do the same thing."""

    name: str  # as for --only: 'external-16'
    rows: tuple[Row, ...]

    def seconds(self, name: str) -> float | None:
        """The median of the contender called that; None if it did not take part."""
        return next((row.seconds for row in self.rows if row.name == name), None)

    def ratio(self, name: str, to: str) -> float | None:
        """How many times as long as `to` it took."""
        one, other = self.seconds(name), self.seconds(to)
        return None if one is None or other is None else one / other


class Stopwatch:
    """The small process that starts the commands, see stopwatch.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, argv: Sequence[str | Path]) -> Sample:
        """Raises CommandError if the command does not exit with 0."""
        words = [os.fspath(word) for word in argv]
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ValueError("a stopwatch has pipes")
        stdin.write(json.dumps(words) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        if answer["code"] != 0:
            raise CommandError(f"{' '.join(words)}: exit {answer['code']}: {answer['said']}")
        return Sample(answer["seconds"], answer["cpu"], answer["peak"])


@contextmanager
def stopwatch(folder: Path) -> Iterator[Stopwatch]:
    """One for the whole run of the benchmark.

    Python keeps what it has compiled in `folder`: an installed imgtool is compiled, too.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env["PYTHONPYCACHEPREFIX"] = str(folder / "pycache")
    command = [sys.executable, "-S", os.fspath(STOPWATCH)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        yield Stopwatch(process)


def contest(
    name: str, contenders: Sequence[Contender], watch: Stopwatch, *, runs: int, folder: Path
) -> Contest:
    """Run each contender `runs` times, in turns, so that what disturbs one disturbs all.

    `folder` is on the file system that is written to: it is synced before each run, or the first
    fsync of one would pay for what was left unwritten by another. Raises CommandError.
    """
    samples: dict[str, list[Sample]] = {each.name: [] for each in contenders}
    for turn in range(-1, runs):  # the first does not count: caches are cold
        for each in contenders:
            if turn >= (runs if each.runs is None else each.runs):
                continue
            each.reset()
            subprocess.run(["sync", "-f", folder], check=True)
            sample = watch.run(each.argv)
            if turn >= 0:
                samples[each.name].append(sample)
    rows = [Row(name=each.name, samples=tuple(samples[each.name])) for each in contenders]
    return Contest(name=name, rows=tuple(rows))
