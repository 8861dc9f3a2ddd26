"""Which internal snapshots of a qcow2 image show just what the image shows now."""

from __future__ import annotations

from pathlib import Path

from imgtool.host import qcow2
from imgtool.host.image_file import ImageFile, open_image

_OFFSET = 0x00FFFFFFFFFFFE00  # bits 9 to 55 of an L1 entry (qcow2.txt); bit 63 is only a hint


def equal_snapshots(path: Path) -> frozenset[str]:
    """Ids of the snapshots whose L1 table leads to the same L2 tables as the active one.

    The first write to an image after a snapshot gives it an L2 table of its own, so equal tables
    mean equal content. The other way round nothing is said. Raises ChainError.
    """
    with open_image(path) as file:
        header = qcow2.read_header(file)
        active = _entries(file, header.l1_offset, header.l1_entries)
        return frozenset(
            entry.snapshot.id
            for entry in qcow2.snapshot_entries(file, header)
            if entry.snapshot.virtual_size in (None, header.virtual_size)
            and entry.l1_entries <= qcow2.MAX_L1_ENTRIES
            and _entries(file, entry.l1_offset, entry.l1_entries) == active
        )


def _entries(file: ImageFile, offset: int, count: int) -> list[int]:
    """An L1 table without hints, and without the empty entries at its end."""
    data = file.read(offset, 8 * count, "an L1 table") if count else b""
    entries = [int.from_bytes(data[at : at + 8], "big") & _OFFSET for at in range(0, len(data), 8)]
    while entries and entries[-1] == 0:
        entries.pop()
    return entries
