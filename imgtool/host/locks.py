"""QEMU's own image locks: OFD locks on single bytes of the image file.

Offsets from QEMU's block/file-posix.c: byte 100 + n says "I hold permission n", byte 200 + n says
"I do not share permission n"; write is n = 1, resize is n = 3.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from imgtool.host.files import Files
from imgtool.host.image_file import ImageFile
from imgtool.model.errors import FailedError, ImageChangedError, ImageInUseError
from imgtool.model.image import Identity
from imgtool.model.plan import Pin

_READ = 100  # "I count on consistent data"
_HELD = (101, 103)  # "I write", "I resize"
_UNSHARED = (201, 203)  # "nobody else may write", "... resize"
_CHANGED = 300  # ours, beyond QEMU's bytes: held for reading by plans that only need the image
_FLOCK = struct.Struct("hh4xqqi4x")  # struct flock of Linux, 64-bit off_t


class PinnedImages:
    """Holds the locks of every image of a plan until it is closed (or the process dies).

    While it is held, QEMU fails to start with its own message, and so does another imgtool that
    wants to change one of these images; `qemu-img` without -U goes on reading them, but for those
    that the plan writes itself: these our own qemu-img opens with `locking=off`.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._pinned: set[tuple[int, int]] = set()

    def __enter__(self) -> PinnedImages:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def pin(self, pins: Iterable[Pin]) -> None:
        """Lock every image, each file once.

        Raises ImageInUseError (QEMU or another imgtool has it) or ImageChangedError (it is not
        the file that was surveyed), with the locks taken so far still held until closed.
        """
        by_file: dict[tuple[int, int], Pin] = {}
        for pin in pins:
            known = by_file.get(pin.identity.file)
            if known is None or (pin.exclusive, pin.written) > (known.exclusive, known.written):
                by_file[pin.identity.file] = pin
        for file in sorted(by_file):
            self._pin(by_file[file])
            self._pinned.add(file)

    def seize(self, images: Iterable[tuple[str, Path]], *, written: bool = True) -> None:
        """Lock images (disk and path) to write or remove them, whatever they have become.

        Each file once, also over several calls; raises ImageInUseError if somebody has one open.
        """
        found = (
            Pin(
                target=target,
                path=path,
                identity=Files().identity(path),
                exclusive=True,
                written=written,
            )
            for target, path in images
        )
        self.pin(pin for pin in found if pin.identity.file not in self._pinned)

    def _pin(self, pin: Pin) -> None:
        flags = os.O_RDWR if pin.exclusive else os.O_RDONLY
        try:
            descriptor = os.open(pin.path, flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError as error:
            raise _changed(pin) from error
        except OSError as error:
            raise FailedError(
                f"{pin.target}: {pin.path}: {error.strerror}",
                remedy="make it readable and writable",
            ) from error
        self._stack.callback(os.close, descriptor)
        if _identity(descriptor, pin) != pin.identity:
            raise _changed(pin)
        # Who writes an image needs that nobody counts on it to stay as it is, either.
        others = (_READ, *_HELD, *_UNSHARED) if pin.exclusive else _HELD
        if any(_conflicts(descriptor, byte) for byte in others):
            raise _in_use(pin)
        for byte in (*_UNSHARED, *(_HELD if pin.exclusive and pin.written else ())):
            _lock(descriptor, fcntl.F_RDLCK, byte, pin)
        _lock(descriptor, fcntl.F_WRLCK if pin.exclusive else fcntl.F_RDLCK, _CHANGED, pin)
        # Tested again: QEMU takes its bytes first and looks at ours afterwards, as we do.
        if any(_conflicts(descriptor, byte) for byte in others):
            raise _in_use(pin)


def _identity(descriptor: int, pin: Pin) -> Identity:
    return ImageFile.of(descriptor, pin.path).inode.identity


def _conflicts(descriptor: int, byte: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _lock(descriptor: int, kind: int, byte: int, pin: Pin) -> None:
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    except (BlockingIOError, PermissionError) as error:
        raise _in_use(pin) from error


def _in_use(pin: Pin) -> ImageInUseError:
    return ImageInUseError(
        f"{pin.target}: {pin.path} is in use: a virtual machine or another program has it open",
        remedy="shut the virtual machine down, or wait for the other program",
    )


def _changed(pin: Pin) -> ImageChangedError:
    return ImageChangedError(
        f"{pin.target}: {pin.path} was changed while the work was being planned",
        remedy="make sure that nobody uses the disk, then try again",
    )


def check_unchanged(pins: Iterable[Pin], *, except_for: Iterable[Path] = ()) -> None:
    """Compare each pinned image with its identity again. Raises ImageChangedError."""
    ours = set(except_for)
    for pin in pins:
        if pin.path in ours:
            continue
        try:
            descriptor = os.open(pin.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise _changed(pin) from error
        try:
            if _identity(descriptor, pin) != pin.identity:
                raise _changed(pin)
        finally:
            os.close(descriptor)
