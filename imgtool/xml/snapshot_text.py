"""Write `<domainsnapshot>` in libvirt's order, indentation and quotes."""

from __future__ import annotations

from collections.abc import Iterator

from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.xml import escape
from imgtool.xml.spans import Document


def format_snapshot(snapshot: Snapshot) -> bytes:
    """The record as XML, in UTF-8, with a line break at its end.

    Domains and cookies are embedded byte for byte; what stands around their root element (an XML
    declaration, comments) is left out. `Snapshot.transaction` is not written: see
    `patch.stamp_record`; nor are mirrors, of which libvirt knows nothing. Raises XmlError: a text
    that XML cannot hold, an embedded document that is not well-formed.
    """
    where = f"snapshot {snapshot.name}"
    pieces = [b"<domainsnapshot>\n"]
    pieces += [f"{line}\n".encode() for line in _head(snapshot, where)]
    pieces += [f"{line}\n".encode() for line in _memory(snapshot, where)]
    for group, disks in (("disks", snapshot.disks), ("revertDisks", snapshot.revert_disks)):
        pieces += _disks(group, disks, where)
    for root, xml in (
        ("domain", snapshot.domain_xml),
        ("inactiveDomain", snapshot.inactive_xml),
        ("cookie", snapshot.cookie),
    ):
        pieces += _embedded(root, xml, where)
    if snapshot.active is not None:
        pieces.append(b"  <active>%d</active>\n" % snapshot.active)
    return b"".join([*pieces, b"</domainsnapshot>\n"])


def _head(snapshot: Snapshot, where: str) -> Iterator[str]:
    yield f"  <name>{escape.text(snapshot.name, where)}</name>"
    if snapshot.description is not None:
        yield f"  <description>{escape.text(snapshot.description, where)}</description>"
    yield f"  <state>{escape.text(snapshot.state, where)}</state>"
    if snapshot.parent is not None:
        yield "  <parent>"
        yield f"    <name>{escape.text(snapshot.parent, where)}</name>"
        yield "  </parent>"
    yield f"  <creationTime>{snapshot.created}</creationTime>"


def _memory(snapshot: Snapshot, where: str) -> Iterator[str]:
    if snapshot.memory is not None:
        file = snapshot.memory_file
        attribute = "" if file is None else f" file='{escape.attribute(file, where)}'"
        yield f"  <memory snapshot='{escape.attribute(snapshot.memory, where)}'{attribute}/>"


def _disks(group: str, disks: tuple[SnapshotDisk, ...], where: str) -> Iterator[bytes]:
    if disks:
        yield b"  <%s>\n" % group.encode()
        for disk in disks:
            yield from _disk(disk, where)
        yield b"  </%s>\n" % group.encode()


def _disk(disk: SnapshotDisk, where: str) -> Iterator[bytes]:
    tag = f"    <disk name='{escape.attribute(disk.name, where)}'"
    if disk.mode is not None:
        tag += f" snapshot='{disk.mode}'"
    driver = _element("driver", _pairs(("type", disk.driver)), disk.driver_extra, where)
    key = "dev" if disk.type == "block" else "file"
    pairs = (*_pairs((key, disk.source)), *disk.location)
    source = _element("source", pairs, disk.extra, where)
    if driver or source or disk.type != "file":
        tag += f" type='{escape.attribute(disk.type, where)}'"
    inside = driver + source
    if disk.deleting:
        inside += b"      <snapshotDeleteInProgress/>\n"
    if inside:
        yield tag.encode() + b">\n" + inside + b"    </disk>\n"
    else:
        yield tag.encode() + b"/>\n"


def _pairs(*pairs: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in pairs if pair[1])


def _element(
    name: str, attributes: tuple[tuple[str, str], ...], children: bytes, where: str
) -> bytes:
    """`<driver>` or `<source>` of a disk; nothing where there is nothing to say."""
    if not attributes and not children:
        return b""
    written = "".join(f" {key}='{escape.attribute(text, where)}'" for key, text in attributes)
    tag = f"      <{name}{written}".encode()
    if not children:
        return tag + b"/>\n"
    return tag + b">\n        " + children + b"\n      </%s>\n" % name.encode()


def _embedded(root: str, xml: bytes, where: str) -> Iterator[bytes]:
    if xml:
        document = Document(xml, root=root, where=f"{where}: <{root}>")
        yield b"  " + document.text(document.root) + b"\n"
