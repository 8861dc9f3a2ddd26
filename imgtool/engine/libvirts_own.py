"""What libvirt's own files say, and libvirt does not: marks, odd names, unwritten disks."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imgtool.engine.glance import Glance
from imgtool.engine.world import World
from imgtool.host.files import names_below
from imgtool.model.errors import ImgtoolError
from imgtool.plan.finding import Finding, Severity
from imgtool.stores.libvirt_files import place_of
from imgtool.xml.domain import parse_domain
from imgtool.xml.snapshot import parse_snapshot

MAX_XML = 16 * 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class LibvirtsOwn:
    """Nothing of it where the store is no libvirt, or nobody can tell where its files are."""

    claims: tuple[str, ...] = ()  # snapshots whose files say that they are the current one
    odd: tuple[Finding, ...] = ()
    on_disk: Mapping[str, Path] = field(default_factory=dict)  # sources that differ from memory's
    file: Path | None = None  # of the domain's XML


def libvirts_own(glance: Glance, world: World) -> LibvirtsOwn:
    """Read the files of one domain. Raises nothing."""
    place = None if world.store.uri.startswith("dir:") else place_of(world.store.uri)
    head = glance.head
    if place is None or head is None:
        return LibvirtsOwn()
    claims, odd = [], []
    folder = place.snapshots / glance.name
    for name in names_below(folder):
        path = folder / name
        try:
            record = parse_snapshot(world.files.read(path, limit=MAX_XML), where=str(path))
        except (ImgtoolError, OSError) as error:
            odd.append(_ignored(path, f"cannot be read: {error}"))
            continue
        if name != f"{record.name}.xml" or record.name not in glance.held:
            odd.append(_ignored(path, f"is a record of {record.name} that libvirt does not list"))
        elif record.active:
            claims.append(record.name)
    own_file = place.domains / f"{glance.name}.xml"
    return LibvirtsOwn(
        claims=tuple(claims),
        odd=tuple(odd),
        on_disk=_differing(own_file, glance, world),
        file=own_file,
    )


def _ignored(path: Path, what: str) -> Finding:
    return Finding(
        severity=Severity.WARNING,
        kind="record-ignored",
        message=f"{path} {what}; libvirt may take it for one when it starts",
        remedy=f"look at it, then: {shlex.join(['rm', '--', str(path)])}",
        path=path,
    )


def _differing(own_file: Path, glance: Glance, world: World) -> dict[str, Path]:
    try:
        xml = world.files.read(own_file, limit=MAX_XML)
        written = parse_domain(xml, where=os.fspath(own_file))
    except (ImgtoolError, OSError):
        return {}
    if glance.head is None or written.uuid != glance.head.domain.uuid:
        return {}  # the file of another libvirt
    memory = {disk.target: disk.source for disk in glance.head.domain.disks}
    return {
        disk.target: disk.source
        for disk in written.disks
        if disk.source is not None and memory.get(disk.target) not in (None, disk.source)
    }
