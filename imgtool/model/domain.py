"""Domains and their disks, as the inactive domain XML describes them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from imgtool.model.image import Format


class SnapshotMode(StrEnum):
    """How a disk takes part in a snapshot (`<disk snapshot=...>`)."""

    NO = "no"
    INTERNAL = "internal"
    EXTERNAL = "external"
    MANUAL = "manual"


class DomainState(StrEnum):
    """What the store says of the domain. Only `SHUTOFF` may be changed."""

    SHUTOFF = "shutoff"
    RUNNING = "running"
    PAUSED = "paused"
    SAVED = "saved"  # shut off with a managed save image
    TRANSIENT = "transient"  # has no persistent definition


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """One `<disk>` of a domain."""

    target: str  # 'vda'
    device: str = "disk"  # disk, lun, cdrom, floppy
    type: str = "file"  # file, block, network, volume, nvme, vhostuser, vhostvdpa, dir
    source: Path | None = None  # local path; None: an empty drive or no local source
    format: Format | None = None  # None: a <driver type> that imgtool does not know
    format_name: str = "raw"  # <driver type> as written; absent means raw, as for libvirt
    protocol: str = ""  # of a network disk
    readonly: bool = False
    shareable: bool = False
    transient: bool = False
    encrypted: bool = False
    sliced: bool = False  # <source><slices>: the image is a part of its file
    snapshot: SnapshotMode | None = None  # the domain's own default for this disk
    pool: str = ""  # of a volume disk
    volume: str = ""  # of a volume disk

    @property
    def empty(self) -> bool:
        return self.type in ("file", "block", "dir") and self.source is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """The parts of a domain's XML that imgtool acts upon."""

    name: str
    uuid: str
    disks: tuple[Disk, ...]
    transaction: str = ""  # id of the last transaction that pivoted this domain

    def disk(self, target: str) -> Disk | None:
        return next((disk for disk in self.disks if disk.target == target), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A domain's inactive XML at one moment, and whether the store calls it stopped."""

    domain: Domain
    xml: bytes
    digest: str  # sha256 of xml, hexadecimal
    state: DomainState = DomainState.SHUTOFF
