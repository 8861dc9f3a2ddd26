"""Look at the images of a domain, reading only: chains, places for overlays, prepared overlays."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from imgtool.engine.world import World
from imgtool.host.headers import parse_info, read_image, read_inode
from imgtool.model.domain import Disk
from imgtool.model.errors import BadRequestError, ChainError, ImgtoolError, UnsupportedError
from imgtool.model.image import Chain, Format, Image
from imgtool.plan.snapshot import Place, Prepared

MAX_LAYERS = 200  # QEMU and libvirt start no deeper chain


def chain_of(disk: Disk, world: World) -> Chain:
    """The backing chain under a disk, oldest layer first, by headers only.

    Raises ChainError: a layer that is missing, loops, is unreadable, or whose format is recorded
    nowhere; UnsupportedError: encrypted, an external data file, a format imgtool does not know.
    """
    if disk.type == "volume":
        disk = replace(disk, source=world.store.volume(disk.pool, disk.volume))
    if disk.source is None or disk.format is None:
        raise UnsupportedError(
            f"{disk.target}: no local image of a known format", remedy="see imgtool domblklist"
        )
    try:
        return _walk(disk.source, disk.format, world)
    except (ChainError, UnsupportedError) as error:
        raise type(error)(f"{disk.target}: {error.message}", remedy=error.remedy) from error


def chains_of(disks: Iterable[Disk], world: World) -> dict[str, Chain]:
    """The chains of all these disks that can be read; the others are left out."""
    found = {}
    for disk in disks:
        try:
            found[disk.target] = chain_of(disk, world)
        except ImgtoolError:
            continue
    return found


def place_of(target: str, overlay: Path) -> Place:
    """Where a new overlay would go. Raises BadRequestError if its folder is not there."""
    folder = overlay.parent
    if not folder.is_dir():
        raise BadRequestError(
            f"{target}: {folder}: no such folder", remedy="create it, or choose another"
        )
    return Place(overlay=overlay, folder=folder.resolve(), taken=os.path.lexists(overlay))


def prepared(target: str, overlay: Path, world: World) -> Prepared:
    """An overlay that somebody made beforehand, for --reuse-external.

    Raises BadRequestError if it is not there, ChainError if it is no qcow2.
    """
    if not os.path.lexists(overlay):
        raise BadRequestError(
            f"missing existing file for disk {target}: {overlay}",
            remedy="make it first, or leave --reuse-external out",
        )
    image = _read(overlay, Format.QCOW2, world)
    backing = _backing_path(image)
    file = None
    if backing is not None and backing.exists():
        file = world.files.identity(backing).file
    has_data = bool(file) and world.qemu.has_own_data(image.path)
    return Prepared(image=image, backing_file=file, has_data=has_data)


def _walk(path: Path, fmt: Format, world: World) -> Chain:
    layers: list[Image] = []
    seen: set[tuple[int, int]] = set()
    name: Path | None = path
    while name is not None:
        image = _read(name, fmt, world)
        if image.identity.file in seen:
            raise ChainError(
                f"{name}: the backing chain loops", remedy="mend it with qemu-img rebase -u"
            )
        seen.add(image.identity.file)
        layers.append(image)
        if len(layers) > MAX_LAYERS:
            raise ChainError(
                f"{path}: over {MAX_LAYERS} layers deep", remedy="shorten it with qemu-img commit"
            )
        name = _backing_path(image)
        if name is not None:
            fmt = _backing_format(image)
    return Chain(tuple(reversed(layers)))


def _read(name: Path, fmt: Format, world: World) -> Image:
    try:
        path = name.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "symbolic links loop"
        raise ChainError(f"{name}: {reason}", remedy="restore it, or mend what names it") from error
    if fmt is Format.VMDK:
        inode = read_inode(path)
        image = parse_info(world.qemu.info_json(path, fmt), path, inode)
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


def _backing_path(image: Image) -> Path | None:
    """Where QEMU would look for the base, or None without one."""
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
