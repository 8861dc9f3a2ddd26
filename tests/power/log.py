"""Reads the log of a blklogwrites node, in the format of the kernel's dm-log-writes.

    superblock | entry | data ... | entry | data ... | ...

Everything starts on a log sector: the superblock and each entry fill one, a write's data
`sectors` of them; a flush, a discard and a mark are an entry alone. All numbers are little endian.
Pure but for reading the file it is given.
"""

from __future__ import annotations

import enum
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAGIC = 0x6A736677736872
VERSION = 1
SUPERBLOCK = struct.Struct("<QQQI")  # magic, version, entries, sector size
ENTRY = struct.Struct("<QQQQ")  # sector, sectors, flags, length of a mark's text


class LogError(Exception):
    """The log is not one, or says something that nobody has taught this reader."""


class Flag(enum.IntFlag):
    """What an entry is. None of these: a plain write."""

    FLUSH = 1  # a barrier; all that was written before it is on the disk
    FUA = 2  # this write itself is on the disk when it completes
    DISCARD = 4
    MARK = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One request, in the order in which the disk completed them."""

    flags: Flag
    offset: int  # bytes, on the disk
    length: int  # bytes; 0 for a flush or a mark
    data_at: int  # bytes, in the log: where the data is

    @property
    def is_flush(self) -> bool:
        return Flag.FLUSH in self.flags

    @property
    def is_write(self) -> bool:
        """Whether it changes the disk, as a discard does: it reads as zeros here."""
        return self.length > 0

    @property
    def data_length(self) -> int:
        """Bytes in the log."""
        return 0 if Flag.DISCARD in self.flags else self.length


def count_entries(log: Path) -> int:
    """How many requests the disk has completed by now; the disk may still be in use.

    Raises LogError if `log` starts with something that is no superblock.
    """
    with log.open("rb") as file:
        blob = file.read(SUPERBLOCK.size)
    return _superblock(blob)[0] if blob else 0  # written with the first entry


def read_log(log: Path, entries: int) -> tuple[Entry, ...]:
    """The first `entries` entries of `log`. Raises LogError if there are fewer."""
    with log.open("rb") as file:
        logged, sector = _superblock(file.read(SUPERBLOCK.size))
        if entries > logged:
            raise LogError(f"{log}: has {logged} entries, not {entries}")
        return tuple(_entries(file.fileno(), sector, entries))


def read_data(log: int, entry: Entry, start: int, length: int) -> bytes:
    """`length` bytes of an entry's data from `start` on, both in bytes; a discard's are zeros.

    `log` is a file descriptor. Raises LogError if the log ends before.
    """
    if Flag.DISCARD in entry.flags:
        return bytes(length)
    data = os.pread(log, length, entry.data_at + start)
    if len(data) != length:
        raise LogError(f"the log ends in the data of {entry}")
    return data


def _superblock(blob: bytes) -> tuple[int, int]:
    """The number of entries, and the log's sector size in bytes."""
    if len(blob) < SUPERBLOCK.size:
        raise LogError(f"{len(blob)} bytes are no superblock")
    magic, version, entries, sector = SUPERBLOCK.unpack(blob)
    if (magic, version) != (MAGIC, VERSION):
        raise LogError(f"not a log of version {VERSION}: magic {magic:#x}, version {version}")
    return entries, sector


def _entries(log: int, sector: int, count: int) -> Iterator[Entry]:
    at = sector
    for _ in range(count):
        header = os.pread(log, ENTRY.size, at)
        if len(header) != ENTRY.size:
            raise LogError(f"the log ends at byte {at}, in an entry")
        start, length, flags, _text = ENTRY.unpack(header)
        if flags & ~sum(Flag):
            raise LogError(f"unknown flags {flags:#x} in the entry at byte {at}")
        entry = Entry(Flag(flags), start * sector, length * sector, at + sector)
        yield entry
        at = entry.data_at + entry.data_length
