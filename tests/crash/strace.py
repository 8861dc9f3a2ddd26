"""The command under strace: which system calls change files, and what if one of them fails."""

from __future__ import annotations

import compileall
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import imgtool

CHANGING = (
    *("openat", "write", "pwrite64", "ftruncate", "fsync", "linkat", "link", "unlink", "unlinkat"),
    *("rename", "mkdir", "rmdir", "fchmod", "fchown", "fsetxattr"),
)
_CALL = re.compile(r"^(\w+)\((.*)$")
_CREATES = re.compile(r"O_CREAT|O_WRONLY|O_RDWR")


@dataclass(frozen=True, slots=True)
class Point:
    """The n-th call (from 1) of one system call in imgtool's own process."""

    syscall: str
    when: int
    text: str  # as strace printed it


def changing_calls(arguments: Sequence[str], folder: Path, log: Path) -> list[Point]:
    """Run imgtool once; returns its calls that change something below `folder`, in order.

    `-P` would count fewer calls, but takes no folders; so all calls of a name are counted, and
    those that touch the folder are picked.
    """
    # Else the first run makes more calls than those that follow: it keeps what Python compiles.
    compileall.compile_dir(Path(imgtool.__file__).parent, quiet=1)
    _strace(["-y", "-o", str(log)], arguments, check=True)
    counts: Counter[str] = Counter()
    points = []
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        name, rest = match.groups()
        counts[name] += 1
        if str(folder) in rest and (name != "openat" or _CREATES.search(rest)):
            points.append(Point(name, counts[name], line[:160]))
    return points


def run_into(
    point: Point, fault: str, arguments: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Run imgtool with `fault` (`signal=KILL`, `error=EIO` ...) injected at one call."""
    inject = f"inject={point.syscall}:{fault}:when={point.when}"
    return _strace(["-e", inject, "-o", os.devnull], arguments, check=False)


def spread(points: Sequence[Point], count: int, offset: int) -> Iterator[Point]:
    """About `count` of the points, evenly, beginning with the one at `offset`."""
    step = max(1, len(points) // count)
    yield from points[offset % step :: step]


def _strace(
    options: Sequence[str], arguments: Sequence[str], *, check: bool
) -> subprocess.CompletedProcess[str]:
    command = ["strace", "-qq", "-e", f"trace={','.join(CHANGING)}", *options]
    command += [sys.executable, "-m", "imgtool", *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=120)
