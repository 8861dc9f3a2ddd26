"""Files and qemu-img that fail, or die, at the n-th call. No hooks in shipped code: passed in.

    doom = Doom(fate=Fate.DIE, at=17)
    with api.open_world(uri, files=DyingFiles(doom), jobs=1) as world:
        api.take_snapshot(replace(world, qemu=DyingQemu(doom)), ...)  # raises DeadError

What an operation does with one disk at a time (`jobs=1`) comes in the same order every time. The
end of a real process also closes its descriptors, and so drops its locks: `close_descriptors`.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from typing import Any

from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
from imgtool.model.errors import QemuImgError

READ_ONLY = frozenset({"read", "same", "identity", "free_bytes"})


class Fate(Enum):
    """What happens at the n-th call."""

    FAIL_BEFORE = auto()  # an error, with nothing done
    FAIL_AFTER = auto()  # an error, although all is done
    DIE = auto()  # the process is gone: this call and all later ones do nothing


class DeadError(BaseException):
    """Stands for the end of the process: nobody catches it to go on working."""


@dataclass(slots=True)
class Doom:
    """Counts calls and strikes at one of them (counted from 1; 0: never)."""

    fate: Fate = Fate.FAIL_BEFORE
    at: int = 0
    calls: int = 0
    dead: bool = False
    trace: list[str] = field(default_factory=list)

    def call(self, name: str, work: Callable[[], Any], error: Exception) -> Any:
        """Do `work`, unless it is its turn."""
        if self.dead:
            raise DeadError
        self.calls += 1
        self.trace.append(name)
        if self.calls != self.at:
            return work()
        if self.fate is Fate.DIE:
            self.dead = True
            raise DeadError
        if self.fate is Fate.FAIL_BEFORE:
            raise error
        result = work()
        if isinstance(result, int) and not isinstance(result, bool):
            os.close(result)  # a descriptor that the caller never sees
        raise error


@dataclass(slots=True)
class Meddling(Doom):
    """Fails nothing: just before the n-th call, somebody else does something."""

    meddle: Callable[[], None] = lambda: None

    def call(self, name: str, work: Callable[[], Any], error: Exception) -> Any:
        """Do `work`, and before it `meddle`, if it is its turn."""
        self.calls += 1
        self.trace.append(name)
        if self.calls == self.at:
            self.meddle()
        return work()


class DyingFiles(Files):
    """Every method that has an effect goes through a Doom; calls among themselves do, too."""

    def __init__(self, doom: Doom) -> None:
        self._doom = doom

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name.startswith("_") or name in READ_ONLY or not callable(method):
            return method
        doom: Doom = super().__getattribute__("_doom")

        @functools.wraps(method)
        def counted(*args: Any, **kwargs: Any) -> Any:
            error = OSError(errno.EIO, os.strerror(errno.EIO), str(args[0]) if args else None)
            return doom.call(f"{name}{args}", lambda: method(*args, **kwargs), error)

        return counted


class DyingQemu(QemuImg):
    """Every process that would be started goes through a Doom."""

    def __init__(self, doom: Doom) -> None:
        super().__init__()
        self._doom = doom

    def run(self, *args: str | Path, **options: Any) -> str:
        error = QemuImgError(f"qemu-img {args[0]}: Input/output error")
        return str(
            self._doom.call(
                f"qemu-img {args[0]}", lambda: super(DyingQemu, self).run(*args, **options), error
            )
        )


def close_descriptors(folder: Path) -> None:
    """What the end of a process does: close every descriptor of a file below `folder`."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    for number in numbers:
        try:
            path = Path(f"/proc/self/fd/{number}").readlink()
        except FileNotFoundError:
            continue  # the one that listed them
        if path.is_relative_to(folder):
            os.close(number)
