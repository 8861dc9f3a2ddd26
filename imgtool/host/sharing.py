"""Whether files of a folder can share the blocks of an image."""

from __future__ import annotations

import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

_FICLONERANGE = 0x4020940D  # Linux, fs.h
_RANGE = struct.Struct("qQQQ")  # descriptor, offset, length, offset in the target
_BLOCK = 65536  # bytes; a multiple of every file system's block


def can_share(source: Path, folder: Path) -> bool:
    """Whether a copy of `source` in `folder` would be a reflink, which takes no space.

    Tried with a file that has no name, so that nothing is ever left of it. False where it cannot
    be found out.
    """
    with suppress(OSError):
        origin = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            trial = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            try:
                # To the end, where it is short: there, a part of a block is allowed.
                length = _BLOCK if os.fstat(origin).st_size > _BLOCK else 0
                fcntl.ioctl(trial, _FICLONERANGE, _RANGE.pack(origin, 0, length, 0))
            finally:
                os.close(trial)
        finally:
            os.close(origin)
        return True
    return False
