"""An image file opened to be looked at: it cannot hang, mislead by a link, or be over-read."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.errors import ChainError
from imgtool.model.image import Identity

SECTOR = 512  # bytes; st_blocks counts these, and so does what a guest sees
MAX_VIRTUAL_SIZE = 2**63 - 2**30  # bytes; QEMU's BDRV_MAX_LENGTH
MAX_BACKING_NAME = 1023  # bytes; in qcow2's specification, and a limit of QEMU for all formats


@dataclass(frozen=True, slots=True)
class Inode:
    """What fstat says of an image."""

    identity: Identity
    allocation: int  # bytes on disk; 0 for a block device
    block_device: bool


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A descriptor of an image, and the bounds that every read of it keeps to."""

    path: Path
    fd: int
    inode: Inode

    @classmethod
    def of(cls, fd: int, path: Path) -> ImageFile:
        """Raises ChainError if `fd` is no regular file or block device; `path` is for messages."""
        status = os.fstat(fd)
        _require_image(path, status)
        block_device = stat.S_ISBLK(status.st_mode)
        size = os.lseek(fd, 0, os.SEEK_END) if block_device else status.st_size
        # A block device is one device under any of its names.
        file = (status.st_rdev, 0) if block_device else (status.st_dev, status.st_ino)
        identity = Identity(*file, size, status.st_mtime_ns)
        return cls(path, fd, Inode(identity, status.st_blocks * SECTOR, block_device))

    @property
    def size(self) -> int:
        """Bytes; of a block device, its capacity."""
        return self.inode.identity.size

    def read(self, offset: int, length: int, what: str) -> bytes:
        """Exactly `length` bytes. Raises ChainError if they are not all inside the file."""
        if not 0 <= offset <= self.size - length:
            raise self.malformed(f"{what} lies outside the file")
        try:
            data = os.pread(self.fd, length, offset)
        except OSError as error:
            raise self.malformed(f"{what} cannot be read: {error.strerror}") from error
        if len(data) != length:
            raise self.malformed(f"{what} is cut short")
        return data

    def text(self, offset: int, length: int, what: str) -> str:
        """A string as QEMU would use it for a file name or tag; no NUL may hide in it."""
        data = self.read(offset, length, what)
        if b"\0" in data:
            raise self.malformed(f"{what} has a NUL byte in it")
        return os.fsdecode(data)

    def malformed(self, what: str) -> ChainError:
        return ChainError(f"{self.path}: {what}", remedy="look at it with qemu-img check")

    def not_a(self, name: str) -> ChainError:
        return ChainError(
            f"{self.path}: is not a {name} image",
            remedy="correct the format that the domain XML or the overlay above it records",
        )


@contextmanager
def open_image(path: Path) -> Iterator[ImageFile]:
    """Open for reading. `path` is absolute with its links resolved: a link now is a race.

    Raises ChainError: missing, unreadable, or neither a regular file nor a block device.
    """
    if not path.is_absolute():
        raise ValueError(f"{path} is not absolute")
    try:
        # Opening some devices does things, and fstat comes after: look first, then look again.
        _require_image(path, path.lstat())
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ChainError(
            f"{path}: cannot be opened: {reason}", remedy="restore it, or mend what names it"
        ) from error
    try:
        yield ImageFile.of(fd, path)
    finally:
        os.close(fd)


def _require_image(path: Path, status: os.stat_result) -> None:
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISBLK(status.st_mode)):
        raise ChainError(
            f"{path}: is neither a regular file nor a block device",
            remedy="name the image itself",
        )
