"""Find every image that has to do with a domain: for planners that remove or change some."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from imgtool.engine import survey
from imgtool.engine.world import World
from imgtool.host.files import names_below
from imgtool.host.headers import read_image
from imgtool.host.l1 import equal_snapshots
from imgtool.model.domain import Disk, Head
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Chain, Format, Image
from imgtool.model.snapshot import Snapshot
from imgtool.plan.lineage import FileId, Held, Lineage, Stranger, files_of
from imgtool.xml.domain import parse_domain
from imgtool.xml.snapshot import parse_snapshot

LOOKED_AT = 4096  # names in a folder of images; beyond that, somebody keeps other things there


def lineage_of(head: Head, world: World, *, losses: bool = False) -> Lineage:
    """The chains of a domain, of its snapshots, and of whoever else uses the same images.

    `losses`: also what would be lost with an image, for which qemu-img walks its metadata.
    """
    current = survey.chains_of(_images(head.domain.disks), world)
    found = {each.snapshot.name: each for each in held(head, world)}
    own = Lineage(current=current, held=found)
    images = own.images()
    strangers = strangers_to(head, {file: each.path for file, each in images.items()}, world)
    if not losses:
        return replace(own, strangers=strangers)
    return replace(
        own,
        strangers=strangers,
        used=frozenset(_used(current.values(), world)),
        unsaved=frozenset(_unsaved(images.values())),
        equal={file: equal_snapshots(image.path) for file, image in _with_tags(images)},
    )


def users_of(head: Head, image: Image, world: World) -> tuple[str, ...]:
    """Who but this domain and its snapshots reads an image, at any depth."""
    found = strangers_to(head, {image.identity.file: image.path}, world)
    return tuple(dict.fromkeys(stranger.who for stranger in found))


def folders_of(lineage: Lineage) -> dict[Path, Path]:
    """Each folder of an own image as it is spelled, and with its links resolved."""
    folders = {image.spelled.parent for image in lineage.images().values()}
    return {folder: folder.resolve() for folder in folders}


def taken_names(lineage: Lineage) -> frozenset[Path]:
    """Every name that is there beside an own image."""
    return frozenset(
        folder / name for folder in folders_of(lineage) for name in names_below(folder)
    )


def writable_images(lineage: Lineage) -> frozenset[Path]:
    """Own images that may be written, and that nobody has made read-only."""
    return frozenset(
        image.path
        for image in lineage.images().values()
        if os.access(image.path, os.W_OK) and image.path.stat().st_mode & 0o222
    )


def _images(disks: Iterable[Disk]) -> Iterator[Disk]:
    return (disk for disk in disks if not disk.empty and disk.device != "cdrom")


def held(head: Head, world: World) -> Iterator[Held]:
    """Every recorded snapshot with the chains that it leads to."""
    for document in world.store.snapshots(head.domain.name):
        yield held_by(parse_snapshot(document, where=head.domain.name), world)


def held_by(snapshot: Snapshot, world: World) -> Held:
    """A snapshot with the chains that its copy of the domain XML leads to."""
    disks: tuple[Disk, ...] = ()
    if snapshot.domain_xml:
        disks = parse_domain(snapshot.domain_xml, where=f"snapshot {snapshot.name}").disks
    return Held(snapshot=snapshot, disks=disks, chains=survey.chains_of(_images(disks), world))


def strangers_to(head: Head, images: Mapping[FileId, Path], world: World) -> tuple[Stranger, ...]:
    """Whoever uses one of these images: other domains, and overlays that nobody records."""
    return (*_other_domains(head, images, world), *_strays(images, world))


def _other_domains(head: Head, images: Mapping[FileId, Path], world: World) -> Iterator[Stranger]:
    for name in world.store.domains():
        if name == head.domain.name:
            continue
        try:
            other = world.store.head(name)
            documents = world.store.snapshots(name)
        except ImgtoolError:
            continue  # what cannot be read cannot be started, either
        chains = list(survey.chains_of(_images(other.domain.disks), world).values())
        for document in documents:
            chains += held_by(parse_snapshot(document, where=name), world).chains.values()
        for chain in chains:
            if files_of([chain]) & images.keys():
                yield Stranger(who=f"domain {name}", chain=chain)


def _strays(images: Mapping[FileId, Path], world: World) -> Iterator[Stranger]:
    """Overlays in the folders of our images that build on one of them and that nobody records."""
    for folder in {path.parent for path in images.values()}:
        names = list(names_below(folder))
        for name in names[:LOOKED_AT]:
            path = folder / name
            if path.is_symlink() or not path.is_file() or name.startswith(".imgtool-"):
                continue
            chain = _stray(path, images, world)
            if chain is not None:
                yield Stranger(who=str(path), chain=chain)


def _stray(path: Path, images: Mapping[FileId, Path], world: World) -> Chain | None:
    try:
        if world.files.identity(path).file in images:
            return None
        if read_image(path, Format.QCOW2).backing is None:
            return None
        disk = Disk(target=path.name, source=path, format=Format.QCOW2)
        chain = survey.chain_of(disk, world)
    except (ImgtoolError, OSError):
        return None
    return chain if files_of([chain]) & images.keys() else None


def _used(chains: Iterable[Chain], world: World) -> Iterator[FileId]:
    """Images that would be missed: with clusters of their own, or no overlays at all."""
    for chain in chains:
        for image in chain.images:
            overlay = image.format is Format.QCOW2 and image.backing is not None
            if not overlay or world.qemu.has_own_data(image.path, block_device=image.block_device):
                yield image.identity.file


def _with_tags(images: dict[FileId, Image]) -> Iterator[tuple[FileId, Image]]:
    for file, image in images.items():
        if image.format is Format.QCOW2 and image.snapshots:
            yield file, image


def _unsaved(images: Iterable[Image]) -> Iterator[FileId]:
    for image in images:
        if image.format is Format.QCOW2 and not equal_snapshots(image.path):
            yield image.identity.file
