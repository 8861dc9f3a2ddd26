"""Signals that must not tear a transaction apart: noted when they come, honoured between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imgtool.model.errors import Interrupted


class Interrupt:
    """Whether somebody asked to stop. One object is shared by the command line and the engine."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self.outcome = ""
        """What is true once something has been done: a later signal must not deny it."""
        self._shielded = 0
        self._deferred: list[Callable[[], None]] = []

    def deliver(self, signum: int) -> None:
        """For a signal handler: raise Interrupted now, or let the open transaction find out."""
        if not self._deferred:
            raise Interrupted(signum, self.outcome or "stopped, nothing was begun")
        self.signum = signum
        for cancel in () if self._shielded else tuple(self._deferred):
            cancel()

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """While inside, which is within `deferred`, nothing is cancelled: it must be ended."""
        self._shielded += 1
        try:
            yield
        finally:
            self._shielded -= 1

    @contextmanager
    def exposed(self) -> Iterator[None]:
        """Inside `shielded`, for long work that can be taken up again: cancelled after all."""
        shielded, self._shielded = self._shielded, 0
        try:
            yield
        finally:
            self._shielded = shielded

    @contextmanager
    def deferred(self, cancel: Callable[[], None]) -> Iterator[None]:
        """While inside, signals are only noted, and `cancel` ends what is waited for.

        Raises Interrupted at the end of the outermost one if something was done in spite of a
        signal; errors take precedence, but not those that `cancel` has caused.
        """
        self._deferred.append(cancel)
        try:
            yield
        finally:
            self._deferred.remove(cancel)
        if not self._deferred:
            self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum, self.outcome or "rolled back, nothing has changed")
