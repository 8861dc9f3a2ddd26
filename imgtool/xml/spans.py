"""Where each element of a document lies in its bytes, so that edits can spare all the others.

lxml says what an element means, expat (on the same bytes) where it is; both report elements in
document order, so the n-th of one is the n-th of the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pyexpat import ExpatError, ParserCreate

from lxml import etree

from imgtool.model.errors import XmlError
from imgtool.xml import escape, safe

_ATTRIBUTE = re.compile(rb"""(\s+)([^\s=<>/'"]+)(\s*=\s*)("[^"]*"|'[^']*')""")
_START_TAG = re.compile(rb"""<[^\s<>/]+(?:[^<>'"]|"[^"]*"|'[^']*')*>""")


@dataclass(frozen=True, slots=True)
class Span:
    """Byte offsets of one element. Of `<a/>`, the first two ends and `end` are the same."""

    start: int  # of the start tag's '<'
    inner: int  # behind the start tag
    close: int  # of the end tag's '<'
    end: int  # behind the element


@dataclass(frozen=True, slots=True)
class Edit:
    """Put `text` in place of the bytes from `start` to before `end`."""

    start: int
    end: int
    text: bytes


class Document:
    """Parsed XML that remembers its bytes. Raises XmlError as `safe.parse` does."""

    def __init__(self, xml: bytes, *, root: str, where: str) -> None:
        self.xml = xml
        self.where = where
        self.root = safe.parse(xml, root=root, where=where)
        if b"\0" in xml:  # UTF-16 by its byte order mark alone, declared nowhere
            raise XmlError(f"{where}: not UTF-8", remedy="convert it to UTF-8")
        # The list keeps lxml's proxies alive, and with them their identity as keys.
        self._elements = list(self.root.iter("*"))
        self._spans = dict(zip(self._elements, _scan(xml, where), strict=True))
        declared = (self.root.getroottree().docinfo.encoding or "UTF-8").upper()
        self._encoding = "UTF-8" if declared == "UTF-8" else "ASCII"

    def span(self, element: etree._Element) -> Span:
        return self._spans[element]

    def start_tag(self, element: etree._Element) -> bytes:
        span = self.span(element)
        return self.xml[span.start : span.inner]

    def text(self, element: etree._Element) -> bytes:
        """The whole element, as it was written."""
        span = self.span(element)
        return self.xml[span.start : span.end]

    def indent(self, element: etree._Element) -> bytes:
        """The line break and blanks before an element that begins its line, else nothing."""
        before = self.xml[: self.span(element).start]
        blanks = before[len(before.rstrip()) :]
        newline = blanks.rfind(b"\n")
        return b"" if newline < 0 else blanks[newline:]

    def value(self, text: str) -> bytes:
        """`text` as the value of an attribute, without the quotes. Raises XmlError."""
        return escape.path(text, self.where).encode(self._encoding, "xmlcharrefreplace")

    def apply(self, edits: Iterable[Edit]) -> bytes:
        """The document after all edits, which must not overlap."""
        pieces, done = [], 0
        for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
            if edit.start < done:
                raise ValueError(f"edits overlap at byte {edit.start}")
            pieces += [self.xml[done : edit.start], edit.text]
            done = edit.end
        return b"".join([*pieces, self.xml[done:]])


def _scan(xml: bytes, where: str) -> list[Span]:
    """The spans of all elements, in document order."""
    starts: list[int] = []
    closes: dict[int, int] = {}  # start of an element -> start of its end tag
    open_elements: list[int] = []
    parser = ParserCreate("UTF-8")

    def opened(name: str, attributes: Mapping[str, str]) -> None:
        starts.append(parser.CurrentByteIndex)
        open_elements.append(parser.CurrentByteIndex)

    def closed(name: str) -> None:
        closes[open_elements.pop()] = parser.CurrentByteIndex

    parser.StartElementHandler = opened
    parser.EndElementHandler = closed
    try:
        parser.Parse(xml, True)
    except ExpatError as error:
        raise XmlError(f"{where}: not well-formed: {error}", remedy="mend the XML") from error
    return [_span(xml, start, closes[start]) for start in starts]


def _span(xml: bytes, start: int, close: int) -> Span:
    tag = _START_TAG.match(xml, start)
    assert tag is not None  # expat has just read one there
    if tag[0].endswith(b"/>"):
        return Span(start, tag.end(), tag.end(), tag.end())
    return Span(start, tag.end(), close, xml.index(b">", close) + 1)


def set_attribute(tag: bytes, name: str, value: bytes, *, replacing: Iterable[str] = ()) -> bytes:
    """A start tag with `name` set, in the place and the quotes it has, or else at the end.

    Attributes named in `replacing` go; where `name` is missing, it takes the place of the first.
    """
    key = name.encode()
    present = [match for match in _ATTRIBUTE.finditer(tag) if match[2] == key]
    others = {other.encode() for other in replacing} - {key}
    dropped = [match for match in _ATTRIBUTE.finditer(tag) if match[2] in others]
    keep = present[0] if present else dropped.pop(0) if dropped else None
    edits = [(match.start(), match.end(), b"") for match in dropped]
    if keep is None:
        at = len(tag) - (2 if tag.endswith(b"/>") else 1)
        at = len(tag[:at].rstrip())
        edits.append((at, at, b" %s='%s'" % (key, value)))
    else:
        text = key + keep[3] + keep[4][:1] + value + keep[4][:1]
        edits.append((keep.start(2), keep.end(), text))
    for start, end, text in sorted(edits, reverse=True):
        tag = tag[:start] + text + tag[end:]
    return tag


def drop_attribute(tag: bytes, name: str) -> bytes:
    """A start tag without the attribute `name` and the blanks before it."""
    for match in _ATTRIBUTE.finditer(tag):
        if match[2] == name.encode():
            return tag[: match.start()] + tag[match.end() :]
    return tag


def opened(tag: bytes) -> bytes:
    """`<a/>` as `<a>`; a start tag stays as it is."""
    return tag[:-2].rstrip() + b">" if tag.endswith(b"/>") else tag
