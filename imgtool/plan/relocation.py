"""Which images go to another folder, and by what names. All of them lie there side by side."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import BadRequestError, ChainError, ExistsError, UnsupportedError
from imgtool.model.image import Chain, Format, Image
from imgtool.plan.lineage import FileId, Lineage
from imgtool.plan.names import MAX_NAME, backing_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One image of the tree that a domain's disks and their snapshots make, found by `target`."""

    target: str
    image: Image
    base: Image | None

    @property
    def file(self) -> FileId:
        return self.image.identity.file


def layers_of(
    targets: Sequence[str], chains: Mapping[str, Chain], lineage: Lineage
) -> tuple[Layer, ...]:
    """All that these disks and their recorded snapshots need: each file once, bases first.

    Raises ChainError for a file with two bases, as seen through different folders.
    """
    found: dict[FileId, Layer] = {}
    for target, chain in _chains(targets, chains, lineage):
        base = None
        for image in chain.images:
            layer = Layer(target=target, image=image, base=base)
            known = found.setdefault(layer.file, layer)
            if _file(known.base) != _file(base):
                raise ChainError(
                    f"{target}: {image.path} has another base when it is opened as {image.spelled}",
                    remedy=f"name it by one path: imgtool rebase DOMAIN {target} --absolute",
                )
            base = image
    return tuple(found.values())


def _chains(
    targets: Sequence[str], chains: Mapping[str, Chain], lineage: Lineage
) -> Iterator[tuple[str, Chain]]:
    for target in targets:
        yield target, chains[target]
        for held in lineage.held.values():
            if held.mode(target) is not SnapshotMode.NO:
                yield target, held.chain(target)


def _file(image: Image | None) -> FileId | None:
    return None if image is None else image.identity.file


def names_for(
    layers: Iterable[Layer], first: frozenset[FileId], taken: frozenset[str]
) -> dict[FileId, str]:
    """The names that the copies get: each its file's own, links resolved.

    A block device gives the name by which it is opened. Where two files have one name, an active
    layer (`first`) keeps it before others do, and the next becomes NAME-2.SUFFIX. Raises
    ExistsError for a name that is there already, BadRequestError for one that is too long.
    """
    wanted = sorted(layers, key=lambda layer: layer.file not in first)
    own = {layer.file: _own_name(layer.image) for layer in wanted}
    found: dict[FileId, str] = {}
    for layer in wanted:
        name = own[layer.file]
        if name in taken:
            raise ExistsError(
                f"{layer.target}: {name} exists already in that folder",
                remedy="move disks that share an image together, rename what is there, "
                "or choose another folder",
            )
        if name in found.values():
            name = _numbered(name, {*own.values(), *found.values(), *taken})
        if len(os.fsencode(name)) > MAX_NAME:
            raise BadRequestError(
                f"{layer.target}: {name}: file name over {MAX_NAME} bytes",
                remedy="rename one of the images of that name",
            )
        found[layer.file] = name
    return found


def _own_name(image: Image) -> str:
    return image.spelled.name if image.block_device else image.path.name


def _numbered(name: str, used: set[str]) -> str:
    stem, dot, suffix = name.rpartition(".")
    stem, end = (stem, f".{suffix}") if dot and stem else (name, "")
    number = 2
    while f"{stem}-{number}{end}" in used:
        number += 1
    return f"{stem}-{number}{end}"


def new_backing(layer: Layer, base_name: str, folder: Path) -> str | None:
    """What the copy must record as its base; None: what it records leads there already.

    Raises UnsupportedError for a format in which that cannot be changed.
    """
    recorded = layer.image.backing or ""
    place = folder / base_name
    if not recorded.startswith("/") and os.path.normpath(folder / recorded) == os.fspath(place):
        return None
    if layer.image.format is not Format.QCOW2:
        raise UnsupportedError(
            f"{layer.target}: {layer.image.spelled} is a {layer.image.format} image that names its "
            f"base {recorded}, which cannot be changed",
            remedy="imgtool migrate --flatten, or convert it to qcow2",
        )
    return backing_name(place, folder, relative=True)
