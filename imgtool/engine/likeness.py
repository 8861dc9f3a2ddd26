"""Whether a file has the structure of the image that it is a copy of."""

from __future__ import annotations

from pathlib import Path

from imgtool.host.headers import read_image
from imgtool.host.qemu_img import QemuImg
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format, Image


def is_like(path: Path, source: Image) -> bool:
    """Whether the header of `path` says what that of `source` does, and it is as long."""
    if source.format is Format.VMDK:
        return True  # only qemu-img reads those, and its check does
    try:
        return _facts(read_image(path, source.format)) == _facts(source)
    except ImgtoolError:
        return False


def flaw_of(path: Path, source: Image, qemu: QemuImg) -> str:
    """What is wrong with a copy, whose base need not be there yet; empty if nothing is."""
    if not is_like(path, source):
        return "its header is not that of the original"
    if source.format is Format.RAW:
        return ""
    report = qemu.check_alone(path, source.format, block_device=False)
    errors = report.corruptions + report.errors
    return f"qemu-img check finds {errors} errors" if errors else ""


def _facts(image: Image) -> tuple[object, ...]:
    sizes = (image.virtual_size, image.identity.size)
    below = (image.backing, image.backing_format)
    return (*sizes, *below, image.features, image.snapshots, image.bitmaps)
