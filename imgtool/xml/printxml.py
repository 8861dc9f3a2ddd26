"""`snapshot-create-as --print-xml`: the request as XML, byte for byte as virsh prints it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from imgtool.model.errors import BadRequestError
from imgtool.model.snapshot import DiskSpec, SnapshotDisk, SnapshotRequest
from imgtool.xml.diskspec import parse_diskspec, parse_memspec
from imgtool.xml.snapshot import parse_request

# virsh drops most of what XML cannot hold, and writes tab and line breaks as they are.
_DROPPED = re.compile("[\x01-\x08\x0b\x0c\x0e-\x19]")  # but keeps 1a to 1f
_ESCAPES = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;", '"': "&quot;"},
)


def from_arguments(
    *,
    name: str = "",
    description: str | None = None,
    memspec: str | None = None,
    diskspecs: Sequence[str] = (),
) -> SnapshotRequest:
    """What snapshot-create-as was given, words as written. Raises BadRequestError."""
    memory, memory_file = (None, None) if memspec is None else parse_memspec(memspec)
    return SnapshotRequest(
        name=name,
        description=description,
        memory=memory,
        memory_file=memory_file,
        disks=tuple(parse_diskspec(diskspec) for diskspec in diskspecs),
    )


def checked(request: SnapshotRequest) -> SnapshotRequest:
    """The same request as the parser of its XML reads it, which is where virsh's is checked.

    Raises XmlError as `parse_request` does; BadRequestError for a text that this XML would
    quietly change, such as a control character that is dropped.
    """
    for text in _texts(request):
        if any(ord(char) < 32 and char not in "\t\n" for char in text):
            raise BadRequestError(f"{text!r} has control characters", remedy="leave them out")
    read = parse_request(print_xml(request), where="snapshot-create-as")
    kept = tuple(replace(disk, spec=None) for disk in request.disks)
    if kept != read.disks:
        changed = [disk.name for disk in kept if disk not in read.disks]
        raise BadRequestError(
            f"diskspec of {', '.join(map(repr, changed))} cannot be written as XML",
            remedy="leave out quotes and control characters",
        )
    return read


def print_xml(request: SnapshotRequest, *, quiet: bool = False) -> bytes:
    """The XML and a blank line; another blank line, with which virsh ends any command, unless
    `quiet` (its -q).

    What virsh writes raw, this writes raw, so it need not be well-formed; bytes that are no
    UTF-8 come out as they went in.
    """
    lines = "".join(f"{line}\n" for line in _lines(request))
    end = "\n" if quiet else "\n\n"
    xml = f"<domainsnapshot>\n{lines}</domainsnapshot>\n{end}"
    return xml.encode(errors="surrogateescape")


def _lines(request: SnapshotRequest) -> Iterator[str]:
    if request.name:
        yield f"  <name>{_escaped(request.name)}</name>"
    if request.description is not None:
        yield f"  <description>{_escaped(request.description)}</description>"
    if (request.memory, request.memory_file) != (None, None):
        mode = _attribute("snapshot", request.memory)
        yield f"  <memory{mode}{_attribute('file', request.memory_file)}/>"
    if request.disks:
        yield "  <disks>"
        for disk in request.disks:
            yield from _disk(disk.spec or _as_spec(disk))
        yield "  </disks>"


def _disk(spec: DiskSpec) -> Iterator[str]:
    tag = "    " if spec.name is None else f"    <disk name='{_escaped(spec.name)}'"
    if spec.snapshot is not None:
        tag += f" snapshot='{spec.snapshot}'"
    if spec.stype is not None:
        tag += f" type='{spec.stype}'"
    if spec.driver is None and spec.file is None and spec.mirror is None:
        yield f"{tag}/>"
        return
    yield f"{tag}>"
    if spec.driver is not None:
        yield f"      <driver type='{spec.driver}'/>"
    if spec.file is not None:
        key = "dev" if spec.stype == "block" else "file"
        yield f"      <source{_attribute(key, spec.file)}/>"
    if spec.mirror is not None:
        yield f"      <mirror{_attribute('file', spec.mirror)}/>"
    yield "    </disk>"


def _as_spec(disk: SnapshotDisk) -> DiskSpec:
    """A diskspec that means this disk."""
    return DiskSpec(
        name=disk.name,
        snapshot=disk.mode,
        driver=disk.driver or None,
        stype=None if disk.type == "file" else disk.type,
        file=disk.source or None,
        mirror=disk.mirror or None,
    )


def _attribute(name: str, value: str | None) -> str:
    return "" if value is None else f" {name}='{_escaped(value)}'"


def _escaped(text: str) -> str:
    return _DROPPED.sub("", text).translate(_ESCAPES)


def _texts(request: SnapshotRequest) -> Iterator[str]:
    yield from (request.name, request.description or "", request.memory_file or "")
    for disk in request.disks:
        yield from (disk.name, disk.source, disk.mirror)
