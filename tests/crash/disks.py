"""Small file systems that can be filled to the last block."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .dying import Doom

FILLER = "filler"
MIB = 1 << 20


@contextmanager
def small_disk(kind: str, place: Path) -> Iterator[Path]:
    """A mounted tmpfs, ext4 or xfs of as few bytes as its makers allow."""
    folder = place / "disk"
    folder.mkdir()
    if kind == "tmpfs":
        _run("mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", folder)
    else:
        image = place / "disk.img"
        with image.open("wb") as file:
            file.truncate((320 if kind == "xfs" else 48) * MIB)
        options = ["-q"] if kind == "xfs" else ["-q", "-m", "0"]
        _run(f"mkfs.{kind}", *options, image)
        _run("mount", "-o", "loop", image, folder)
    try:
        yield folder
    finally:
        _run("umount", folder)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Inside, nothing can be written below `folder`."""
    _run("mount", "--bind", folder, folder)
    try:
        _run("mount", "-o", "remount,bind,ro", folder)
        yield
    finally:
        _run("umount", folder)


def fill(disk: Path, *, leave: int = 0) -> None:
    """Take all the space there is, but for `leave` bytes."""
    facts = os.statvfs(disk)
    if leave:
        with (disk / FILLER).open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - leave)
        return
    with (disk / FILLER).open("ab") as file:
        for size in (MIB, 64 << 10, facts.f_frsize):
            while True:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    break


def empty(disk: Path) -> None:
    """Give the space back."""
    (disk / FILLER).unlink(missing_ok=True)


@dataclass(slots=True)
class Filling(Doom):
    """Just before the n-th call, the disk is full; and it stays full."""

    disk: Path = field(default=Path("/nonexistent"))

    def call(self, name: str, work: Any, error: Exception) -> Any:
        self.calls += 1
        self.trace.append(name)
        if self.calls == self.at:
            fill(self.disk)
        return work()


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
