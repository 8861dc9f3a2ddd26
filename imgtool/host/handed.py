"""Names of files that lead somewhere only in the programs that we start ourselves."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

_FIRST = 900  # descriptors from here on, which no other program is likely to have


@contextmanager
def handed_on(path: Path | None) -> Iterator[str]:
    """A name for `path` (None: for an empty file) in programs started before the block ends.

    It goes through a folder that they inherit as an open descriptor, so that relative names of
    its bases hold, too. In any other program, and for ever after, it leads nowhere: an image that
    records it as its base cannot be opened by QEMU. Raises OSError.
    """
    with ExitStack() as stack:
        if path is None:
            found = os.memfd_create("imgtool-empty")
        else:
            found = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, found)
        inherited = fcntl.fcntl(found, fcntl.F_DUPFD, _FIRST)
        stack.callback(os.close, inherited)
        name = f"/proc/self/fd/{inherited}"
        yield name if path is None else f"{name}/{path.name}"
