"""Mirrors of snapshots: kept in our metadata element, since libvirt knows no `<mirror>`.

<domainsnapshot> <domain> <metadata>
  <imgtool:state ...><imgtool:mirror disk="vda" file="/there/new"/></imgtool:state>

People write and read them as `<mirror file='/there/new'/>` in the `<disk>` of a snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping

from lxml import etree

from imgtool.xml.domain import NAMESPACE, STATE
from imgtool.xml.spans import Document, Edit, opened

_MIRROR = f"{{{NAMESPACE}}}mirror"


def recorded_mirrors(snapshot: etree._Element) -> dict[str, str]:
    """The path of each mirror that a `<domainsnapshot>` records, by disk."""
    found = snapshot.iterfind(f"domain/metadata/{STATE}/{_MIRROR}")
    return {each.get("disk", ""): each.get("file", "") for each in found}


def mirror_elements(document: Document, mirrors: Mapping[str, str]) -> bytes:
    """What our metadata element holds of them. Raises XmlError: a path that XML cannot hold."""
    return b"".join(
        b'<imgtool:mirror xmlns:imgtool="%s" disk="%s" file="%s"/>'
        % (NAMESPACE.encode(), document.value(target), document.value(path))
        for target, path in sorted(mirrors.items())
    )


def shown(xml: bytes, *, where: str) -> bytes:
    """A record with each mirror in the `<disk>` that has it. Raises XmlError."""
    document = Document(xml, root="domainsnapshot", where=where)
    mirrors = recorded_mirrors(document.root)
    edits = []
    for disk in document.root.iterfind("disks/disk"):
        path = mirrors.get(disk.get("name", ""))
        if path and disk.find("mirror") is None:
            edits.append(_added(document, disk, b"<mirror file='%s'/>" % document.value(path)))
    return document.apply(edits)


def _added(document: Document, disk: etree._Element, element: bytes) -> Edit:
    """`element` as the last child of a disk, on a line of its own."""
    span, children = document.span(disk), list(disk.iterchildren("*"))
    if children:
        at = document.span(children[-1]).end
        return Edit(at, at, document.indent(children[-1]) + element)
    outer = document.indent(disk)
    inner = outer + b"  " if outer else b""
    tag = opened(document.start_tag(disk))
    return Edit(span.start, span.end, tag + inner + element + outer + b"</disk>")
