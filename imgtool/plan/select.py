"""Which disks a snapshot takes, and how: the request, the domain's defaults, the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import Disk, Domain, DomainState, SnapshotMode
from imgtool.model.errors import (
    BadRequestError,
    DomainActiveError,
    NotFoundError,
    UnsupportedError,
)
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.plan.table import Mode, Outcome, Row, look_up

_SHORT: Mapping[SnapshotMode | None, Mode] = {
    None: "omit",
    SnapshotMode.NO: "no",
    SnapshotMode.INTERNAL: "int",
    SnapshotMode.EXTERNAL: "ext",
}
_MEMORY: Mapping[str | None, Mode] = {
    None: "omit",
    "no": "no",
    "internal": "int",
    "external": "ext",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How one disk takes part."""

    disk: Disk
    mode: SnapshotMode
    file: Path | None = None  # the overlay that was asked for; None: a generated name
    asked: SnapshotDisk | None = None

    @property
    def mirror(self) -> Path | None:
        """The second overlay that was asked for."""
        return Path(self.asked.mirror) if self.asked and self.asked.mirror else None


def select(
    request: SnapshotRequest, domain: Domain, state: DomainState, *, disk_only: bool
) -> tuple[Choice, ...]:
    """One choice per disk of the domain, in domain order.

    Raises DomainActiveError for a domain that is not stopped (naming the virsh command),
    BadRequestError for what the table calls invalid, NotFoundError and UnsupportedError by disk.
    """
    asked = _by_disk(request, domain)
    memory = _MEMORY[request.memory]
    modes = {disk.target: _own_mode(disk, asked.get(disk.target)) for disk in domain.disks}
    overall = _overall(modes.values())
    row = look_up(
        online=state is not DomainState.SHUTOFF, memory=memory, disk=overall, disk_only=disk_only
    )
    if row.online:
        raise _active(domain, state, row)
    if row.outcome is not Outcome.SNAPSHOT:
        raise BadRequestError(
            f"{domain.name}: {row.result}: the domain is stopped"
            if memory in ("int", "ext")
            else f"{domain.name}: {row.result}",
            remedy="name a disk with snapshot=internal or snapshot=external"
            if overall == "no"
            else "leave --memspec out",
        )
    default = SnapshotMode.EXTERNAL if disk_only else SnapshotMode.INTERNAL
    choices = []
    for disk in domain.disks:
        mode = modes[disk.target] or default
        spec = asked.get(disk.target)
        file = Path(spec.source) if spec and spec.source else None
        choice = Choice(disk=disk, mode=mode, file=file, asked=spec)
        if mode is not SnapshotMode.NO:
            _require_possible(choice)
        choices.append(choice)
    return tuple(choices)


def _by_disk(request: SnapshotRequest, domain: Domain) -> dict[str, SnapshotDisk]:
    found: dict[str, SnapshotDisk] = {}
    for spec in request.disks:
        disk = _find(spec.name, domain)
        if disk is None:
            raise NotFoundError(f"no disk named {spec.name!r}", remedy="see imgtool domblklist")
        if disk.target in found:
            raise BadRequestError(f"disk {disk.target!r} specified twice", remedy="name it once")
        found[disk.target] = spec
    return found


def _find(name: str, domain: Domain) -> Disk | None:
    if not name.startswith("/"):
        return domain.disk(name)
    matches = [disk for disk in domain.disks if disk.source == Path(name)]
    return matches[0] if len(matches) == 1 else None  # as libvirt: an ambiguous path is unknown


def _own_mode(disk: Disk, spec: SnapshotDisk | None) -> SnapshotMode | None:
    """The mode that the request or the domain says; None where neither does."""
    if spec is not None and spec.mode is not None:
        if spec.mode is not SnapshotMode.EXTERNAL and (spec.source or spec.driver or spec.mirror):
            raise BadRequestError(
                f"file {(spec.source or spec.mirror)!r} for disk {disk.target!r} requires use of "
                "external snapshot mode",
                remedy=f"--diskspec {disk.target},snapshot=external,file=PATH",
            )
        return spec.mode
    if spec is not None and (spec.source or spec.driver or spec.mirror):
        return SnapshotMode.EXTERNAL
    if disk.snapshot is not None:
        return disk.snapshot
    if disk.readonly or disk.empty or disk.device in ("cdrom", "floppy"):
        return SnapshotMode.NO
    return None


def _overall(modes: Iterable[SnapshotMode | None]) -> Mode:
    """The table's word for all disks together; what is mixed counts as external."""
    found = {_SHORT.get(mode, "ext") for mode in modes}
    order: tuple[Mode, ...] = ("ext", "int", "omit")
    return next((word for word in order if word in found), "no")


def _active(domain: Domain, state: DomainState, row: Row) -> DomainActiveError:
    if state is DomainState.SAVED:
        return DomainActiveError(
            f"{domain.name} has a managed save image, which its disks must go on matching",
            remedy=f"start it, or drop the image: virsh managedsave-remove {domain.name}",
        )
    if state is DomainState.TRANSIENT:
        return DomainActiveError(
            f"{domain.name} has no persistent definition",
            remedy=f"virsh dumpxml {domain.name} > FILE and virsh define FILE",
        )
    command = f"virsh snapshot-create-as {domain.name} {row.virsh}".rstrip()
    if row.outcome is Outcome.SNAPSHOT:
        return DomainActiveError(
            f"{domain.name} is {state}; imgtool works on stopped domains ({row.result})",
            remedy=f"{command}, or virsh shutdown {domain.name} first",
        )
    return DomainActiveError(
        f"{domain.name} is {state}, and so this is {row.outcome}: {row.result}",
        remedy=f"the nearest is {command}; or virsh shutdown {domain.name} first",
    )


def _require_possible(choice: Choice) -> None:
    disk = choice.disk
    reason = why_not(disk)
    if choice.mode is SnapshotMode.MANUAL:
        reason = "snapshot=manual is for a program that pauses a running domain"
    if not reason and choice.mode is SnapshotMode.INTERNAL and disk.format_name != "qcow2":
        raise UnsupportedError(
            f"{disk.target}: internal snapshot unsupported for storage type {disk.format_name}",
            remedy=f"take an external one: --diskspec {disk.target},snapshot=external",
        )
    spec = choice.asked
    if not reason and spec is not None and spec.driver not in ("", "qcow2"):
        reason = f"an overlay of format {spec.driver} is not made by imgtool; use qcow2"
    if not reason and spec is not None and spec.source and not spec.source.startswith("/"):
        reason = f"disk snapshot image path {spec.source!r} must be absolute"
    if not reason and spec is not None and spec.mirror and not spec.mirror.startswith("/"):
        reason = f"disk snapshot mirror path {spec.mirror!r} must be absolute"
    if reason:
        raise UnsupportedError(
            f"{disk.target}: {reason}", remedy=f"leave it out: --diskspec {disk.target},snapshot=no"
        )


def why_not(disk: Disk) -> str:
    """Why imgtool takes no snapshot of such a disk; empty where it does."""
    if disk.type not in ("file", "block", "volume"):
        kind = f"{disk.type} ({disk.protocol})" if disk.protocol else disk.type
        return f"{kind} disks are not on this host's file systems"
    if disk.empty:
        return "the drive is empty"
    reasons = {
        "a read-only disk cannot change": disk.readonly,
        "a cdrom cannot change": disk.device == "cdrom",
        "device='lun' needs the block device itself": disk.device == "lun",
        "a transient disk forgets its changes anyway": disk.transient,
        "a shareable disk may be in use by another domain": disk.shareable,
        "the disk is encrypted, which imgtool cannot carry over yet": disk.encrypted,
        "<slices> make the image a part of its file": disk.sliced,
        f"format {disk.format_name} is unknown to imgtool": disk.format is None,
    }
    return next((reason for reason, holds in reasons.items() if holds), "")
