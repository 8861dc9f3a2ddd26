"""Answer questions about a document: XPath as virsh's dumps do it, sources of disks, secrets."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

from lxml import etree

from imgtool.model.errors import BadRequestError
from imgtool.xml import safe
from imgtool.xml.spans import Document, Edit, drop_attribute

_SOURCES = ("file", "dev", "dir", "name", "volume", "path")


def select(xml: bytes, xpath: str, *, root: str, where: str, wrap: bool = False) -> tuple[str, ...]:
    """The nodes that an XPath finds, as virsh prints them; `wrap`: below one `<nodes>`.

    Raises BadRequestError for what is no XPath, or finds no nodes but a number or a string.
    """
    try:
        found = safe.parse(xml, root=root, where=where).xpath(xpath, smart_strings=True)
    except etree.XPathError as error:
        raise BadRequestError(
            f"XPath error : {error}: {xpath!r}", remedy="see the examples in virsh(1)"
        ) from error
    if not isinstance(found, list):
        raise BadRequestError(f"Incorrect xpath {xpath!r}", remedy="name nodes, not a value")
    if not wrap:
        return tuple(_text(node) for node in found)
    return (_wrapped(found),)


def secretless(xml: bytes, *, root: str, where: str) -> bytes:
    """The document without the passwords of its displays, as libvirt shows it by default."""
    if b"passwd" not in xml:
        return xml
    document = Document(xml, root=root, where=where)
    edits = []
    for element in document.root.iter("graphics"):
        if element.get("passwd") is not None:
            span = document.span(element)
            tag = drop_attribute(document.start_tag(element), "passwd")
            edits.append(Edit(span.start, span.inner, tag))
    return document.apply(edits)


def sources(xml: bytes, *, where: str) -> dict[str, str]:
    """What virsh calls the source of each disk that has one, by target, in their order."""
    found = {}
    for disk in safe.parse(xml, root="domain", where=where).iterfind("devices/disk"):
        target, source = disk.find("target"), disk.find("source")
        if target is not None and source is not None:
            text = _source(source, disk.get("type", "file"))
            if text:
                found[target.get("dev", "")] = text
    return found


def _source(source: etree._Element, kind: str) -> str:
    address = source.find("address")
    if kind == "nvme" and address is not None:
        part = [address.get(key, "0").removeprefix("0x") for key in ("domain", "bus", "slot")]
        function = address.get("function", "0").removeprefix("0x")
        place = f"{part[0]:0>4}:{part[1]:0>2}:{part[2]:0>2}.{function}"
        return f"nvme://{place}/{source.get('namespace', '')}"
    values = (source.get(name) for name in _SOURCES)
    return next((value for value in values if value), "")


def _text(node: object) -> str:
    """A node as libxml2 dumps it; lxml gives attributes and texts as strings that know them."""
    if isinstance(node, etree._Element):
        return etree.tostring(_indented(node), encoding="unicode", with_tail=False)
    if getattr(node, "is_attribute", False):
        return f' {getattr(node, "attrname", "")}="{_escaped(str(node))}"'
    return str(node)


def _escaped(value: str) -> str:
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")):
        value = value.replace(character, entity)
    return value


def _indented(element: etree._Element) -> etree._Element:
    """A copy that begins a document of its own, as libvirt's parser and printer would have it."""
    copied = deepcopy(element)
    copied.tail = None
    etree.indent(copied)
    return copied


def _wrapped(nodes: Iterable[object]) -> str:
    parent = etree.Element("nodes")
    for node in nodes:
        if isinstance(node, etree._Element):
            parent.append(_indented(node))
        elif getattr(node, "is_attribute", False):
            name = str(getattr(node, "attrname", ""))
            parent.attrib.pop(name, "")  # the last of a name counts, in the last place
            parent.set(name, str(node))
        elif len(parent):
            parent[-1].tail = (parent[-1].tail or "") + str(node)
        else:
            parent.text = (parent.text or "") + str(node)
    etree.indent(parent)
    return etree.tostring(parent, encoding="unicode")
