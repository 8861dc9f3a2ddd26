"""Edit a `<domain>` without touching a byte of what the edit is not about.

Comments, order, blanks and quotes of a document are its owner's, and stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from lxml import etree

from imgtool.model.errors import XmlError
from imgtool.model.plan import Move
from imgtool.xml.domain import NAMESPACE, STATE
from imgtool.xml.mirrors import mirror_elements
from imgtool.xml.spans import Document, Edit, drop_attribute, opened, set_attribute

RECORDED_BY = "recorded-by"
_NAME = re.compile(rb"<([^\s<>/]+)")
_LOCATION = {  # attributes that say where a source is, by the disk's type
    "file": ("file",),
    "block": ("dev",),
    "volume": ("pool", "volume", "mode"),
}


def pivot(xml: bytes, *, moves: Sequence[Move], txid: str, where: str = "domain") -> bytes:
    """Point each moved disk to its new image, and write `txid` into our metadata element.

    A disk that names its new image already gains nothing: pivoting twice is pivoting once. What it
    says of the layers below goes, unless the new image is over the old one.
    Raises XmlError: a disk that is not there, has no local source or is moved twice; a path or
    id that XML cannot hold.
    """
    document = Document(xml, root="domain", where=where)
    edits = _put_state(document, b' transaction="%s"' % document.value(txid))
    return document.apply([*edits, *_moves(document, moves)])


def repoint(
    xml: bytes, *, moves: Sequence[Move], where: str = "domain", root: str = "domain"
) -> bytes:
    """Point each moved disk to its new image, and change nothing else. Raises as `pivot` does."""
    document = Document(xml, root=root, where=where)
    return document.apply(_moves(document, moves))


def stamp_record(
    domain_xml: bytes,
    *,
    txid: str,
    mirrors: Mapping[str, str] | None = None,
    where: str = "domain",
) -> bytes:
    """Note in a snapshot's copy of the domain which transaction recorded the snapshot.

    And, by disk, the paths of its mirrors. Raises XmlError as `pivot` does.
    """
    document = Document(domain_xml, root="domain", where=where)
    value = document.value(txid)
    inside = mirror_elements(document, mirrors or {})
    element = _state(document)
    if element is None:
        attributes = b' %s="%s"' % (RECORDED_BY.encode(), value)
        return document.apply(_put_state(document, attributes, inside))
    tag = set_attribute(document.start_tag(element), RECORDED_BY, value)
    return document.apply([_refilled(document, element, tag, inside)])


def unstamp(domain_xml: bytes, *, where: str = "domain") -> bytes:
    """Take those notes out again, and nothing else."""
    document = Document(domain_xml, root="domain", where=where)
    element = _state(document)
    if element is None:
        return domain_xml
    tag = drop_attribute(document.start_tag(element), RECORDED_BY)
    return document.apply([_refilled(document, element, tag, b"")])


def _disks(document: Document) -> dict[str, etree._Element]:
    """The `<disk>` elements by target; of two with one target, the first."""
    found: dict[str, etree._Element] = {}
    for disk in document.root.iterfind("devices/disk"):
        target = disk.find("target")
        if target is not None:
            found.setdefault(target.get("dev", ""), disk)
    return found


def _moves(document: Document, moves: Sequence[Move]) -> Iterator[Edit]:
    disks = _disks(document)
    targets = [move.target for move in moves]
    for move in moves:
        disk = disks.get(move.target)
        where = document.where
        if disk is None:
            raise XmlError(f"{where}: no disk named {move.target!r}", remedy="see domblklist")
        if targets.count(move.target) > 1:
            raise XmlError(f"{where}: disk {move.target!r} is moved twice", remedy="move it once")
        yield from _move(document, disk, move)


def _move(document: Document, disk: etree._Element, move: Move) -> Iterator[Edit]:
    where = f"{document.where}: {move.target}"
    kind = disk.get("type", "file")
    source = disk.find("source")
    if source is None or kind not in _LOCATION:
        raise XmlError(f"{where}: a {kind} disk without a local source", remedy="see domblklist")
    path = document.value(str(move.path))
    new_kind, attribute = ("block", "dev") if move.block_device else ("file", "file")
    if kind != new_kind:
        tag = set_attribute(document.start_tag(disk), "type", new_kind.encode())
        yield _retag(document, disk, tag)
    backing = disk.find("backingStore")
    if backing is not None and not move.over:  # libvirt looks for itself what is below
        span = document.span(backing)
        yield Edit(span.start - len(document.indent(backing)), span.end, b"")
    elif backing is not None and (kind, source.get(attribute)) != (new_kind, str(move.path)):
        yield from _wrap(document, disk, source, backing)
    yield _driver(document, disk, source, move)
    tag = set_attribute(document.start_tag(source), attribute, path, replacing=_LOCATION[kind])
    yield _retag(document, source, tag)


def _driver(document: Document, disk: etree._Element, source: etree._Element, move: Move) -> Edit:
    driver = disk.find("driver")
    value = document.value(move.format)
    if driver is not None:
        return _retag(document, driver, set_attribute(document.start_tag(driver), "type", value))
    start = document.span(source).start
    text = b"<driver name='qemu' type='%s'/>" % value + document.indent(source)
    return Edit(start, start, text)


def _wrap(
    document: Document, disk: etree._Element, source: etree._Element, backing: etree._Element
) -> Iterator[Edit]:
    """Put an explicit `<backingStore>` below a new one for the image that was active."""
    kind = disk.get("type", "file")
    driver = disk.find("driver")
    old_format = "raw" if driver is None else driver.get("type", "raw")
    location = b"".join(
        b" %s='%s'" % (name.encode(), document.value(source.get(name, "")))
        for name in _LOCATION[kind]
        if name in source.attrib
    )
    span, outer = document.span(backing), document.indent(backing)
    inner = outer + b"  " if outer else b""
    head = b"<backingStore type='%s'>" % document.value(kind)
    head += inner + b"<format type='%s'/>" % document.value(old_format)
    head += inner + b"<source%s/>" % location + inner
    yield Edit(span.start, span.start, head)
    yield Edit(span.end, span.end, outer + b"</backingStore>")


def _retag(document: Document, element: etree._Element, tag: bytes) -> Edit:
    span = document.span(element)
    return Edit(span.start, span.inner, tag)


def _refilled(document: Document, element: etree._Element, tag: bytes, inside: bytes) -> Edit:
    """The element with this start tag, and nothing but `inside` in it."""
    span = document.span(element)
    if not inside and not len(element):
        return Edit(span.start, span.inner, tag)
    tag = opened(tag)
    if not inside:
        return Edit(span.start, span.end, tag[:-1] + b"/>")
    name = _NAME.match(tag)
    assert name is not None  # a start tag has one
    return Edit(span.start, span.end, tag + inside + b"</%s>" % name[1])


def _state(document: Document) -> etree._Element | None:
    return document.root.find(f"metadata/{STATE}")


def _put_state(document: Document, attributes: bytes, inside: bytes = b"") -> list[Edit]:
    """Replace our element by one with these attributes, or add it; libvirt allows only one."""
    end = b">" + inside + b"</imgtool:state>" if inside else b"/>"
    text = b'<imgtool:state xmlns:imgtool="%s"%s%s' % (NAMESPACE.encode(), attributes, end)
    ours = document.root.findall(f"metadata/{STATE}")
    if ours:
        spans = [document.span(element) for element in ours]
        texts = [text] + [b""] * (len(ours) - 1)
        return [Edit(s.start, s.end, t) for s, t in zip(spans, texts, strict=True)]
    metadata = document.root.find("metadata")
    if metadata is None:
        return [_new_metadata(document, text)]
    span, outer = document.span(metadata), document.indent(metadata)
    inner = outer + b"  " if outer else b""
    if span.inner == span.end:
        tag = opened(document.start_tag(metadata))
        return [Edit(span.start, span.end, tag + inner + text + outer + b"</metadata>")]
    children = list(metadata.iterchildren("*"))
    at = document.span(children[-1]).end if children else span.inner
    return [Edit(at, at, inner + text)]


def _new_metadata(document: Document, text: bytes) -> Edit:
    heads = [e for e in document.root if e.tag in ("name", "uuid", "title", "description")]
    if not heads:
        raise XmlError(f"{document.where}: the domain has no <name>", remedy="add one")
    at, outer = document.span(heads[-1]).end, document.indent(heads[-1])
    inner = outer + b"  " if outer else b""
    return Edit(at, at, outer + b"<metadata>" + inner + text + outer + b"</metadata>")
