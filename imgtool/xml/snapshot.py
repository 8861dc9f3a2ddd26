"""Read `<domainsnapshot>`: what is asked for, and what is recorded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import PurePosixPath

from lxml import etree

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import XmlError
from imgtool.model.snapshot import Snapshot, SnapshotDisk, SnapshotRequest
from imgtool.xml.domain import STATE
from imgtool.xml.mirrors import recorded_mirrors
from imgtool.xml.patch import RECORDED_BY
from imgtool.xml.schema import validate
from imgtool.xml.snapshot_text import format_snapshot
from imgtool.xml.spans import Document

__all__ = ["format_snapshot", "parse_redefine", "parse_request", "parse_snapshot", "validate"]

ROOT = "domainsnapshot"
OFFLINE_STATES = frozenset({"shutoff", "disk-snapshot"})
STATES = OFFLINE_STATES | {"running", "blocked", "paused", "shutdown", "crashed", "pmsuspended"}
DRIVERS = frozenset(
    {
        *("raw", "dir", "bochs", "cloop", "dmg", "iso", "vpc", "vdi", "fat", "vhd", "ploop"),
        *("cow", "qcow", "qcow2", "qed", "vmdk"),
    }
)
DISK_TYPES = frozenset({"file", "block", "network", "nvme", "vhostuser", "vhostvdpa"})
_INTEGER = re.compile(r"\s*[+-]?[0-9]+")


def parse_request(xml: bytes, *, where: str) -> SnapshotRequest:
    """What `snapshot-create` is asked to do. What libvirt sets itself is not looked at.

    Raises XmlError with libvirt's words for what libvirt's parser refuses. What depends on the
    domain (unknown disks, disks named twice, memory of a stopped domain) is not looked at.
    """
    document = Document(xml, root=ROOT, where=where)
    memory, memory_file = _memory(document)
    return SnapshotRequest(
        name=_text(document, "name") or "",
        description=_text(document, "description"),
        memory=memory,
        memory_file=memory_file,
        disks=_strict_disks(document),
    )


def parse_redefine(xml: bytes, *, where: str) -> Snapshot:
    """A record that a user hands in: `parse_snapshot`, with what libvirt demands of disks.

    Raises XmlError with libvirt's words.
    """
    snapshot = parse_snapshot(xml, where=where)
    _strict_disks(Document(xml, root=ROOT, where=where))
    if snapshot.state in OFFLINE_STATES and snapshot.memory != "no":
        raise XmlError(
            f"{where}: memory state cannot be saved with offline or disk-only snapshot",
            remedy="use <memory snapshot='no'/>",
        )
    return snapshot


def parse_snapshot(xml: bytes, *, where: str) -> Snapshot:
    """A record, ours or libvirt's. Raises XmlError: no name, creationTime or state."""
    document = Document(xml, root=ROOT, where=where)
    name = _text(document, "name")
    if name is None:
        raise XmlError(f"{where}: a redefined snapshot must have a name", remedy="add <name>")
    created, state = _created(document), _state(document)
    memory, memory_file = _memory(document)
    domain = document.root.find("domain")
    ours = None if domain is None else domain.find(f"metadata/{STATE}")
    active = _text(document, "active")
    mirrors = recorded_mirrors(document.root)
    return Snapshot(
        name=name,
        created=created,
        state=state,
        description=_text(document, "description"),
        parent=_text(document, "parent/name"),
        memory=memory or ("no" if state in OFFLINE_STATES else "internal"),
        memory_file=memory_file,
        disks=tuple(
            replace(disk, mirror=mirrors.get(disk.name, disk.mirror))
            for disk in _disks(document, "disks")
        ),
        revert_disks=_disks(document, "revertDisks"),
        domain_xml=_verbatim(document, domain),
        inactive_xml=_verbatim(document, document.root.find("inactiveDomain")),
        cookie=_verbatim(document, document.root.find("cookie")),
        active=None if active is None else active.strip() != "0",
        transaction="" if ours is None else ours.get(RECORDED_BY, ""),
    )


def _text(document: Document, path: str) -> str | None:
    """The text of an element, comments apart; None where it is empty, as for libvirt."""
    element = document.root.find(path)
    return None if element is None else str(element.xpath("string(.)")) or None


def _created(document: Document) -> int:
    text = _text(document, "creationTime")
    if text is None or not _INTEGER.fullmatch(text):
        raise XmlError(
            f"{document.where}: missing creationTime from existing snapshot",
            remedy="add <creationTime> with seconds since 1970",
        )
    return int(text)


def _state(document: Document) -> str:
    state = _text(document, "state")
    if state is None:
        raise XmlError(
            f"{document.where}: missing state from existing snapshot",
            remedy="add <state>shutoff</state>",
        )
    if state not in STATES:
        raise XmlError(
            f"{document.where}: Invalid state {state!r} in domain snapshot XML",
            remedy="a stopped domain's snapshot says shutoff",
        )
    return state


def _memory(document: Document) -> tuple[str | None, str | None]:
    """Mode and file of `<memory>`; a file alone means external."""
    element, where = document.root.find("memory"), document.where
    if element is None:
        return None, None
    file, text = element.get("file"), element.get("snapshot")
    default = None if file is None else SnapshotMode.EXTERNAL
    mode = _mode(text, "memory", where) if text is not None else default
    if mode is SnapshotMode.MANUAL:
        problem = "'manual' memory snapshot mode not supported"
    elif file is not None and mode is not SnapshotMode.EXTERNAL:
        problem = f"memory filename '{file}' requires external snapshot"
    elif file is None and mode is SnapshotMode.EXTERNAL:
        problem = "external memory snapshots require a filename"
    elif file is not None and not PurePosixPath(file).is_absolute():
        problem = f"memory snapshot file path ({file}) must be absolute"
    else:
        return (None if mode is None else mode.value), file
    raise XmlError(f"{where}: {problem}", remedy="mend <memory>")


def _mode(text: str, element: str, where: str) -> SnapshotMode:
    try:
        return SnapshotMode(text)
    except ValueError as error:
        raise XmlError(
            f"{where}: Invalid value for attribute 'snapshot' in element '{element}': '{text}'.",
            remedy="no, internal or external",
        ) from error


def _disks(document: Document, group: str) -> tuple[SnapshotDisk, ...]:
    found = document.root.find(group)
    children = () if found is None else found.iterchildren("*")
    return tuple(_disk(document, child) for child in children)


def _strict_disks(document: Document) -> tuple[SnapshotDisk, ...]:
    """The disks of a request: what a record may hold, a request may not."""
    disks = _disks(document, "disks")
    for disk in disks:
        if disk.type not in DISK_TYPES:
            problem = f"unsupported disk snapshot type '{disk.type}'"
        elif disk.driver and disk.driver not in DRIVERS:
            problem = f"unknown disk snapshot driver '{disk.driver}'"
        elif disk.source and not PurePosixPath(disk.source).is_absolute():
            problem = f"disk snapshot image path '{disk.source}' must be absolute"
        elif disk.mirror and not PurePosixPath(disk.mirror).is_absolute():
            problem = f"disk snapshot mirror path '{disk.mirror}' must be absolute"
        elif disk.type == "network" and disk.location and "protocol" not in dict(disk.location):
            problem = "Missing required attribute 'protocol' in element 'source'"
        else:
            continue
        raise XmlError(f"{document.where}: disk {disk.name!r}: {problem}", remedy="mend <disk>")
    return disks


def _disk(document: Document, element: etree._Element) -> SnapshotDisk:
    """A `<disk>`. One with a driver, a source or a mirror but without a mode is external."""
    name, where = element.get("name"), document.where
    if name is None:
        raise XmlError(f"{where}: missing name from disk snapshot element", remedy="add name=")
    driver, source = element.find("driver"), element.find("source")
    kind, text = element.get("type", "file"), element.get("snapshot")
    key = {"file": "file", "block": "dev"}.get(kind)
    attributes = {} if source is None else {str(k): str(v) for k, v in source.attrib.items()}
    path = attributes.pop(key, "") if key else ""
    format_name = "" if driver is None else driver.get("type", "")
    location = tuple(attributes.items())
    mirror = element.find("mirror")
    second = "" if mirror is None else mirror.get("file", "")
    implied = SnapshotMode.EXTERNAL if format_name or path or location or second else None
    return SnapshotDisk(
        name=name,
        mode=implied if text is None else _mode(text, "disk", where),
        type=kind,
        driver=format_name,
        driver_extra=_inner(document, driver),
        source=path,
        location=location,
        extra=_inner(document, source),
        deleting=element.find("snapshotDeleteInProgress") is not None,
        mirror=second,
    )


def _verbatim(document: Document, element: etree._Element | None) -> bytes:
    """An element as it was written. Where its parents declare namespaces, it takes them along."""
    if element is None:
        return b""
    parent = element.getparent()
    if parent is not None and parent.nsmap:
        return etree.tostring(element, encoding="UTF-8", xml_declaration=False, with_tail=False)
    return document.text(element)


def _inner(document: Document, element: etree._Element | None) -> bytes:
    """The children of an element, as they were written, from the first to the last."""
    children = [] if element is None else list(element.iterchildren("*"))
    if element is None or not children:
        return b""
    if element.nsmap:
        return b"".join(_verbatim(document, child) for child in children)
    return document.xml[document.span(children[0]).start : document.span(children[-1]).end]
