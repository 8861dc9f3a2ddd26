"""The bytes of one image file put into another: shared where that is possible, else copied."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

STRIDE = 4 * 1024 * 1024  # bytes between two looks at whether to stop: a slow disk's half second
_BUFFER = 128 * 1024  # bytes; what fits in a processor's cache
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
    compare: bool = False,
) -> bool:
    """Make the regular file `destination`, which exists, byte for byte equal to `source`.

    True if they share their blocks now (a reflink). Else the data are copied and holes are kept;
    the first `done` bytes of `destination`, which an earlier try has copied, are left as they
    are, and anything beyond them is thrown away first. `source` is a regular file or a block
    device, of which long runs of zeros become holes. `compare`: what is written is read back at
    once, while both are in the processor's cache, and held against `source`.

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
        copying = _Copying(source, destination, origin, copy, compare)
        for begin, end in data_runs(origin, done, size):
            for at in range(begin, end, STRIDE):
                check()
                copying.copy(at, min(STRIDE, end - at))
                _begin_writing(copy, at, min(STRIDE, end - at))
                watch(min(at + STRIDE, end))
        if os.lseek(origin, 0, os.SEEK_END) < size:
            raise _shorter(source)
        watch(size)
        return False


class _Copying:
    """Two open files, and the way that works between them."""

    def __init__(
        self, source: Path, destination: Path, origin: int, copy: int, compare: bool
    ) -> None:
        self._source, self._destination = source, destination
        self._origin, self._copy = origin, copy
        self._compare = compare
        self._in_kernel = True
        self._read, self._written = bytearray(_BUFFER), bytearray(_BUFFER)
        self._zeros = bytes(_BUFFER)

    def copy(self, at: int, length: int) -> None:
        """Copy the bytes from `at` on, in pieces if they are to be compared."""
        for begin in range(at, at + length, _BUFFER) if self._compare else (at,):
            piece = min(_BUFFER, at + length - begin) if self._compare else length
            self._by_kernel(begin, piece)
            if self._compare:
                self._require_equal(begin, piece)

    def _by_kernel(self, at: int, length: int) -> None:
        """As long as it can; the rest is read and written."""
        while length and self._in_kernel:
            try:
                copied = os.copy_file_range(self._origin, self._copy, length, at, at)
            except OSError as error:
                if error.errno in _FULL:
                    error.filename = os.fspath(self._destination)
                    raise
                copied = 0  # by hand it works, or tells which of the files has failed
            self._in_kernel = copied > 0
            at, length = at + copied, length - copied
        while length:
            count = self._read_source(at, length)
            if count < _BUFFER or self._read != self._zeros:
                self._write(at, count)
            at, length = at + count, length - count

    def _read_source(self, at: int, length: int) -> int:
        with naming_file(self._source):
            count = os.preadv(self._origin, [memoryview(self._read)[:length]], at)
        if not count:
            raise _shorter(self._source)
        return count

    def _write(self, at: int, length: int) -> None:
        view = memoryview(self._read)[:length]
        with naming_file(self._destination):
            while view:
                written = os.pwrite(self._copy, view, at)
                view, at = view[written:], at + written

    def _require_equal(self, at: int, length: int) -> None:
        while length:
            count = self._read_source(at, min(length, _BUFFER))
            with naming_file(self._destination):
                got = os.preadv(self._copy, [memoryview(self._written)[:count]], at)
            equal = self._read == self._written
            if count < _BUFFER:  # the end of a run: slices are slow
                equal = self._read[:count] == self._written[:count]
            if got != count or not equal:
                message = f"differs from {self._source} after byte {at}"
                raise OSError(errno.EIO, message, os.fspath(self._destination))
            at, length = at + count, length - count


def _begin_writing(copy: int, at: int, length: int) -> None:
    """Let the disk begin with these bytes; nobody waits for it.

    Or it would idle while we copy, and the last sync, which nothing can interrupt, would be long.
    What the advice drops from the cache is only what has reached the disk, which is none of them.
    """
    with suppress(OSError):
        os.posix_fadvise(copy, at, length, os.POSIX_FADV_DONTNEED)


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
