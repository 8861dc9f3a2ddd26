"""Which combinations of domain, memory, disk and --disk-only make a snapshot (libvirt, 2012).

One deviation, as in today's virsh: a stopped domain with --disk-only and no mode given for a disk
gets an external snapshot of it, not an internal one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

Mode = Literal["omit", "no", "int", "ext"]
_ANY: frozenset[bool] = frozenset({False, True})
_ON: frozenset[bool] = frozenset({True})
_OFF: frozenset[bool] = frozenset({False})


class Outcome(StrEnum):
    """What a row of the table comes to."""

    SNAPSHOT = "a snapshot"
    INVALID = "invalid"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what is asked for, and what it comes to."""

    online: bool
    memory: frozenset[str]
    disk: frozenset[str]
    disk_only: frozenset[bool]
    outcome: Outcome
    result: str  # for people
    virsh: str = ""  # online: options of virsh snapshot-create-as that do it, or come nearest


def _row(
    domain: str,
    memory: str,
    disk: str,
    disk_only: frozenset[bool],
    outcome: Outcome,
    result: str,
    virsh: str = "",
) -> Row:
    return Row(
        domain == "online",
        frozenset(memory.split("/")),
        frozenset(disk.split("/")),
        disk_only,
        outcome,
        result,
        virsh,
    )


_S, _I, _U = Outcome.SNAPSHOT, Outcome.INVALID, Outcome.UNSUPPORTED
_DISKS = "--disk-only"
_ONE_DISK = "--disk-only --diskspec DISK,snapshot=external"
_MEMORY = "--memspec FILE,snapshot=external"
TABLE: tuple[Row, ...] = (
    _row("offline", "omit", "omit", _OFF, _S, "memory=no disk=int"),
    _row("offline", "omit", "omit", _ON, _S, "memory=no disk=ext"),  # 2012: int
    _row("offline", "no", "omit", _OFF, _S, "memory=no disk=int"),
    _row("offline", "no", "omit", _ON, _S, "memory=no disk=ext"),  # 2012: int
    _row("offline", "omit/no", "no", _ANY, _I, "nothing to snapshot"),
    _row("offline", "omit/no", "int", _ANY, _S, "memory=no disk=int"),
    _row("offline", "omit/no", "ext", _ANY, _S, "memory=no disk=ext"),
    _row("offline", "int/ext", "omit/no/int/ext", _ANY, _I, "no memory to save"),
    _row("online", "omit", "omit/int", _OFF, _S, "memory=int disk=int, via savevm"),
    _row("online", "omit", "omit/ext", _ON, _S, "memory=no disk=ext, via transaction", _DISKS),
    _row("online", "omit", "no/ext", _OFF, _U, "internal memory without disks", _MEMORY),
    _row("online", "omit", "no", _ON, _I, "nothing to snapshot", _ONE_DISK),
    _row("online", "omit", "int", _ON, _U, "internal disks without memory"),
    _row("online", "no", "omit/ext", _ANY, _S, "memory=no disk=ext, via transaction", _DISKS),
    _row("online", "no", "no", _ANY, _I, "nothing to snapshot", _ONE_DISK),
    _row("online", "no", "int", _ANY, _U, "internal disks without memory"),
    _row("online", "int/ext", "omit/no/int/ext", _ON, _I, "disk-only against memory", _DISKS),
    _row("online", "int", "omit/int", _OFF, _S, "memory=int disk=int, via savevm"),
    _row("online", "int", "no/ext", _OFF, _U, "internal memory without disks", _MEMORY),
    _row(
        *("online", "ext", "omit/ext", _OFF, _S),
        *("memory=ext disk=ext, via migrate + transaction", _MEMORY),
    ),
    _row(
        *("online", "ext", "no", _OFF, _S),
        *("memory=ext disk=no, via migrate", f"{_MEMORY} --diskspec DISK,snapshot=no"),
    ),
    _row("online", "ext", "int", _OFF, _U, "external memory with internal disks", _MEMORY),
)


def look_up(*, online: bool, memory: Mode, disk: Mode, disk_only: bool) -> Row:
    """The one row that a request falls under."""
    return next(
        row
        for row in TABLE
        if row.online == online
        and memory in row.memory
        and disk in row.disk
        and disk_only in row.disk_only
    )
