"""Snapshots of a domain: what is asked for and what is recorded (`<domainsnapshot>`)."""

from __future__ import annotations

from dataclasses import dataclass

from imgtool.model.domain import SnapshotMode


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskSpec:
    """A diskspec word by word, as virsh would write it into XML. None: not given."""

    name: str | None  # None: the whole diskspec is empty
    snapshot: str | None = None
    driver: str | None = None
    stype: str | None = None  # file, block
    file: str | None = None
    mirror: str | None = None  # not virsh's: the second overlay, elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDisk:
    """One `<disk>` of a `<domainsnapshot>`."""

    name: str  # target, or an absolute source path in input
    mode: SnapshotMode | None = None
    type: str = "file"  # file, block, network
    driver: str = ""  # format of the overlay, as written
    driver_extra: bytes = b""  # children of <driver>, as they came: <metadata_cache>
    source: str = ""  # the overlay's path, as written
    location: tuple[tuple[str, str], ...] = ()  # further attributes of <source>: protocol, ...
    extra: bytes = b""  # further children of <source>, kept as they came
    deleting: bool = False  # libvirt was interrupted while it deleted this snapshot
    mirror: str = ""  # path of the second overlay, elsewhere; libvirt knows of none
    spec: DiskSpec | None = None  # where it came from a command line


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRequest:
    """What `snapshot-create` reads from its XML file and `-create-as` from its arguments."""

    name: str = ""  # empty: the creation time in seconds
    description: str | None = None
    memory: str | None = None  # no, internal, external; None where absent
    memory_file: str | None = None
    disks: tuple[SnapshotDisk, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A recorded snapshot, as `snapshot-dumpxml` shows it."""

    name: str
    created: int  # seconds since the epoch
    state: str = "shutoff"
    description: str | None = None
    parent: str | None = None
    memory: str | None = "no"
    memory_file: str | None = None
    disks: tuple[SnapshotDisk, ...] = ()
    revert_disks: tuple[SnapshotDisk, ...] = ()  # overlays in use since a revert
    domain_xml: bytes = b""  # the whole <domain> of before
    inactive_xml: bytes = b""  # <inactiveDomain> of a domain that ran
    cookie: bytes = b""  # <cookie> of a domain that ran
    active: bool | None = None  # libvirt's own mark of the current one, in its files only
    transaction: str = ""  # id of the transaction that recorded it; empty: not ours

    @property
    def location(self) -> str:
        """virsh's word: external if any disk or the memory is."""
        external = self.memory == "external" or any(
            disk.mode is SnapshotMode.EXTERNAL for disk in self.disks
        )
        return "external" if external else "internal"
