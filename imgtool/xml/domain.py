"""Read a `<domain>`: name, UUID, disks, and our own metadata."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

from lxml import etree

from imgtool.model.domain import Disk, Domain, DomainState, Head, SnapshotMode
from imgtool.model.errors import XmlError
from imgtool.model.image import Format
from imgtool.xml import safe
from imgtool.xml.spans import Document, Edit

NAMESPACE = "https://imgtool.dev/xmlns/domain/1"
STATE = f"{{{NAMESPACE}}}state"
_NO_UUID = uuid.UUID("0a8cbcf4-7f1c-5f6e-9c39-3c5f6d1f7b11")  # namespace of names without UUID


def parse_domain(xml: bytes, *, where: str = "domain", root: str = "domain") -> Domain:
    """Read a `<domain>`, or what `root` calls one.

    One without `<uuid>` gets a UUID that depends on its name only.

    Raises XmlError: no name, a disk without target, two disks with one target.
    """
    document = safe.parse(xml, root=root, where=where)
    name = document.findtext("name") or ""
    if not name:
        raise XmlError(f"{where}: the domain has no <name>", remedy="add one")
    disks = tuple(_disk(element, where) for element in document.iterfind("devices/disk"))
    targets = [disk.target for disk in disks]
    for target in targets:
        if targets.count(target) > 1:
            raise XmlError(f"{where}: two disks are called {target!r}", remedy="rename one")
    state = document.find(f"metadata/{STATE}")
    return Domain(
        name=name,
        uuid=_uuid(document.findtext("uuid"), name, where),
        disks=disks,
        transaction="" if state is None else state.get("transaction", ""),
    )


def head(xml: bytes, *, where: str = "domain", state: DomainState = DomainState.SHUTOFF) -> Head:
    """The same, with the digest that tells one version of the XML from another."""
    digest = hashlib.sha256(xml).hexdigest()
    return Head(domain=parse_domain(xml, where=where), xml=xml, digest=digest, state=state)


def with_uuid(xml: bytes, text: str, *, where: str = "domain") -> bytes:
    """The same `<domain>` with `<uuid>text</uuid>` behind its name, if it has no UUID yet."""
    document = Document(xml, root="domain", where=where)
    present, name = document.root.find("uuid"), document.root.find("name")
    if (present is not None and (present.text or "").strip()) or name is None:
        return xml
    element = b"<uuid>%s</uuid>" % text.encode("ascii")
    if present is not None:
        span = document.span(present)
        return document.apply([Edit(span.start, span.end, element)])
    at = document.span(name).end
    return document.apply([Edit(at, at, document.indent(name) + element)])


def _uuid(text: str | None, name: str, where: str) -> str:
    if not (text and text.strip()):
        return str(uuid.uuid5(_NO_UUID, name))
    try:
        return str(uuid.UUID(text.strip()))
    except ValueError as error:
        raise XmlError(f"{where}: {text.strip()!r} is no UUID", remedy="mend <uuid>") from error


def _disk(element: etree._Element, where: str) -> Disk:
    target = element.find("target")
    name = "" if target is None else target.get("dev", "")
    if not name:
        raise XmlError(f"{where}: a disk has no <target dev=...>", remedy="add one")
    kind = element.get("type", "file")
    source = element.find("source")
    driver = element.find("driver")
    format_name = "raw" if driver is None else driver.get("type", "raw")
    device = element.get("device", "disk")
    mode = element.get("snapshot")
    return Disk(
        target=name,
        device=device,
        type=kind,
        source=_source_path(source, kind, f"{where}: {name}"),
        format=Format.parse(format_name),
        format_name=format_name,
        protocol="" if source is None else source.get("protocol", ""),
        readonly=element.find("readonly") is not None or device == "cdrom",
        shareable=element.find("shareable") is not None,
        transient=element.find("transient") is not None,
        encrypted=element.find(".//encryption") is not None,
        sliced=element.find("source/slices") is not None,
        snapshot=_mode(mode, f"{where}: {name}"),
        pool="" if source is None else source.get("pool", ""),
        volume="" if source is None else source.get("volume", ""),
    )


def _mode(text: str | None, where: str) -> SnapshotMode | None:
    if text is None:
        return None
    try:
        return SnapshotMode(text)
    except ValueError as error:
        raise XmlError(f"{where}: snapshot={text!r}", remedy="no, internal or external") from error


def _source_path(source: etree._Element | None, kind: str, where: str) -> Path | None:
    attribute = {"file": "file", "block": "dev", "dir": "dir"}.get(kind)
    if source is None or attribute is None:
        return None
    text = source.get(attribute)
    if not text:
        return None
    path = Path(text)
    if not path.is_absolute():
        raise XmlError(f"{where}: source {text!r} is not absolute", remedy="give the whole path")
    return path
