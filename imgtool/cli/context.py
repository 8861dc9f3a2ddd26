"""What every command is handed: global options, where to connect, how to answer."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgtool.cli import output
from imgtool.cli.visible import visible
from imgtool.engine.interrupt import Interrupt

if TYPE_CHECKING:
    from imgtool.cli.progress import Progress, ProgressLog
    from imgtool.engine.world import World


@dataclass(slots=True, kw_only=True)
class Context:
    """The global options of one run of the command."""

    connect: str = ""
    json: bool = False
    dry_run: bool = False
    state_dir: Path | None = None
    jobs: int = 0
    verbosity: int = 0  # -1: quiet
    interrupt: Interrupt
    _progress: Progress | ProgressLog | None = None

    @contextmanager
    def world(self, domain: str | None = None) -> Iterator[tuple[World, str]]:
        """The store that a DOMAIN argument means, and the domain's name in it."""
        from imgtool import api

        uri, name = api.locate(domain, self.connect) if domain else (self.connect, "")
        if (self.verbosity >= 0 and sys.stderr.isatty()) or self.verbosity > 0:
            from imgtool.cli.progress import Progress, ProgressLog

            self._progress = (Progress if sys.stderr.isatty() else ProgressLog)(sys.stderr)
        try:
            with api.open_world(
                uri,
                state_dir=self.state_dir,
                jobs=self.jobs,
                interrupt=self.interrupt,
                say=self.note,
                progress=self._progress,
            ) as world:
                yield world, name
        finally:
            self._end_progress()

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.clear()

    def note(self, line: str) -> None:
        """Something a person should know, on stderr."""
        self._end_progress()
        if self.verbosity >= 0:
            output.complain(f"imgtool: {line}")

    def answer(
        self,
        facts: dict[str, Any],
        text: Callable[[], str],
        *,
        data: bool = False,
        listing: bool = False,
    ) -> int:
        """Print the result: one JSON object, or text for a person. Returns exit code 0.

        `data`: the text is what was asked for, and --quiet shows it, too. `listing`: it is, and
        without --quiet a blank line follows, as in virsh, whose users' scripts cut it off.
        """
        if self.json:
            output.write(json.dumps(facts, default=_plain) + "\n")
            return 0
        shown = visible(text())
        lines = f"{shown}\n" if shown else ""
        if self.verbosity >= 0:
            output.write(f"{lines}\n" if listing else lines)
        elif data or listing:
            output.write(lines)
        return 0


def _plain(value: object) -> object:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} has no JSON form")
