"""Signals that must not tear a transaction apart: noted when they come, honoured between steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from imgtool.model.errors import Interrupted


class Interrupt:
    """Whether somebody asked to stop. One object is shared by the command line and the engine."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._deferred: list[Callable[[], None]] = []

    def deliver(self, signum: int) -> None:
        """For a signal handler: raise Interrupted now, or let the open transaction find out."""
        if not self._deferred:
            raise Interrupted(signum, "stopped, nothing was begun")
        self.signum = signum
        for cancel in self._deferred:
            cancel()

    @contextmanager
    def deferred(self, cancel: Callable[[], None]) -> Iterator[None]:
        """While inside, signals are only noted, and `cancel` ends what is waited for."""
        self._deferred.append(cancel)
        try:
            yield
        finally:
            self._deferred.remove(cancel)

    def check(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum, "rolled back, nothing has changed")
