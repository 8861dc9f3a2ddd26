"""Which images a domain is made of now: read, where an operation is free to choose their names.

Only the layout is read. What each disk must read as, and at which snapshots, is the model's.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def learned(expected: Expected, world: World, domain: str, reader: GuestReader) -> Expected:
    """The same contents at the places that the store names. What no chain needs is not learned.

    Raises AssertionError, ImgtoolError for what cannot be read.
    """
    active = {disk.target: _place(disk) for disk in world.store.head(domain).domain.disks}
    recorded = {each.name: each for each in api.snapshots(world, domain)}
    missing = {moment.name for moment in expected.moments} - recorded.keys()
    assert not missing, f"snapshots that are gone: {missing}"
    moments = tuple(_moment(moment, recorded[moment.name]) for moment in expected.moments)
    places = [*active.values(), *(place for each in moments for place in each.places.values())]
    files = frozenset(
        image.path for place in places for image in reader.chain(place.path, place.format)
    )
    relative = expected.relative & files
    return replace(expected, active=active, moments=moments, files=files, relative=relative)


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
    features = None
    if disk.format is Format.QCOW2:
        features = read_image(disk.source, disk.format).features
    internal = features is not None and features.compat != "0.10"
    return Place(path=disk.source, format=disk.format, internal=internal)


def _sources(disks: Mapping[str, Disk]) -> dict[str, Path]:
    return {target: disk.source for target, disk in disks.items() if disk.source is not None}
