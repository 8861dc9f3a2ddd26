"""Whether two files hold the same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from imgtool.host.copying import end_of_data, naming_file, next_data, opened

_STRIDE = 4 * 1024 * 1024  # bytes between two looks at whether to stop
_BUFFER = 256 * 1024  # bytes; what fits in a processor's cache


def first_difference(
    one: Path,
    other: Path,
    *,
    check: Callable[[], None],
    watch: Callable[[int], None] = lambda _done: None,
) -> int | None:
    """Where two files begin to differ, in bytes; None: they do not.

    What is a hole in both is not read. Either may be a block device. `check` is called every few
    MiB and may raise to stop, `watch` is told how many bytes are compared. Raises OSError, which
    names the file.
    """
    with opened(one, os.O_RDONLY) as left, opened(other, os.O_RDONLY) as right:
        sizes = [os.lseek(each, 0, os.SEEK_END) for each in (left, right)]
        size, at = min(sizes), 0
        while at < size:
            check()
            at, end = _next_run(left, right, at, size)
            found = _compare((one, left), (other, right), at, end)
            if found is not None:
                return found
            at = end
            watch(at)
        return None if sizes[0] == sizes[1] else size


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
        count = min(counts)
        if not count:
            return at  # one of them became shorter
        if buffers[0][:count] != buffers[1][:count]:
            pairs = zip(*buffers, strict=True)
            return at + next(index for index, (a, b) in enumerate(pairs) if a != b)
        at += count
    return None
