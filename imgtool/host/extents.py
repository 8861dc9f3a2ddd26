"""Which parts of the virtual disk a scratch qcow2 image holds itself."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from sys import byteorder

from imgtool.host import qcow2
from imgtool.host.image_file import ImageFile

OFFSET = 0x00FFFFFFFFFFFE00  # bits 9 to 55 of an L1 or L2 entry
COMPRESSED = 1 << 62
ZERO = 1 << 0
SUBCLUSTERS = 32  # of a cluster in an image with extended L2 entries
SUB_ZERO = 1 << 32  # of the first; those of the others follow
SUB_DATA = 1 << 0


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of the virtual disk that this layer decides upon. All three are bytes."""

    offset: int
    length: int
    host: int | None  # where the data begins in the file; None: reads as zeros


def allocated(fd: int) -> tuple[Extent, ...]:
    """What the image holds, by rising offset, neighbours merged; the rest is its base's.

    Only for an image that imgtool's own qemu-img has made: version 3, no compression, no
    external data. Holds one L2 table in memory at a time. A short read at the end of an extent's
    data is zeros: QEMU need not have written the end of the last cluster. Raises ChainError.
    """
    file = ImageFile.of(fd, Path(f"/proc/self/fd/{fd}").readlink())
    header = qcow2.read_header(file)
    unknown = header.incompatible & ~qcow2.EXTENDED_L2
    if header.version != 3 or unknown or header.crypt_method:
        raise file.malformed("is not a scratch image of imgtool's")
    return tuple(_merged(file, header))


def _merged(file: ImageFile, header: qcow2.Header) -> Iterator[Extent]:
    start = end = 0
    first: int | None = None  # host offset of `start`
    for offset, host in _units(file, header):
        if offset != end or host != (None if first is None else first + offset - start):
            if end > start:
                yield Extent(start, end - start, first)
            start, first = offset, host
        end = min(offset + _unit(header), header.virtual_size)
    if end > start:
        yield Extent(start, end - start, first)


def _unit(header: qcow2.Header) -> int:
    """Bytes that are allocated or not: a cluster, or a subcluster."""
    parts = SUBCLUSTERS if header.incompatible & qcow2.EXTENDED_L2 else 1
    return header.cluster_size // parts


def _units(file: ImageFile, header: qcow2.Header) -> Iterator[tuple[int, int | None]]:
    """Offset in the virtual disk and in the file (None: zeros) of each allocated unit."""
    size, unit = header.cluster_size, _unit(header)
    for cluster, entry, bitmap in _entries(file, header):
        host = entry & OFFSET
        has_data = bitmap & (SUB_ZERO - 1)
        if entry & COMPRESSED or host % size or (host >= file.size and has_data):
            raise file.malformed(f"the L2 entry of offset {cluster} cannot be")
        for start in range(0, min(size, header.virtual_size - cluster), unit):
            if bitmap & SUB_ZERO:
                yield cluster + start, None
            elif bitmap & SUB_DATA:
                yield cluster + start, host + start
            bitmap >>= 1


def _entries(file: ImageFile, header: qcow2.Header) -> Iterator[tuple[int, int, int]]:
    """Offset of each cluster of the virtual disk that has an L2 entry, that, and its bitmap."""
    size = header.cluster_size
    extended = bool(header.incompatible & qcow2.EXTENDED_L2)
    for index, l1_entry in enumerate(_table(file, header.l1_offset, header.l1_in_use)):
        table = l1_entry & OFFSET
        if not table:
            continue
        words = _table(file, table, size // 8)
        entries, bitmaps = (words[::2], words[1::2]) if extended else (words, words)
        for number, (entry, bitmap) in enumerate(zip(entries, bitmaps, strict=True)):
            offset = index * header.l2_reach + number * size
            if not (entry or bitmap) or offset >= header.virtual_size:
                continue
            if not extended:
                bitmap = SUB_ZERO if entry & ZERO else SUB_DATA if entry & OFFSET else 0
            yield offset, entry, bitmap


def _table(file: ImageFile, offset: int, entries: int) -> array[int]:
    if offset % 512:
        raise file.malformed("a table is not aligned")
    table = array("Q", file.read(offset, entries * 8, "an L1 or L2 table"))
    if byteorder == "little":
        table.byteswap()
    return table
