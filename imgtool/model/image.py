"""Images and backing chains."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Format(StrEnum):
    """Image formats that imgtool reads. Recorded somewhere, never probed."""

    RAW = "raw"
    QCOW2 = "qcow2"
    QED = "qed"
    VMDK = "vmdk"

    @classmethod
    def parse(cls, name: str) -> Format | None:
        """The format of that name, or None where imgtool does not know it."""
        try:
            return cls(name)
        except ValueError:
            return None


@dataclass(frozen=True, slots=True)
class Identity:
    """Which file this is and whether it was written to since."""

    device: int
    inode: int
    size: int  # bytes; of a block device, its capacity
    mtime_ns: int

    @property
    def file(self) -> tuple[int, int]:
        """The same for every name of one file."""
        return (self.device, self.inode)


@dataclass(frozen=True, slots=True)
class InternalSnapshot:
    """One entry of a qcow2 image's snapshot table."""

    id: str
    tag: str
    created: int  # seconds since the epoch
    vm_state_size: int = 0  # bytes
    virtual_size: int | None = (
        None  # bytes that the guest saw then; None: not recorded, as by very old QEMUs
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Qcow2Features:
    """What an overlay takes over from its base."""

    cluster_size: int = 65536  # bytes
    compat: str = "1.1"  # '0.10' is version 2
    extended_l2: bool = False
    lazy_refcounts: bool = False
    refcount_bits: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One layer of a chain, as its header and its inode describe it."""

    path: Path  # absolute, symbolic links resolved
    name: Path | None = None  # as the domain XML or the layer above spells it; None: as `path`
    format: Format
    virtual_size: int  # bytes the guest sees
    allocation: int  # bytes on disk
    identity: Identity
    block_device: bool = False
    backing: str | None = None  # as recorded in the header
    backing_format: str | None = None  # as recorded in the header
    features: Qcow2Features | None = None  # qcow2 only
    snapshots: tuple[InternalSnapshot, ...] = ()
    bitmaps: tuple[str, ...] = ()
    corrupt: bool = False
    dirty: bool = False
    encrypted: bool = False
    data_file: bool = False

    @property
    def spelled(self) -> Path:
        """The path by which QEMU opens this image; relative backing names start from its folder."""
        return self.name or self.path


@dataclass(frozen=True, slots=True)
class Chain:
    """base <- mid <- top. The last image is the active layer."""

    images: tuple[Image, ...]

    def __post_init__(self) -> None:
        if not self.images:
            raise ValueError("a chain has at least one image")

    @property
    def active(self) -> Image:
        return self.images[-1]

    @property
    def base(self) -> Image:
        return self.images[0]
