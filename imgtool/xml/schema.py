"""Validation against the schemas that libvirt installs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lxml import etree

from imgtool.model.errors import UnsupportedError, XmlError
from imgtool.xml import safe

SCHEMAS = Path("/usr/share/libvirt/schemas")


def validate(xml: bytes, *, where: str, schemas: Path = SCHEMAS) -> None:
    """Check a `<domainsnapshot>` as libvirt's --validate does, but for our own `<mirror>`.

    Raises XmlError with what is wrong; UnsupportedError where the schemas are
    not installed.
    """
    document = safe.parse(xml, root="domainsnapshot", where=where)
    for mirror in document.findall("disks/disk/mirror"):
        disk = mirror.getparent()
        if disk is not None:
            disk.remove(mirror)
    schema = schemas / "domainsnapshot.rng"
    if not schema.is_file():
        raise UnsupportedError(
            f"{schema}: libvirt's schema is not installed",
            remedy="install libvirt (Debian: libvirt0), or leave --validate out",
        )
    relax_ng: Any = vars(etree)["RelaxNG"]  # lxml-stubs do not know it
    try:
        checker = relax_ng(file=str(schema))
    except etree.LxmlError as error:
        raise UnsupportedError(f"{schema}: {error}", remedy="reinstall libvirt") from error
    if not checker.validate(document):
        problems = "; ".join(entry.message for entry in checker.error_log)
        raise XmlError(
            f"{where}: XML document failed to validate against schema: {problems}",
            remedy="mend the XML, or leave --validate out",
        )
