"""How far long work is: one line on a terminal, with percent, bytes and time left; else a log."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from imgtool.cli.chains import size
from imgtool.cli.visible import visible_line, width

PATIENCE = 1.0  # seconds; shorter work is not worth a line
PACE = 0.2  # seconds from one line to the next
_ERASE = "\r\x1b[K"


@dataclass(slots=True)
class _Job:
    """What is done to one disk."""

    what: str
    size: int  # bytes; 0: not known
    began: float
    share: float = 0.0


class Progress:
    """Told by several threads; draws on the line of `stream` where the cursor is.

    vda: merging into base.qcow2, 42 % of 1.2 GiB, 0:12 left | vdb: ...
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.RLock()  # a signal may come while it draws
        self._jobs: dict[str, _Job] = {}
        self._drawn = 0.0
        self._visible = False

    def __call__(self, target: str, what: str, share: float, size: int) -> None:
        """The share of a job on a disk that is done, 0.0 to 1.0; `size`: all of it in bytes."""
        with self._lock:
            now = self._clock()
            job = self._jobs.get(target)
            if job is None or job.what != what:
                job = self._jobs[target] = _Job(what, size, now)
            job.share = share
            began = min(each.began for each in self._jobs.values())
            if now - began >= PATIENCE and now - self._drawn >= PACE:
                self._drawn = now
                self._write(_ERASE + self._line(now))
                self._visible = True

    def clear(self) -> None:
        """Leave an empty line to whoever writes next."""
        with self._lock:
            if self._visible:
                self._write(_ERASE)
            self._visible = False

    def _line(self, now: float) -> str:
        running = {target: job for target, job in self._jobs.items() if job.share < 1.0}
        told = [_told(target, job, now) for target, job in (running or self._jobs).items()]
        return _cut(" | ".join(told), _columns(self._stream) - 1)

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody looks any more
            self._stream.write(text)
            self._stream.flush()


class ProgressLog:
    """The same where nobody draws, for --verbose: a line for every tenth that is done.

    vda: copying to new.qcow2, 40 %
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._told: dict[tuple[str, str], int] = {}

    def __call__(self, target: str, what: str, share: float, size: int) -> None:
        """As of `Progress`."""
        with self._lock:
            tenth = int(share * 10)
            if tenth > self._told.get((target, what), 0):
                self._told[target, what] = tenth
                with suppress(OSError, ValueError):
                    print(visible_line(f"{target}: {what}, {tenth}0 %"), file=self._stream)

    def clear(self) -> None:
        """Nothing is drawn."""


def _told(target: str, job: _Job, now: float) -> str:
    words = f"{job.share:.0%}".replace("%", " %")
    if job.size:
        words += f" of {size(job.size)}"
    spent = now - job.began
    if 0.01 <= job.share < 1.0 and spent >= PATIENCE:
        words += f", {_time(spent / job.share - spent)} left"
    return visible_line(f"{target}: {job.what}, {words}")


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _cut(text: str, columns: int) -> str:
    while text and width(text) > columns:
        text = text[:-1]
    return text


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
