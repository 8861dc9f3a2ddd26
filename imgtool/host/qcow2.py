"""qcow2 header fields: read without trust, and the one that imgtool writes.

Offsets, limits and bits are those of QEMU's docs/interop/qcow2.txt; where it leaves a limit open,
QEMU's own (block/qcow2.c) is taken.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.host.image_file import MAX_BACKING_NAME, MAX_VIRTUAL_SIZE, SECTOR, ImageFile
from imgtool.model.errors import ChainError
from imgtool.model.image import Format, Image, InternalSnapshot, Qcow2Features

MAGIC = b"QFI\xfb"
HEADER_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
HEADER_V3 = struct.Struct(">QQQII")  # what version 3 has after that
INCOMPATIBLE_OFFSET = 72  # bytes
DIRTY, CORRUPT, DATA_FILE, COMPRESSION, EXTENDED_L2 = (1 << bit for bit in range(5))
KNOWN = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2
LAZY_REFCOUNTS = 1 << 0  # compatible
BITMAPS_CONSISTENT = 1 << 0  # autoclear

END, BACKING_FORMAT, BITMAPS = 0, 0xE2792ACA, 0x23852875  # header extensions
EXTENSION = struct.Struct(">II")
BITMAPS_EXTENSION = struct.Struct(">IIQQ")
BITMAP = struct.Struct(">QIIBBHI")
SNAPSHOT = struct.Struct(">QIHHIIQII")

MAX_EXTENSIONS = 256  # QEMU writes at most five
MAX_BACKING_FORMAT = 15  # bytes
MAX_L1_ENTRIES = 32 * 1024 * 1024 // 8
MAX_SNAPSHOTS = 65536
MAX_SNAPSHOT_EXTRA = 1024  # bytes
MAX_BITMAPS = 65535
MAX_TABLE = 16 * 1024 * 1024  # bytes of snapshot table, or of bitmap directory


@dataclass(frozen=True, slots=True)
class SnapshotEntry:
    """One entry of the snapshot table, with where its L1 table is. Offset in bytes."""

    snapshot: InternalSnapshot
    l1_offset: int
    l1_entries: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The fixed fields, within their limits. Offsets and sizes are bytes in the file."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    virtual_size: int
    crypt_method: int
    l1_entries: int
    l1_offset: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    refcount_order: int = 4
    length: int = HEADER_V2.size

    @property
    def cluster_size(self) -> int:
        return 1 << self.cluster_bits

    @property
    def l2_reach(self) -> int:
        """Bytes of the virtual disk that one L2 table maps."""
        entry = 16 if self.incompatible & EXTENDED_L2 else 8
        return self.cluster_size // entry * self.cluster_size

    @property
    def l1_in_use(self) -> int:
        """Entries of the L1 table that map the virtual disk; the rest is VM state."""
        return -(-self.virtual_size // self.l2_reach)


def read(file: ImageFile) -> Image:
    """Describe a qcow2 image. Raises ChainError if it is none, or QEMU would not open it."""
    header = read_header(file)
    extensions = dict(_extensions(file, header))
    backing = _backing(file, header)
    return Image(
        path=file.path,
        format=Format.QCOW2,
        virtual_size=header.virtual_size // SECTOR * SECTOR,
        allocation=file.inode.allocation,
        identity=file.inode.identity,
        block_device=file.inode.block_device,
        backing=backing,
        backing_format=_backing_format(file, extensions) if backing else None,
        features=Qcow2Features(
            cluster_size=header.cluster_size,
            compat="0.10" if header.version == 2 else "1.1",
            extended_l2=bool(header.incompatible & EXTENDED_L2),
            lazy_refcounts=bool(header.compatible & LAZY_REFCOUNTS),
            refcount_bits=1 << header.refcount_order,
        ),
        snapshots=tuple(entry.snapshot for entry in snapshot_entries(file, header)),
        bitmaps=tuple(_bitmaps(file, header, extensions)),
        corrupt=bool(header.incompatible & CORRUPT),
        dirty=bool(header.incompatible & DIRTY),
        encrypted=header.crypt_method != 0,
        data_file=bool(header.incompatible & DATA_FILE),
    )


def read_header(file: ImageFile) -> Header:
    """The fixed fields. Raises ChainError: another format, or a limit is not kept."""
    if file.size < HEADER_V2.size or file.read(0, 4, "the magic number") != MAGIC:
        raise file.not_a("qcow2")
    fields = HEADER_V2.unpack(file.read(0, HEADER_V2.size, "the header"))
    _, version, backing_offset, backing_length, cluster_bits, size, crypt, *rest = fields
    l1_entries, l1_offset, _refcount_offset, _refcount_clusters, snapshots, snapshots_at = rest
    if version not in (2, 3):
        raise file.malformed(f"qcow2 version {version} is unknown")
    late = (0, 0, 0, 4, HEADER_V2.size)
    if version == 3:
        late = HEADER_V3.unpack(file.read(HEADER_V2.size, HEADER_V3.size, "the header"))
    incompatible, compatible, autoclear, refcount_order, length = late
    header = Header(
        version=version,
        backing_offset=backing_offset,
        backing_length=backing_length,
        cluster_bits=cluster_bits,
        virtual_size=size,
        crypt_method=crypt,
        l1_entries=l1_entries,
        l1_offset=l1_offset,
        snapshots=snapshots,
        snapshots_offset=snapshots_at,
        incompatible=incompatible,
        compatible=compatible,
        autoclear=autoclear,
        refcount_order=refcount_order,
        length=length,
    )
    for broken in _faults(header, file.size):
        raise file.malformed(broken)
    return header


def _faults(header: Header, file_size: int) -> Iterator[str]:
    """Why QEMU would not open it, first things first: later tests build on earlier ones."""
    if not 9 <= header.cluster_bits <= 21:
        yield f"cluster_bits is {header.cluster_bits}, not 9 to 21"
    if header.version == 3 and not 104 <= header.length <= header.cluster_size:
        yield f"the header is {header.length} bytes long"
    if header.incompatible & ~KNOWN:
        yield f"has unknown incompatible features {header.incompatible & ~KNOWN:#x}"
    if header.incompatible & EXTENDED_L2 and header.cluster_bits < 14:
        yield "extended_l2 needs clusters of 16 KiB"
    if header.refcount_order > 6:
        yield f"refcount_order is {header.refcount_order}, over 6"
    if header.crypt_method > 2:
        yield f"encryption method {header.crypt_method} is unknown"
    if header.virtual_size > MAX_VIRTUAL_SIZE:
        yield f"a virtual size of {header.virtual_size} bytes is too large"
    if header.l1_entries > MAX_L1_ENTRIES:
        yield f"an L1 table of {header.l1_entries} entries is too large"
    if header.l1_entries < header.l1_in_use:
        yield "the L1 table is too small for the virtual size"
    if header.l1_offset % header.cluster_size or header.snapshots_offset % header.cluster_size:
        yield "a table is not aligned to a cluster"
    if header.l1_offset + header.l1_entries * 8 > file_size:
        yield "the L1 table lies outside the file"
    if header.backing_offset > header.cluster_size:
        yield "the backing file name lies outside the header"
    if header.snapshots > MAX_SNAPSHOTS:
        yield f"{header.snapshots} snapshots are too many"


def _extensions(file: ImageFile, header: Header) -> Iterator[tuple[int, tuple[int, int]]]:
    """Type, and (offset, length) of its data, of each header extension."""
    offset, end = header.length, header.backing_offset or header.cluster_size
    for _ in range(MAX_EXTENSIONS):
        if offset + EXTENSION.size > end:
            return
        kind, length = EXTENSION.unpack(file.read(offset, EXTENSION.size, "a header extension"))
        if kind == END:
            return
        offset += EXTENSION.size
        if length > end - offset:
            raise file.malformed(f"header extension {kind:#x} is too long")
        yield kind, (offset, length)
        offset += -(-length // 8) * 8
    raise file.malformed(f"has over {MAX_EXTENSIONS} header extensions")


def _backing(file: ImageFile, header: Header) -> str | None:
    if not header.backing_offset:
        return None
    if header.backing_length > min(MAX_BACKING_NAME, header.cluster_size - header.backing_offset):
        raise file.malformed("the backing file name is too long")
    return file.text(header.backing_offset, header.backing_length, "the backing file name") or None


def _backing_format(file: ImageFile, extensions: dict[int, tuple[int, int]]) -> str | None:
    offset, length = extensions.get(BACKING_FORMAT, (0, 0))
    if length > MAX_BACKING_FORMAT:
        raise file.malformed("the backing format is too long")
    return file.text(offset, length, "the backing format") or None


def snapshot_entries(file: ImageFile, header: Header) -> Iterator[SnapshotEntry]:
    """The snapshot table, entry by entry. Raises ChainError."""
    offset, end = header.snapshots_offset, header.snapshots_offset + MAX_TABLE
    for _ in range(header.snapshots):
        entry = SNAPSHOT.unpack(file.read(offset, SNAPSHOT.size, "the snapshot table"))
        l1_offset, l1_entries, id_length, tag_length, seconds, _, _, vm_state, extra = entry
        offset += SNAPSHOT.size
        if extra > MAX_SNAPSHOT_EXTRA or offset + extra + id_length + tag_length > end:
            raise file.malformed("the snapshot table is too large")
        virtual_size = None
        if extra >= 8:
            (vm_state,) = struct.unpack(">Q", file.read(offset, 8, "the snapshot table"))
        if extra >= 16:
            (virtual_size,) = struct.unpack(">Q", file.read(offset + 8, 8, "the snapshot table"))
        names = offset + extra
        snapshot = InternalSnapshot(
            id=file.text(names, id_length, "a snapshot's id"),
            tag=file.text(names + id_length, tag_length, "a snapshot's name"),
            created=seconds,
            vm_state_size=vm_state,
            virtual_size=virtual_size,
        )
        yield SnapshotEntry(snapshot, l1_offset, l1_entries)
        offset = -(-(names + id_length + tag_length) // 8) * 8


def _bitmaps(
    file: ImageFile, header: Header, extensions: dict[int, tuple[int, int]]
) -> Iterator[str]:
    """Names in the bitmap directory; as for QEMU, none if it is not known to be consistent."""
    at, length = extensions.get(BITMAPS, (0, 0))
    if not (at and header.autoclear & BITMAPS_CONSISTENT):
        return
    if length != BITMAPS_EXTENSION.size:
        raise file.malformed("the bitmaps extension has a wrong length")
    fields = BITMAPS_EXTENSION.unpack(file.read(at, length, "the bitmaps extension"))
    count, _, directory_size, offset = fields
    if not 1 <= count <= MAX_BITMAPS or directory_size > MAX_TABLE:
        raise file.malformed("the bitmap directory is too large")
    end = offset + directory_size
    for _ in range(count):
        entry = BITMAP.unpack(file.read(offset, BITMAP.size, "the bitmap directory"))
        name_length, extra = entry[-2:]
        name = offset + BITMAP.size + extra
        offset = -(-(name + name_length) // 8) * 8
        if offset > end:
            raise file.malformed("the bitmap directory is longer than it says")
        yield file.text(name, name_length, "a bitmap's name")


def is_corrupt(fd: int) -> bool:
    """Whether QEMU refuses to write to it. Raises ChainError if it is no qcow2 image."""
    return bool(_incompatible(fd) & CORRUPT)


def _incompatible(fd: int) -> int:
    """The feature bits; of version 2, none. The rest of the header may be half-written."""
    data = os.pread(fd, INCOMPATIBLE_OFFSET + 8, 0)
    if len(data) < INCOMPATIBLE_OFFSET + 8 or data[:4] != MAGIC:
        raise ChainError(f"{_name(fd)}: is not a qcow2 image", remedy="run imgtool recover")
    return 0 if data[4:8] == b"\0\0\0\2" else int.from_bytes(data[INCOMPATIBLE_OFFSET:], "big")


def _name(fd: int) -> Path:
    return Path(f"/proc/self/fd/{fd}").readlink()
