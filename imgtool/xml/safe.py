"""The one way XML enters imgtool: no entities, no DOCTYPE, no network, bounded size."""

from __future__ import annotations

from lxml import etree

from imgtool.model.errors import XmlError

MAX_BYTES = 16 * 1024 * 1024  # libvirt's own limit for a document is below this
ENCODINGS = frozenset({"UTF-8", "US-ASCII", "ASCII"})


def parse(xml: bytes, *, root: str, where: str) -> etree._Element:
    """Parse `xml`, whose root element must be `root`; `where` names it in messages.

    Raises XmlError for anything malformed, hostile, too large, or in another encoding than
    UTF-8 (imgtool edits documents byte by byte).
    """
    if len(xml) > MAX_BYTES:
        raise XmlError(f"{where}: over {MAX_BYTES} bytes of XML", remedy="is it the right file?")
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False
    )
    try:
        element = etree.fromstring(xml, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise XmlError(f"{where}: not well-formed: {error}", remedy="mend the XML") from error
    info = element.getroottree().docinfo
    if b"\0" in xml:
        raise XmlError(f"{where}: has NUL bytes; UTF-16 perhaps", remedy="convert it to UTF-8")
    if info.internalDTD is not None:
        raise XmlError(f"{where}: has a DOCTYPE", remedy="remove the DOCTYPE")
    if (info.encoding or "UTF-8").upper() not in ENCODINGS:
        raise XmlError(f"{where}: encoded as {info.encoding}", remedy="convert it to UTF-8")
    if element.tag != root:
        raise XmlError(f"{where}: <{root}> expected, <{element.tag}> found", remedy="see virsh(1)")
    return element
