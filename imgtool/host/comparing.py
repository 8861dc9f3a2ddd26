"""Whether two files hold the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from imgtool.host.copying import data_runs

_STRIDE = 4 * 1024 * 1024  # bytes between two looks at whether to stop
_BUFFER = 256 * 1024  # bytes; what fits in a processor's cache
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


def first_difference(one: Path, other: Path, *, check: Callable[[], None]) -> int | None:
    """Where two files begin to differ, in bytes; None: they do not.

    What is a hole in both is not read. Either may be a block device. `check` is called every few
    MiB and may raise to stop. Raises OSError.
    """
    left, right = os.open(one, _FLAGS), -1
    try:
        right = os.open(other, _FLAGS)
        sizes = [os.lseek(each, 0, os.SEEK_END) for each in (left, right)]
        at = _compare(left, right, min(sizes), check)
        return min(sizes) if at is None and sizes[0] != sizes[1] else at
    finally:
        os.close(left)
        if right >= 0:
            os.close(right)


def _compare(left: int, right: int, size: int, check: Callable[[], None]) -> int | None:
    done = 0
    for begin, end in sorted((*data_runs(left, 0, size), *data_runs(right, 0, size))):
        for start in range(max(begin, done), end, _STRIDE):
            check()
            stop = min(start + _STRIDE, end)
            for at in range(start, stop, _BUFFER):
                length = min(_BUFFER, stop - at)
                if (ours := os.pread(left, length, at)) != (theirs := os.pread(right, length, at)):
                    return at + _first(ours, theirs)
        done = max(done, end)
    return None


def _first(one: bytes, other: bytes) -> int:
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
