"""virsh's grammar of --diskspec and --memspec, and what else is written that way.

memspec  := [file=]name[,snapshot=type]
diskspec := disk[,snapshot=type][,driver=type][,stype=type][,file=name][,mirror=name]

The last word is ours: a second overlay of the same content, elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import BadRequestError
from imgtool.model.snapshot import DiskSpec, SnapshotDisk

DISK_GRAMMAR = (
    "disk[,snapshot=type][,driver=type][,stype=type][,file=name][,mirror=name]; ,, is a comma"
)
COPY_GRAMMAR = "disk,dest=name[,format=type]; ,, is a comma"
MEMORY_GRAMMAR = "[file=]name[,snapshot=type]; ,, is a comma"


def parse_diskspec(text: str) -> SnapshotDisk:
    """The disk that a diskspec names. `spec` keeps the words, as virsh would write them.

    Like virsh, this accepts any mode and any driver: a mode that is none leaves `mode` empty, and
    the parser of the XML that comes of it refuses both. One with a driver, a file or a mirror but
    without a mode is external, as for libvirt. Raises BadRequestError: an unknown or repeated word.
    """
    words = _split(text)
    given = _given(words[1:], ("snapshot", "driver", "stype", "file", "mirror"))
    if given is None:
        raise _unable("diskspec", text, DISK_GRAMMAR)
    spec = DiskSpec(name=words[0] if text else None, **given)
    if spec.stype not in (None, "file", "block"):
        unknown = f"{text}: Unknown storage type: '{spec.stype}'"
        raise _unable("diskspec", unknown, "stype=file or stype=block")
    return SnapshotDisk(
        name=spec.name or "",
        mode=_mode(spec),
        type=spec.stype or "file",
        driver=spec.driver or "",
        source=spec.file or "",
        mirror=spec.mirror or "",
        spec=spec,
    )


def parse_memspec(text: str) -> tuple[str | None, str | None]:
    """Mode and file of a memspec, as written. Raises BadRequestError."""
    named = (f"file={word}" if word.startswith("/") else word for word in _split(text))
    given = _given(list(named), ("snapshot", "file"))
    if given is None:
        raise _unable("memspec", text, MEMORY_GRAMMAR)
    return given.get("snapshot"), given.get("file")


def parse_copyspec(text: str) -> tuple[str, str, str | None]:
    """Disk, destination and format of a copyspec, as written. Raises BadRequestError."""
    words = _split(text)
    given = _given(words[1:], ("dest", "format"))
    if given is None or not words[0] or not given.get("dest"):
        raise _unable("disk", text, COPY_GRAMMAR)
    return words[0], given["dest"], given.get("format")


def _split(text: str) -> list[str]:
    """At commas, of which two in a row are a literal one. The first word may be empty."""
    first, *rest = text.split(",")
    words, join = [first], False
    for token in rest:
        if join:
            words[-1] += f",{token}"
            join = False
        elif token:
            words.append(token)
        else:
            join = True
    return [*words, ""] if join else words


def _given(words: Sequence[str], keys: Sequence[str]) -> dict[str, str] | None:
    """`key=value` words as a dict; None where a key is unknown or comes twice."""
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or key not in keys or key in given:
            return None
        given[key] = value
    return given


def _mode(spec: DiskSpec) -> SnapshotMode | None:
    if spec.snapshot is None:
        return SnapshotMode.EXTERNAL if spec.driver or spec.file or spec.mirror else None
    known = spec.snapshot in {mode.value for mode in SnapshotMode}
    return SnapshotMode(spec.snapshot) if known else None


def _unable(kind: str, text: str, remedy: str) -> BadRequestError:
    return BadRequestError(f"unable to parse {kind}: {text}", remedy=remedy)
