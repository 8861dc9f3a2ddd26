"""What a document says of the formats of files: nothing is probed, so nothing else counts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lxml import etree

from imgtool.xml import safe


def recorded_formats(xml: bytes, *, where: str = "domain") -> tuple[tuple[Path, str], ...]:
    """Path and format of each image for which a `<domain>` spells out both.

    The sources of disks with a `<driver type=...>`, and each `<backingStore>` with a `<format>`.
    A disk without a driver type says nothing, though libvirt takes it for raw. Raises XmlError.
    """
    root = safe.parse(xml, root="domain", where=where)
    found = []
    for disk in root.iterfind("devices/disk"):
        found += list(_said(disk, "driver"))
        below = disk.find("backingStore")
        while below is not None:
            found += list(_said(below, "format"))
            below = below.find("backingStore")
    return tuple(found)


def _said(element: etree._Element, name: str) -> Iterator[tuple[Path, str]]:
    kind, source = element.find(name), element.find("source")
    if kind is None or source is None:
        return
    path, fmt = source.get("file", source.get("dev", "")), kind.get("type", "")
    if fmt and path.startswith("/"):
        yield Path(path), fmt
