"""Which images a domain is made of now: read, where an operation is free to choose their names.

Only the layout is read. What each disk must read as, and at which snapshots, is the model's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.host.headers import read_image
from imgtool.model.domain import Disk, SnapshotMode
from imgtool.model.image import Format
from imgtool.model.snapshot import Snapshot
from imgtool.testing.moments import Expected, Moment, Place
from imgtool.testing.reading import GuestReader
from imgtool.xml.domain import parse_domain

MAGIC = b"QFI\xfb"  # of a qcow2 image


def learned(expected: Expected, world: World, domain: str, reader: GuestReader) -> Expected:
    """The same contents at the places that the store names, through the layers that are there.

    What no chain needs is not learned, unless it is to stay. Raises AssertionError, ImgtoolError
    for what cannot be read.
    """
    active = {disk.target: _place(disk) for disk in world.store.head(domain).domain.disks}
    recorded = {each.name: each for each in api.snapshots(world, domain)}
    missing = {moment.name for moment in expected.moments} - recorded.keys()
    assert not missing, f"snapshots that are gone: {missing}"
    moments = expected.moments  # a block job does not change them
    if not expected.chains:
        moments = tuple(_moment(moment, recorded[moment.name]) for moment in moments)
    chains = {target: _chain(place, reader) for target, place in active.items()}
    states = [place for each in moments for place in each.places.values()]
    frozen = {place: [layer.path for layer in _chain(place, reader)] for place in states}
    needed = {path for chain in frozen.values() for path in chain}
    needed |= {layer.path for chain in chains.values() for layer in chain}
    now = replace(expected, active=active, chains={**chains, **expected.chains}, moments=moments)
    spare = frozenset(_spare(expected, needed))
    files = needed | {layer for path in spare for layer in _below(path, reader)}
    relative = {path for path in files - expected.files if _is_relative(path)}
    return replace(
        now,
        files=frozenset(files),
        spare=spare,
        under={place.path: frozenset(chain[:-1]) for place, chain in frozen.items()},
        own=frozenset(layer for path in now.named() for layer in _below(path, reader)),
        relative=(expected.relative & files) | relative,
    )


def _chain(place: Place, reader: GuestReader) -> tuple[Place, ...]:
    images = reversed(reader.chain(place.path, place.format))
    return tuple(_place_of(image.path, image.format) for image in images)


def _spare(expected: Expected, needed: set[Path]) -> Iterator[Path]:
    """What is to stay although no chain needs it.

    What snapshots name, even of disks that they have not taken, a deletion may merge and drop.
    """
    for path in expected.spare - needed:
        if expected.chains or path.exists() or path not in expected.own:
            yield path


def _below(path: Path, reader: GuestReader) -> Iterator[Path]:
    """An image with all that it builds on; only its name, if it is gone."""
    yield path
    if path.exists() and _is_qcow2(path):
        yield from (image.path for image in reader.chain(path, Format.QCOW2))


def _is_relative(path: Path) -> bool:
    backing = read_image(path, Format.QCOW2).backing if _is_qcow2(path) else None
    return backing is not None and not backing.startswith("/")


def _is_qcow2(path: Path) -> bool:
    """Our guests write no piece of data that begins so."""
    with path.open("rb") as image:
        return image.read(4) == MAGIC


def _moment(moment: Moment, snapshot: Snapshot) -> Moment:
    """A disk keeps its mode; of a snapshot that imgtool has made itself, the modes are read."""
    said = {disk.name: disk.mode or SnapshotMode.NO for disk in snapshot.disks}
    modes = moment.modes or {
        target: said.get(target, SnapshotMode.NO) for target in moment.contents
    }
    disks = {disk.target: disk for disk in parse_domain(snapshot.domain_xml, where="it").disks}
    places = {}
    for target, mode in modes.items():
        if mode is not SnapshotMode.NO:
            tag = moment.name if mode is SnapshotMode.INTERNAL else None
            places[target] = replace(_place(disks[target]), tag=tag)
    return replace(
        moment,
        modes=modes,
        places=places,
        contents={target: moment.contents[target] for target in places},
        sources=_sources(disks),
    )


def _place(disk: Disk) -> Place:
    assert disk.source is not None, f"{disk.target}: has no source"
    assert disk.format is not None, f"{disk.target}: of an unknown format"
    return _place_of(disk.source, disk.format)


def _place_of(path: Path, fmt: Format) -> Place:
    features = read_image(path, fmt).features if fmt is Format.QCOW2 else None
    internal = features is not None and features.compat != "0.10"
    return Place(path=path, format=fmt, internal=internal)


def _sources(disks: Mapping[str, Disk]) -> dict[str, Path]:
    return {target: disk.source for target, disk in disks.items() if disk.source is not None}
