"""Names that a snapshot may have, and the file names made from them."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from imgtool.model.domain import Disk
from imgtool.model.errors import BadRequestError, UnsupportedError

MAX_NAME = 255  # bytes; NAME_MAX of Linux, and of a tag in QEMU (char name[256])
_SUFFIX = len(".xml")  # what a store adds to make a file name of it


def check_snapshot_name(name: str) -> None:
    """Raises BadRequestError for a name that a file, a tag or XML could not carry safely."""
    problem = ""
    if not name:
        problem = "is empty"
    elif "/" in name:
        problem = "can't contain '/'"
    elif name[0] in ".-":
        problem = f"can't start with {name[0]!r}"
    elif any(unicodedata.category(each) in ("Cc", "Cs") for each in name):
        problem = "can't contain control characters"
    elif any(each in "\ufffe\uffff" for each in name):
        problem = "can't contain what XML cannot"
    elif len(name.encode()) + _SUFFIX > MAX_NAME:
        problem = f"is over {MAX_NAME - _SUFFIX} bytes long"
    if problem:
        raise BadRequestError(
            f"invalid snapshot name {name!r}: name {problem}", remedy="choose another name"
        )


def overlay_path(disk: Disk, snapshot: str, *, regular_file: bool) -> Path:
    """libvirt's rule: the source's last suffix gives way to the snapshot's name.

    /a.b/root.qcow2 -> /a.b/root.NAME; /a.b/raw -> /a.b/raw.NAME. Raises UnsupportedError where
    libvirt makes no name either, BadRequestError if it would be too long.
    """
    source = disk.source
    if source is None or disk.type != "file" or not regular_file:
        raise UnsupportedError(
            f"{disk.target}: the source is not a regular file; refusing to generate a name",
            remedy=f"give one: --diskspec {disk.target},snapshot=external,file=PATH",
        )
    stem, dot, _ = source.name.rpartition(".")
    path = source.with_name(f"{stem if dot else source.name}.{snapshot}")
    if len(os.fsencode(path.name)) > MAX_NAME:
        raise BadRequestError(
            f"{disk.target}: {path.name}: file name over {MAX_NAME} bytes",
            remedy="choose a shorter snapshot name, or give file=PATH",
        )
    return path


def check_overlay(target: str, path: Path) -> None:
    """Raises BadRequestError for a path that the domain XML cannot hold, or not faithfully."""
    text = os.fspath(path)
    if any(each < " " or "\ud800" <= each <= "\udfff" or each in "\ufffe\uffff" for each in text):
        raise BadRequestError(
            f"{target}: {text!r}: XML cannot hold this name",
            remedy="choose a name in UTF-8, without control characters",
        )


def backing_name(base: Path, overlay_folder: Path, *, relative: bool) -> str:
    """What an overlay in `overlay_folder` records. Both paths are real, without links.

    A relative name that QEMU would take for a protocol (`a:b`) is given a `./`.
    """
    if not relative:
        return os.fspath(base)
    name = os.path.relpath(base, overlay_folder)
    first = name.partition("/")[0]
    return f"./{name}" if ":" in first else name
