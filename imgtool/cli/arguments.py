"""virsh's way with arguments: every option may also be a positional, filled in their order."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from imgtool.model.errors import BadRequestError


class Parser(argparse.ArgumentParser):
    """A parser of one command that raises BadRequestError instead of exiting."""

    def __init__(self, name: str, summary: str) -> None:
        super().__init__(
            prog=f"imgtool {name}", description=summary, allow_abbrev=False, add_help=True
        )
        self.summary = summary
        self._data: list[tuple[str, bool]] = []  # positionals in order: name, required
        self._rest = ""  # the one that takes all further positionals

    def error(self, message: str) -> NoReturn:
        raise BadRequestError(f"{self.prog}: {message}", remedy=f"{self.prog} --help")

    def flag(self, name: str, help: str) -> None:
        """`--name`, false unless given."""
        self.add_argument(f"--{name}", action="store_true", help=help)

    def data(self, name: str, help: str, *, required: bool = False) -> None:
        """`--name VALUE`, or the next positional."""
        self._data.append((name, required))
        self.add_argument(f"--{name}", metavar=name.upper(), help=help)

    def rest(self, name: str, help: str) -> None:
        """`--name VALUE`, repeatable, or all positionals that are left."""
        self._rest = name
        self.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=help)

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """Parse the words after the command's name. Raises BadRequestError."""
        # In one line: virsh's commands have too many options to spell them out.
        self.usage = f"{self.prog} {self._words()} [OPTION]..."
        self.add_argument("positionals", nargs="*", help=argparse.SUPPRESS)
        namespace = self.parse_intermixed_args(list(argv))
        words_left = list(namespace.positionals)
        for name, required in self._data:
            key = name.replace("-", "_")
            if getattr(namespace, key) is None and words_left:
                setattr(namespace, key, words_left.pop(0))
            if required and getattr(namespace, key) is None:
                self.error(f"--{name} is missing")
        if self._rest:
            getattr(namespace, self._rest.replace("-", "_")).extend(words_left)
        elif words_left:
            self.error(f"unexpected argument {words_left[0]!r}")
        return namespace

    def _words(self) -> str:
        words = [name.upper() if required else f"[{name.upper()}]" for name, required in self._data]
        return " ".join([*words, *([f"[{self._rest.upper()}]..."] if self._rest else [])])


def exclusive(namespace: argparse.Namespace, *names: str) -> None:
    """Raises BadRequestError, in virsh's words, if two of these options are given."""
    values = {name: getattr(namespace, name.replace("-", "_")) for name in names}
    given = [name for name, value in values.items() if value not in (None, False)]
    if len(given) > 1:
        raise BadRequestError(
            f"Options --{given[0]} and --{given[1]} are mutually exclusive",
            remedy="leave one of them out",
        )
