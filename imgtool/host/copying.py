"""The bytes of one image file put into another: shared where that is possible, else copied."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

STRIDE = 4 * 1024 * 1024  # bytes between two looks at whether to stop: a slow disk's half second
_BUFFER = 256 * 1024  # bytes; what fits in a processor's cache
_FICLONE = 0x40049409  # Linux, fs.h
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW


def copy_image(
    source: Path,
    destination: Path,
    *,
    watch: Callable[[int], None],
    check: Callable[[], None],
    done: int = 0,
) -> bool:
    """Make the regular file `destination`, which exists, byte for byte equal to `source`.

    True if they share their blocks now (a reflink). Else the data are copied and holes are kept;
    the first `done` bytes of `destination`, which an earlier try has copied, are left as they
    are, and anything beyond them is thrown away first. `source` is a regular file or a block
    device, of which long runs of zeros become holes.

    `watch` is told how many bytes from the beginning are right by now, `check` is called every
    few MiB and may raise to stop. Not synced. A crash leaves a file of which only what was synced
    after `watch` had told of it is right. Raises OSError, which names the file.
    """
    with opened(source, os.O_RDONLY) as origin, opened(destination, os.O_RDWR) as copy:
        check()
        size = os.lseek(origin, 0, os.SEEK_END)
        if _share(origin, copy):
            os.ftruncate(copy, size)
            watch(size)
            return True
        with naming_file(destination):
            done = min(done, size, os.fstat(copy).st_size)
            os.ftruncate(copy, done)  # what is cut off comes back as zeros
            os.ftruncate(copy, size)
        copying = _Copying(source, destination, origin, copy)
        for begin, end in data_runs(origin, done, size):
            for at in range(begin, end, STRIDE):
                check()
                copying.copy(at, min(STRIDE, end - at))
                watch(min(at + STRIDE, end))
        if os.lseek(origin, 0, os.SEEK_END) < size:
            raise _shorter(source)
        watch(size)
        return False


@dataclass(slots=True)
class _Copying:
    """Two open files, and the way that works between them."""

    source: Path
    destination: Path
    origin: int
    copy_: int
    in_kernel: bool = True

    def copy(self, at: int, length: int) -> None:
        """Copy the bytes from `at` on, by the kernel as long as it can."""
        while length and self.in_kernel:
            try:
                copied = os.copy_file_range(self.origin, self.copy_, length, at, at)
            except OSError as error:
                if error.errno in _FULL:
                    error.filename = os.fspath(self.destination)
                    raise
                copied = 0  # by hand it works, or tells which of the files has failed
            self.in_kernel = copied > 0
            at, length = at + copied, length - copied
        if length:
            self._by_hand(at, length)

    def _by_hand(self, at: int, length: int) -> None:
        buffer, zeros = bytearray(min(_BUFFER, length)), bytes(_BUFFER)
        while length:
            view = memoryview(buffer)[:length]
            with naming_file(self.source):
                count = os.preadv(self.origin, [view], at)
            if not count:
                raise _shorter(self.source)
            if buffer[:count] != zeros[:count]:
                _write(self.copy_, view[:count], at, self.destination)
            at, length = at + count, length - count


def _shorter(path: Path) -> OSError:
    return OSError(errno.EIO, "became shorter while it was copied", os.fspath(path))


def _write(descriptor: int, view: memoryview, at: int, path: Path) -> None:
    with naming_file(path):
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written


def share(source: Path, destination: Path) -> bool:
    """Let `destination`, which exists, share the blocks of `source`; False where that cannot be.

    Not synced; a crash leaves any number of blocks shared. Raises OSError if one is not there.
    """
    with opened(source, os.O_RDONLY) as origin, opened(destination, os.O_RDWR) as copy:
        if not _share(origin, copy):
            return False
        with naming_file(destination):
            os.ftruncate(copy, os.lseek(origin, 0, os.SEEK_END))
        return True


def _share(origin: int, copy: int) -> bool:
    """Let `copy` begin with the blocks of `origin`; False where that cannot be."""
    try:
        fcntl.ioctl(copy, _FICLONE, origin)
    except OSError:
        return False  # whatever the reason: copying works, or tells it better
    return True


def data_runs(origin: int, at: int, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of data from `at` on; where nobody can tell, all is data."""
    while (begin := next_data(origin, at, size)) < size:
        at = end_of_data(origin, begin, size)
        yield begin, at


def next_data(descriptor: int, at: int, size: int) -> int:
    """Where data begin, from `at` on; `size` if only a hole is left."""
    try:
        return os.lseek(descriptor, at, os.SEEK_DATA) if at < size else size
    except OSError as error:
        return size if error.errno == errno.ENXIO else at


def end_of_data(descriptor: int, at: int, size: int) -> int:
    """Where the data that `at` lies in end."""
    try:
        return min(os.lseek(descriptor, at, os.SEEK_HOLE), size) if at < size else size
    except OSError:
        return size


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """An image, which is no link, to be read or written from one end to the other."""
    descriptor = os.open(path, flags | _FLAGS)
    try:
        with suppress(OSError):  # of a file system without the idea
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """An OSError from a call that knows no path is given this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or os.fspath(path)
        raise
