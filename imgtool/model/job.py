"""Copy jobs: the disks of one `blockcopy`, which outlive the process that began them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from imgtool.model.image import Format, Identity, Qcow2Features


class Phase(StrEnum):
    """How far a job is: QEMU's and libvirt's two phases."""

    COPYING = "copying"  # the destination is worth nothing yet
    READY = "ready"  # the destination is a whole copy; the domain may move to it


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """An image as it was when a job looked at it."""

    path: Path  # links resolved
    identity: Identity
    block_device: bool = False  # whose times say nothing of its data

    def is_still(self, now: Identity) -> bool:
        """Whether it is that file, not written to since. Device numbers change at boot.

        Of a block device, only its size is known: whoever asks must look at its data.
        """
        then = self.identity
        if self.block_device:
            return then.size == now.size
        return (then.inode, then.size, then.mtime_ns) == (now.inode, now.size, now.mtime_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskCopy:
    """One disk of a job: source -> dest."""

    target: str
    source: Path  # as the domain XML, or the pool of a volume, spells it
    source_format: Format
    layers: tuple[Layer, ...]  # the chain that is copied, base first
    dest: Path  # as it was asked for, absolute
    staged: Path  # where the bytes are written: beside `dest`, or it is `dest` itself (`reuse`)
    format: Format  # of `dest`
    backing: str = ""  # what `dest` records as its base; empty: it needs none
    backing_format: Format = Format.RAW  # of that base
    features: Qcow2Features
    bitmaps: bool = False  # those of the source are copied, too
    virtual_size: int  # bytes
    total: int  # bytes that are to be copied, at most
    shallow: bool = False
    reuse: bool = False  # somebody else has made `dest`: it is never removed
    block_device: bool = False  # `dest` is one
    copied: tuple[Layer, ...] = ()  # what was written, once it is whole, compared and synced

    @property
    def has_block_devices(self) -> bool:
        """Whether only the data can tell if source or copy were written to since."""
        return any(layer.block_device for layer in (*self.layers, *self.copied))

    @property
    def asked(self) -> tuple[str, Path, Format, bool, bool]:
        """What a request for the same copy has in common with this one."""
        return (self.target, self.dest, self.format, self.shallow, self.reuse)


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyJob:
    """The disks of one call, copied at one point in time, which pivot together or not at all."""

    id: str  # part of the staged names
    store: str  # URI
    domain: str
    uuid: str
    phase: Phase
    disks: tuple[DiskCopy, ...]
    pivot: str = ""  # id of the last transaction that was begun to move the domain

    def disk(self, target: str) -> DiskCopy | None:
        return next((disk for disk in self.disks if disk.target == target), None)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(disk.target for disk in self.disks)
