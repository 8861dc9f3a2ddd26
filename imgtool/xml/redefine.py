"""What libvirt wants in a `<domainsnapshot>` before it takes it as a record of its own."""

from __future__ import annotations

from imgtool.xml.spans import Document, Edit, set_attribute


def for_libvirt(xml: bytes, *, where: str = "snapshot") -> bytes:
    """Say snapshot='no' in the record's copy of the domain, too, for disks left out.

    libvirt refuses to record an internal snapshot that leaves out a disk ("must use snapshot
    mode 'internal'") unless that domain says so itself. With an external disk in it, it does not
    ask, and the copy stays as it is. Raises XmlError.
    """
    document = Document(xml, root="domainsnapshot", where=where)
    modes = {
        disk.get("name", ""): disk.get("snapshot", "")
        for disk in document.root.iterfind("disks/disk")
    }
    if (
        "external" in modes.values()
        or document.root.find("memory[@snapshot='external']") is not None
    ):
        return xml
    edits = []
    for disk in document.root.iterfind("domain/devices/disk"):
        target = disk.find("target")
        if target is None or modes.get(target.get("dev", "")) != "no":
            continue
        span = document.span(disk)
        tag = set_attribute(document.start_tag(disk), "snapshot", b"no")
        edits.append(Edit(span.start, span.inner, tag))
    return document.apply(edits)
