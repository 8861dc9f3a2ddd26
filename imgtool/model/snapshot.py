"""Snapshots of a domain: what is asked for and what is recorded (`<domainsnapshot>`)."""

from __future__ import annotations

from dataclasses import dataclass

from imgtool.model.domain import SnapshotMode


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotDisk:
    """One `<disk>` of a `<domainsnapshot>`."""

    name: str  # target, or an absolute source path in input
    mode: SnapshotMode | None = None
    type: str = "file"  # file, block, network
    driver: str = ""  # format of the overlay, as written
    source: str = ""  # the overlay's path, as written
    extra: bytes = b""  # further children of <source>, kept as they came


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
    domain_xml: bytes = b""  # the whole <domain> of before
    transaction: str = ""  # id of the transaction that recorded it; empty: not ours

    @property
    def location(self) -> str:
        """virsh's word: external if any disk or the memory is."""
        external = self.memory == "external" or any(
            disk.mode is SnapshotMode.EXTERNAL for disk in self.disks
        )
        return "external" if external else "internal"
