"""What an image says of itself, whatever its format. Formats are recorded, never probed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from imgtool.host import qcow2
from imgtool.host.image_file import (
    MAX_BACKING_NAME,
    MAX_VIRTUAL_SIZE,
    SECTOR,
    ImageFile,
    Inode,
    open_image,
)
from imgtool.model.errors import ChainError, UnsupportedError
from imgtool.model.image import Format, Image

# docs/interop/qed_spec.txt
QED_MAGIC = b"QED\0"
QED_HEADER = struct.Struct("<4sIIIQQQQQII")
QED_BACKING, QED_NEED_CHECK, QED_NO_PROBE = 1, 2, 4
QED_KNOWN = QED_BACKING | QED_NEED_CHECK | QED_NO_PROBE


def read_image(path: Path, fmt: Format) -> Image:
    """Describe the image at `path` (absolute, links resolved) as one of format `fmt`.

    Runs no qemu, reads a few KiB, and believes nothing: sizes are bounded, offsets are inside
    the file. Raises ChainError: missing, no regular file or block device, another format, or
    malformed; UnsupportedError for vmdk, which only QEMU can read (see `parse_info`).
    """
    if fmt is Format.VMDK:
        raise UnsupportedError(f"{path}: vmdk is read by qemu-img", remedy="use qemu-img info")
    with open_image(path) as file:
        if fmt is Format.QCOW2:
            return qcow2.read(file)
        return _read_qed(file) if fmt is Format.QED else _read_raw(file)


def read_inode(path: Path) -> Inode:
    """What `parse_info` needs besides. Raises ChainError as `read_image` does."""
    with open_image(path) as file:
        return file.inode


def parse_info(info: bytes, path: Path, inode: Inode) -> Image:
    """Turn the output of `qemu-img info -f vmdk --output=json` into an Image.

    Raises ChainError: not JSON, or not what qemu-img prints.
    """
    try:
        fields = json.loads(info)
    except (ValueError, RecursionError) as error:
        raise _strange_info(path) from error
    if not isinstance(fields, dict):
        raise _strange_info(path)
    size = fields.get("virtual-size")
    fmt = Format.parse(str(fields.get("format")))
    backing, backing_format = (fields.get(f"backing-filename{end}") for end in ("", "-format"))
    if fmt is None or not isinstance(size, int) or not 0 <= size <= MAX_VIRTUAL_SIZE:
        raise _strange_info(path)
    if not isinstance(backing, str | None) or not isinstance(backing_format, str | None):
        raise _strange_info(path)
    return Image(
        path=path,
        format=fmt,
        virtual_size=size,
        allocation=inode.allocation,
        identity=inode.identity,
        block_device=inode.block_device,
        backing=backing,
        backing_format=backing_format,
        dirty=fields.get("dirty-flag") is True,
        encrypted=fields.get("encrypted") is True,
        data_file=any(name != str(path) for name in _extent_files(fields)),
    )


def _extent_files(fields: dict[str, Any]) -> list[str]:
    """Files that hold a vmdk's data: its own, or several that its descriptor names."""
    try:
        return [str(extent["filename"]) for extent in fields["format-specific"]["data"]["extents"]]
    except (KeyError, TypeError):
        return []


def _strange_info(path: Path) -> ChainError:
    return ChainError(f"{path}: qemu-img info makes no sense", remedy="run qemu-img info on it")


def _read_raw(file: ImageFile) -> Image:
    """The whole file is the disk; QEMU fills its last sector up."""
    return Image(
        path=file.path,
        format=Format.RAW,
        virtual_size=-(-file.size // SECTOR) * SECTOR,
        allocation=file.inode.allocation,
        identity=file.inode.identity,
        block_device=file.inode.block_device,
    )


def _read_qed(file: ImageFile) -> Image:
    if file.size < QED_HEADER.size or file.read(0, 4, "the magic number") != QED_MAGIC:
        raise file.not_a("qed")
    fields = QED_HEADER.unpack(file.read(0, QED_HEADER.size, "the header"))
    _, cluster, table, clusters, features, _, _, l1_offset, size, name_at, name_length = fields
    if cluster & (cluster - 1) or not 2**12 <= cluster <= 2**26:
        raise file.malformed(f"a cluster size of {cluster} bytes is not possible")
    if table & (table - 1) or not 1 <= table <= 16:
        raise file.malformed(f"tables of {table} clusters are not possible")
    if features & ~QED_KNOWN:
        raise file.malformed(f"has unknown features {features & ~QED_KNOWN:#x}")
    entries = table * cluster // 8
    if size % SECTOR or size > min(entries * entries * cluster, MAX_VIRTUAL_SIZE):
        raise file.malformed(f"a virtual size of {size} bytes is not possible")
    if l1_offset % cluster or l1_offset + table * cluster > file.size:
        raise file.malformed("the L1 table lies outside the file")
    backing = None
    if features & QED_BACKING:
        if name_length > MAX_BACKING_NAME or name_at + name_length > clusters * cluster:
            raise file.malformed("the backing file name is too long")
        backing = file.text(name_at, name_length, "the backing file name") or None
    return Image(
        path=file.path,
        format=Format.QED,
        virtual_size=size,
        allocation=file.inode.allocation,
        identity=file.inode.identity,
        block_device=file.inode.block_device,
        backing=backing,
        backing_format="raw" if backing and features & QED_NO_PROBE else None,
        dirty=bool(features & QED_NEED_CHECK),
    )
