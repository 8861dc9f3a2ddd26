"""Whether two files hold the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from imgtool.host.copying import end_of_data, naming_file, next_data, opened

_STRIDE = 4 * 1024 * 1024  # bytes between two looks at whether to stop
_BUFFER = 128 * 1024  # bytes; two of them fit in a processor's cache


def first_difference(
    one: Path,
    other: Path,
    *,
    check: Callable[[], None],
    watch: Callable[[int], None] = lambda _done: None,
    end: int | None = None,
) -> int | None:
    """Where two files begin to differ, in bytes; None: they do not.

    What is a hole in both is not read. Either may be a block device. `check` is called every few
    MiB and may raise to stop, `watch` is told how many bytes are compared. Raises OSError, which
    names the file. `end`: only so many bytes from the beginning are compared.
    """
    with opened(one, os.O_RDONLY) as left, opened(other, os.O_RDONLY) as right:
        sizes = [os.lseek(each, 0, os.SEEK_END) for each in (left, right)]
        wanted = max(sizes) if end is None else end
        size, at = min(*sizes, wanted), 0
        while at < size:
            check()
            at, stop = _next_run(left, right, at, size)
            found = _compare((one, left), (other, right), at, stop)
            if found is not None:
                return found
            at = stop
            watch(at)
        return None if size == wanted else size


def _next_run(left: int, right: int, at: int, size: int) -> tuple[int, int]:
    """Begin and end of what is to be compared next: data of one of them at least."""
    ours, theirs = next_data(left, at, size), next_data(right, at, size)
    begin = min(ours, theirs)
    end = end_of_data(left if ours == begin else right, begin, size)
    return begin, min(end, begin + _STRIDE)


def _compare(one: tuple[Path, int], other: tuple[Path, int], at: int, end: int) -> int | None:
    buffers = (bytearray(_BUFFER), bytearray(_BUFFER))
    while at < end:
        length = min(_BUFFER, end - at)
        counts = []
        for (path, descriptor), buffer in zip((one, other), buffers, strict=True):
            with naming_file(path):
                counts.append(os.preadv(descriptor, [memoryview(buffer)[:length]], at))
        if counts[0] != counts[1] or not counts[0]:
            return at  # one of them became shorter
        # All of both: a slice costs more than comparing does, and what is not read now is equal.
        if buffers[0] != buffers[1]:
            pairs = zip(*buffers, strict=True)
            return at + next(index for index, (a, b) in enumerate(pairs) if a != b)
        at += counts[0]
    return None
