"""In-place changes of qcow2 images: staged on a scratch layer, applied, undone, blocked.

An image that changes in place is *blocked* first: the corrupt bit of its header makes QEMU refuse
to open it read-write. The bit stays set while bytes are overwritten, in either direction.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgtool.engine.journal import Extent, StagedChange
from imgtool.host import extents as layers
from imgtool.host import qcow2
from imgtool.host.files import Files
from imgtool.host.image_file import ImageFile
from imgtool.host.qemu_img import QemuImg, Scratch
from imgtool.model.errors import FailedError, ImageChangedError
from imgtool.model.image import Identity
from imgtool.model.plan import ChangeInPlace

ROOM = 1 << 30  # bytes that a staged command may add to an image, besides doubling it
LARGE = 64 << 30  # bytes of a file whose scratch layer is worth 6 MiB before anything is in it
_BYTE = qcow2.INCOMPATIBLE_OFFSET + 7  # the byte that holds feature bits 0 to 7


def template(workspace: Path) -> Path:
    """The empty scratch layer that each staged change of a plan begins with a copy of."""
    return workspace / "scratch"


def scratch_size(change: ChangeInPlace) -> int:
    """Virtual size in bytes of a scratch layer over the image: what it is and may become."""
    return 2 * change.identity.size + ROOM


def create_template(changes: Sequence[ChangeInPlace], path: Path, qemu: QemuImg) -> None:
    """Create the scratch layer that fits all of these changes."""
    size = max(scratch_size(change) for change in changes)
    # Creating a snapshot frees nothing that would be worth a discard.
    creating = all(words[:2] == ("snapshot", "-c") for step in changes for words in step.commands)
    qemu.create_scratch(path, virtual_size=size, sparse=creating and size > 2 * LARGE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """A staged change: `extents` of the scratch layer's file replace those of the image."""

    change: ChangeInPlace
    extents: tuple[layers.Extent, ...]
    staged: StagedChange

    def apply(self, files: Files) -> None:
        """Overwrite the image, which is blocked, and sync it. Again is the same as once.

        Raises ImageChangedError if the file of that name is not ours any more.
        """
        with opened(files, self.change.image) as image, _reading(self.change.redo) as redo:
            require_ours(image, self.change)
            for extent in self.extents:
                if extent.host is None:
                    files.zero_range(image, extent.offset, extent.length)
                else:
                    files.copy_range(
                        redo, extent.host, image, extent.offset, extent.length, keep_blocked
                    )
            if not self.change.block_device:
                files.truncate(image, self.staged.new_size)
            files.sync(image)


def stage(change: ChangeInPlace, template: Path, files: Files, qemu: QemuImg) -> Redo:
    """Run the command on a scratch layer, check the outcome, save what it will overwrite.

    The image is only read. A crash leaves files in the workspace. Raises FailedError if the image
    is damaged or the outcome would not fit on its block device.
    """
    files.copy_file(template, change.redo)
    scratch = Scratch(
        redo=change.redo,
        image=change.image,
        block_device=change.block_device,
        below=change.below,
    )
    for command in change.commands:
        qemu.change(command, scratch)
    report = qemu.check_scratch(scratch)
    if report.corruptions or report.errors or report.image_end is None:
        raise FailedError(
            f"{change.image}: is damaged: qemu-img check finds {report.corruptions} corruptions",
            remedy=f"look at `qemu-img check -f qcow2 {change.image}` first",
        )
    old_size = change.identity.size
    if change.block_device and report.image_end > old_size:
        raise FailedError(
            f"{change.image}: the device is {report.image_end - old_size} bytes too small",
            remedy="make the device larger",
        )
    new_size = max(old_size, report.image_end)
    with _reading(change.redo) as redo:
        extents = tuple(_clip(extent, new_size) for extent in layers.allocated(redo))
    extents = tuple(extent for extent in extents if extent.length > 0)
    staged = StagedChange(
        image=change.image,
        old_size=old_size,
        new_size=new_size,
        extents=tuple(Extent(extent.offset, extent.length) for extent in extents),
    )
    _save_undo(change, staged, files)
    return Redo(change=change, extents=extents, staged=staged)


def restore(change: ChangeInPlace, staged: StagedChange, files: Files) -> None:
    """Put the old bytes back into a blocked image and sync it. Again is the same as once."""
    with opened(files, change.image) as image, _reading(change.undo) as undo:
        at = 0
        for extent in _overwritten(staged):
            files.copy_range(undo, at, image, extent.offset, extent.length, keep_blocked)
            at += extent.length
        if not change.block_device:
            files.truncate(image, staged.old_size)
        files.sync(image)


def block(change: ChangeInPlace, files: Files) -> None:
    """Set the corrupt bit, durably. A crash leaves it set or not, nothing else.

    Raises ImageChangedError, having written nothing, if it is not the image that was staged.
    """
    with opened(files, change.image) as image:
        if _identity(image, change) != change.identity:
            raise _changed(change)
        mark(image, files)


def require_ours(image: int, change: ChangeInPlace) -> None:
    """Raises ImageChangedError if this is not the file that this process has blocked."""
    if _identity(image, change).file != change.identity.file or not qcow2.is_corrupt(image):
        raise _changed(change)


def _identity(image: int, change: ChangeInPlace) -> Identity:
    return ImageFile.of(image, change.image).inode.identity


def _changed(change: ChangeInPlace) -> ImageChangedError:
    return ImageChangedError(
        f"{change.image}: was changed or replaced meanwhile",
        remedy="make sure that nobody uses the disk, then try again",
    )


def mark(image: int, files: Files) -> None:
    """Set the corrupt bit of an image of version 3, durably; every other bit stays.

    Written even if it reads so already: an earlier write may have failed on its way to the disk.
    """
    files.write_at(image, _BYTE, bytes([_feature_byte(image) | qcow2.CORRUPT]))
    files.sync(image)


def unblock(image: int, files: Files) -> None:
    """Clear the corrupt bit if it is set, durably.

    Synced in any case: whoever cleared it may have died before it reached the disk.
    """
    if qcow2.is_corrupt(image):
        files.write_at(image, _BYTE, bytes([_feature_byte(image) & ~qcow2.CORRUPT]))
    files.sync(image)


@contextmanager
def opened(files: Files, path: Path) -> Iterator[int]:
    """An image open for reading and writing."""
    descriptor = files.open_image(path, write=True)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def keep_blocked(offset: int, data: bytes) -> bytes:
    """Set the corrupt bit in a piece of an image that is about to be written at `offset`."""
    at = _BYTE - offset
    if not 0 <= at < len(data):
        return data
    return data[:at] + bytes([data[at] | qcow2.CORRUPT]) + data[at + 1 :]


def _feature_byte(image: int) -> int:
    return os.pread(image, 1, _BYTE)[0]


def _clip(extent: layers.Extent, end: int) -> layers.Extent:
    length = max(0, min(extent.length, end - extent.offset))
    return layers.Extent(extent.offset, length, extent.host)


def _overwritten(staged: StagedChange) -> Iterator[Extent]:
    """The parts of the extents that the image had before."""
    for extent in staged.extents:
        length = min(extent.length, staged.old_size - extent.offset)
        if length > 0:
            yield Extent(extent.offset, length)


def _save_undo(change: ChangeInPlace, staged: StagedChange, files: Files) -> None:
    target = files.create(change.undo)
    try:
        with _reading(change.image) as image:
            at = 0
            for extent in _overwritten(staged):
                files.copy_range(image, extent.offset, target, at, extent.length, _as_it_is)
                at += extent.length
        files.sync(target)
    finally:
        os.close(target)


def _as_it_is(_offset: int, data: bytes) -> bytes:
    return data


@contextmanager
def _reading(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
