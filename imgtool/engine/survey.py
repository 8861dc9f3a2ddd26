"""Look at the images of a domain, reading only: chains, places for overlays, prepared overlays."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from imgtool.engine.world import World
from imgtool.host.headers import parse_info, read_image, read_inode
from imgtool.model.domain import Disk
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    FailedError,
    ImgtoolError,
    QemuImgError,
    UnsupportedError,
)
from imgtool.model.image import Chain, Format, Image
from imgtool.plan.snapshot import MAX_LAYERS, Place, Prepared


def chain_of(disk: Disk, world: World, find: Callable[[Image], Path | None] | None = None) -> Chain:
    """The backing chain under a disk, oldest layer first, by headers only.

    `find` says where the base of a layer is, if not where QEMU would look for it.

    Raises ChainError: a layer that is missing, loops, is unreadable, or whose format is recorded
    nowhere; UnsupportedError: encrypted, an external data file, a format imgtool does not know.
    """
    with _about(disk.target):
        if disk.type == "volume":
            disk = replace(disk, source=world.store.volume(disk.pool, disk.volume))
        if disk.source is None or disk.format is None:
            raise UnsupportedError(
                "no local image of a known format", remedy="see imgtool domblklist"
            )
        layers = _layers(disk.source, disk.format, world, find or backing_path)
        return Chain(tuple(layers)[::-1])


def chains_of(disks: Iterable[Disk], world: World) -> dict[str, Chain]:
    """What can be read of the chains of these disks, from the top; others are left out."""
    found = {}
    for disk in disks:
        layers: list[Image] = []
        with suppress(ImgtoolError):
            if disk.type == "volume":
                disk = replace(disk, source=world.store.volume(disk.pool, disk.volume))
            if disk.source is not None:
                # Of a format that imgtool does not know, it can still tell which file it is.
                fmt = disk.format or Format.RAW
                layers.extend(_layers(disk.source, fmt, world, backing_path))
        if layers:
            found[disk.target] = Chain(tuple(reversed(layers)))
    return found


def place_of(target: str, overlay: Path) -> Place:
    """Where a new overlay would go. Raises BadRequestError if its folder is not there."""
    try:
        folder = overlay.parent.resolve(strict=True)
        reason = "" if folder.is_dir() else "is no folder"
    except (OSError, RuntimeError) as error:
        folder = overlay.parent
        reason = str(error.strerror) if isinstance(error, OSError) else "symbolic links loop"
    if reason:
        raise BadRequestError(
            f"{target}: {overlay.parent}: no such folder: {reason}",
            remedy="create it, or choose another",
        )
    return Place(overlay=overlay, folder=folder, taken=_is_taken(target, overlay))


def _is_taken(target: str, overlay: Path) -> bool:
    try:
        overlay.lstat()
    except FileNotFoundError:
        return False
    except OSError as error:  # such as a name that is too long
        raise BadRequestError(
            f"{target}: {overlay}: {error.strerror}", remedy="choose another file"
        ) from error
    return True


def prepared(target: str, overlay: Path, world: World) -> Prepared:
    """An overlay that somebody made beforehand, for --reuse-external.

    Raises BadRequestError if it is not there, ChainError if it is no qcow2.
    """
    if not os.path.lexists(overlay):
        raise BadRequestError(
            f"missing existing file for disk {target}: {overlay}",
            remedy="make it first, or leave --reuse-external out",
        )
    with _about(target):
        image = _read(overlay, Format.QCOW2, world)
        file = _file_of(backing_path(image))
        has_data = image.backing is not None and world.qemu.has_own_data(
            image.path, block_device=image.block_device
        )
    return Prepared(image=image, backing_file=file, has_data=has_data)


@contextmanager
def _about(target: str) -> Iterator[None]:
    """Name the disk in whatever error of ours comes from inside."""
    try:
        yield
    except (ChainError, UnsupportedError, FailedError) as error:
        raise type(error)(f"{target}: {error.message}", remedy=error.remedy) from error


def _file_of(path: Path | None) -> tuple[int, int] | None:
    """Device and inode of an image; None if there is none."""
    try:
        return None if path is None else read_inode(path.resolve(strict=True)).identity.file
    except (OSError, RuntimeError, ChainError):
        return None


def _layers(
    path: Path, fmt: Format, world: World, find: Callable[[Image], Path | None]
) -> Iterator[Image]:
    """The layers from `path` down. Raises ChainError or UnsupportedError at the first bad one."""
    seen: set[tuple[int, int]] = set()
    name: Path | None = path
    while name is not None:
        image = _read(name, fmt, world)
        if image.identity.file in seen:
            raise ChainError(
                f"{name}: the backing chain loops", remedy="mend it with qemu-img rebase -u"
            )
        seen.add(image.identity.file)
        if len(seen) > MAX_LAYERS:
            raise ChainError(
                f"{path}: over {MAX_LAYERS} layers deep", remedy="shorten it with qemu-img commit"
            )
        yield image
        name = find(image)
        if name is not None:
            fmt = _backing_format(image)


def _read(name: Path, fmt: Format, world: World) -> Image:
    try:
        path = name.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "symbolic links loop"
        raise ChainError(f"{name}: {reason}", remedy="restore it, or mend what names it") from error
    if fmt is Format.VMDK:
        inode = read_inode(path)
        image = parse_info(_vmdk_info(path, world), path, inode)
    else:
        image = read_image(path, fmt)
    if image.data_file:
        raise UnsupportedError(
            f"{name}: keeps its data in an external file",
            remedy="copy it into one file: qemu-img convert",
        )
    if image.encrypted:
        raise UnsupportedError(f"{name}: is encrypted", remedy="leave this disk out")
    return replace(image, name=name)


def _vmdk_info(path: Path, world: World) -> bytes:
    try:
        return world.qemu.info_json(path, Format.VMDK)
    except QemuImgError as error:
        raise ChainError(f"{path}: {error.message}", remedy="restore it") from error


def backing_path(image: Image) -> Path | None:
    """Where QEMU would look for the base, or None without one. Raises ChainError."""
    if image.backing is None:
        return None
    if ":" in image.backing.partition("/")[0]:
        raise ChainError(
            f"{image.spelled}: its base {image.backing!r} is not a plain file name",
            remedy=f"qemu-img rebase -u -f {image.format} -F FORMAT -b BASE {image.spelled}",
        )
    return image.spelled.parent / image.backing


def _backing_format(image: Image) -> Format:
    if image.format is Format.VMDK:
        return Format.VMDK  # the parent of a vmdk is one
    if image.backing_format is None:
        raise ChainError(
            f"{image.spelled}: the format of its base {image.backing} is not recorded",
            remedy="if the base is raw: "
            f"qemu-img rebase -u -f {image.format} -F raw -b {image.backing} {image.spelled}",
        )
    known = Format.parse(image.backing_format)
    if known is None:
        raise UnsupportedError(
            f"{image.spelled}: its base is a {image.backing_format} image",
            remedy="convert the base to qcow2 or raw",
        )
    return known
