"""Compare a domain in a directory store with what it must be, one sentence for each difference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.etree import ElementTree

from imgtool import api
from imgtool.engine.world import World
from imgtool.host.headers import read_image
from imgtool.model.domain import Disk, Domain, SnapshotMode
from imgtool.model.image import Format
from imgtool.model.snapshot import Snapshot
from imgtool.testing.moments import Expected, Moment, Place
from imgtool.testing.reading import GuestReader
from imgtool.xml.domain import parse_domain


def complaints(expected: Expected, world: World, domain: str, reader: GuestReader) -> list[str]:
    """All that is not as expected. Nothing may be pending. Raises what cannot be read at all."""
    reader.look_again()
    head = world.store.head(domain)
    found = [
        *_domain_xml(expected, head.xml, head.domain),
        *_snapshots(expected, world, domain),
        *_files(expected, world, domain),
    ]
    if found:
        return found  # what is missing could not be read
    return [*_chains(expected, reader), *_images(expected, reader), *_contents(expected, reader)]


def _domain_xml(expected: Expected, xml: bytes, domain: Domain) -> Iterator[str]:
    root = ElementTree.fromstring(xml)
    title = root.findtext("title") or ""
    if title != (f"edit {expected.edits}" if expected.edits else ""):
        yield f"the domain XML: title {title!r} after {expected.edits} edits by somebody"
    if b"<!-- a comment, which stays -->" not in xml:
        yield "the domain XML: its comment is gone"
    yield from _differ("the domain XML: disks", _named(expected.active), _sources(domain.disks))


def _snapshots(expected: Expected, world: World, domain: str) -> Iterator[str]:
    recorded = {each.name: each for each in api.snapshots(world, domain)}
    tree = {moment.name: moment.parent for moment in expected.moments}
    found = {name: each.parent for name, each in recorded.items()}
    yield from _differ("snapshots and their parents", tree, found)
    yield from _differ("the current snapshot", expected.current, world.store.current(domain))
    for moment in expected.moments:
        if moment.name in recorded:
            yield from _record(moment, recorded[moment.name])
    yield from _differ("pending", (), api.pending(world))


def _record(moment: Moment, snapshot: Snapshot) -> Iterator[str]:
    where = f"the record of {moment.name}"
    modes = {disk.name: disk.mode for disk in snapshot.disks}
    unsaid = {target: SnapshotMode.NO for target in moment.modes if target not in modes}
    yield from _differ(f"{where}: modes", dict(moment.modes), modes | unsaid)
    disks = parse_domain(snapshot.domain_xml, where=where).disks
    sources = {disk.target: str(disk.source) for disk in disks}
    named = {target: str(path) for target, path in moment.sources.items()}
    yield from _differ(f"{where}: disks of before", named, sources)


def _files(expected: Expected, world: World, domain: str) -> Iterator[str]:
    """No file and no folder that nobody has a use for; none missing."""
    home = world.state_dir / world.store.head(domain).domain.uuid
    (folder,) = {path.parent for path in expected.files}
    wanted = {folder / f"{domain}.xml", *expected.files}
    if expected.moments:
        wanted |= {world.state_dir, home, home / "snapshots"}
        wanted |= {home / "snapshots" / f"{moment.name}.xml" for moment in expected.moments}
    if expected.current is not None:
        wanted |= {home / "current"}
    there = set(folder.rglob("*"))
    yield from (f"{path.relative_to(folder)}: a stray file" for path in sorted(there - wanted))
    yield from (f"{path.relative_to(folder)}: is gone" for path in sorted(wanted - there))


def _chains(expected: Expected, reader: GuestReader) -> Iterator[str]:
    for target, chain in expected.chains.items():
        top = expected.active[target]
        found = [str(image.path) for image in reversed(reader.chain(top.path, top.format))]
        yield from _differ(f"the layers of {target}", [str(layer.path) for layer in chain], found)


def _images(expected: Expected, reader: GuestReader) -> Iterator[str]:
    qcow2 = set()
    for _, place, _ in expected.readings():
        for image in reader.chain(place.path, place.format):
            if image.format is Format.QCOW2:
                qcow2.add(image.path)
    for path, problem in reader.checks(sorted(qcow2)).items():
        image = read_image(path, Format.QCOW2)
        if image.corrupt or image.dirty:
            yield f"{path.name}: is left marked as corrupt or dirty"
        elif problem:
            yield f"{path.name}: qemu-img check: {problem}"
        tags = sorted(entry.tag for entry in image.snapshots)
        yield from _differ(f"{path.name}: internal snapshots", sorted(expected.tags(path)), tags)
        if image.backing is not None and (path in expected.relative) == image.backing.startswith(
            "/"
        ):
            how = "absolutely" if path in expected.relative else "relatively"
            yield f"{path.name}: names its base {how}: {image.backing}"


def _contents(expected: Expected, reader: GuestReader) -> Iterator[str]:
    readings = list(expected.readings())
    found = reader.contents({place for _, place, _ in readings})
    for what, place, wanted in readings:
        shown = found[place]
        if place.tag is not None:  # the image may be larger or smaller now; a revert knows its size
            yield from _tag_size(what, place, len(wanted))
            size = min(len(wanted), len(shown))
            wanted, shown = wanted[:size], shown[:size]
        if shown != wanted:
            yield f"{what} ({place}): {_first_difference(wanted, shown)}"


def _tag_size(what: str, place: Place, wanted: int) -> Iterator[str]:
    for entry in read_image(place.path, place.format).snapshots:
        if entry.tag == place.tag and entry.virtual_size not in (None, wanted):
            yield f"{what} ({place}): {entry.virtual_size} bytes recorded, not {wanted}"


def _first_difference(wanted: bytes, found: bytes) -> str:
    if len(wanted) != len(found):
        return f"{len(found)} bytes, not {len(wanted)}"
    bad = [at for at in range(0, len(wanted), 512) if wanted[at : at + 512] != found[at : at + 512]]
    was, now = wanted[bad[0]], found[bad[0]]
    return f"{len(bad)} sectors differ, the first at byte {bad[0]}: {now:#x}, not {was:#x}"


def _sources(disks: tuple[Disk, ...]) -> dict[str, tuple[str, str]]:
    return {disk.target: (str(disk.source), disk.format_name) for disk in disks}


def _named(places: Mapping[str, Place]) -> dict[str, tuple[str, str]]:
    return {target: (str(place.path), str(place.format)) for target, place in places.items()}


def _differ(what: str, wanted: object, found: object) -> Iterator[str]:
    if wanted != found:
        yield f"{what}: {found}, not {wanted}"
