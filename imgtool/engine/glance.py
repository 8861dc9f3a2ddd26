"""Read a domain, its snapshots and their chains, whatever is broken among them."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgtool.engine.world import World
from imgtool.host.headers import parse_info, read_image, read_inode
from imgtool.model.domain import Disk, Head
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Chain, Format, Image
from imgtool.model.snapshot import Snapshot
from imgtool.plan.finding import Finding, Flaw, Severity
from imgtool.plan.lineage import FileId, Held
from imgtool.plan.snapshot import MAX_LAYERS
from imgtool.xml.backing import recorded_formats
from imgtool.xml.domain import parse_domain
from imgtool.xml.snapshot import parse_snapshot

LOCAL = frozenset({"file", "block", "volume"})  # types of disks that imgtool looks at
Formats = Mapping[FileId, frozenset[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Glance:
    """What could be read of one domain. Nothing here raises: what is wrong is part of it."""

    name: str
    head: Head | None = None
    current: str | None = None
    chains: Mapping[str, Chain] = field(default_factory=dict)
    held: Mapping[str, Held] = field(default_factory=dict)
    flaws: tuple[Flaw, ...] = ()
    problems: tuple[Finding, ...] = ()
    named: frozenset[Path] = frozenset()  # every local path that the XML names, links resolved

    def all_chains(self) -> Iterator[Chain]:
        """Those of the domain and of its snapshots."""
        yield from self.chains.values()
        for held in self.held.values():
            yield from held.chains.values()


def look_at(name: str, world: World, known: Formats | None = None) -> Glance:
    """Read what there is. `known`: formats that are recorded elsewhere, to read further down."""
    formats = known or {}
    try:
        head = world.store.head(name)
    except (ImgtoolError, OSError) as error:
        return Glance(name=name, problems=(_unreadable("domain", f"domain {name}", error),))
    name = head.domain.name
    problems: list[Finding] = []
    snapshots = _snapshots(name, world, problems)
    flaws: list[Flaw] = []
    chains = _chains(head.domain.disks, "", world, formats, flaws)
    held = {each.name: _held(each, world, formats, flaws, problems) for each in snapshots}
    current = None
    try:
        current = world.store.current(name)
    except (ImgtoolError, OSError) as error:
        problems.append(_unreadable("current", f"domain {name}: the current snapshot", error))
    return Glance(
        name=name,
        head=head,
        current=current,
        chains=chains,
        held=held,
        flaws=tuple(flaws),
        problems=tuple(problems),
        named=frozenset(_named(head, held.values())),
    )


def formats_of(glances: Iterable[Glance]) -> Formats:
    """What the domains, their snapshots and overlays record of the formats of files.

    A record is: a `<driver type=...>` or `<backingStore>` that a domain's XML, or a snapshot's
    copy of it, spells out for the file; a snapshot's own `<disk>` with driver and source; the
    backing format in another overlay of the file. What is in the file itself is none.
    """
    found: dict[FileId, set[str]] = {}

    def note(path: Path, fmt: str) -> None:
        try:
            file = read_inode(path.resolve()).identity.file
        except (ImgtoolError, OSError, RuntimeError):
            return  # it is not there
        found.setdefault(file, set()).add(fmt)

    for glance in glances:
        documents = [each.snapshot.domain_xml for each in glance.held.values()]
        for document in [*([glance.head.xml] if glance.head else []), *documents]:
            for path, fmt in _recorded(document):
                note(path, fmt)
        for held in glance.held.values():
            for disk in (*held.snapshot.disks, *held.snapshot.revert_disks):
                if disk.driver and disk.source.startswith("/"):
                    note(Path(disk.source), disk.driver)
        for chain in glance.all_chains():
            for base, overlay in zip(chain.images, chain.images[1:], strict=False):
                if overlay.backing_format:
                    found.setdefault(base.identity.file, set()).add(overlay.backing_format)
    return {file: frozenset(formats) for file, formats in found.items()}


def image_at(name: Path, fmt: Format, world: World) -> Image:
    """One image, by its header. Raises ImgtoolError; OSError where the path leads nowhere."""
    path = name.resolve(strict=True)
    if fmt is Format.VMDK:
        image = parse_info(world.qemu.info_json(path, fmt), path, read_inode(path))
    else:
        image = read_image(path, fmt)
    return replace(image, name=name)


def _recorded(document: bytes) -> tuple[tuple[Path, str], ...]:
    try:
        return recorded_formats(document) if document else ()
    except ImgtoolError:
        return ()


def _snapshots(name: str, world: World, problems: list[Finding]) -> list[Snapshot]:
    found = []
    try:
        documents = world.store.snapshots(name)
    except (ImgtoolError, OSError) as error:
        problems.append(_unreadable("record", f"domain {name}: its snapshots", error))
        return []
    for document in documents:
        try:
            found.append(parse_snapshot(document, where=f"a snapshot of {name}"))
        except ImgtoolError as error:
            problems.append(_unreadable("record", f"domain {name}: a snapshot", error))
    return sorted(found, key=lambda each: (each.created, each.name))


def _unreadable(kind: str, what: str, error: ImgtoolError | OSError) -> Finding:
    remedy = error.remedy if isinstance(error, ImgtoolError) else "see permissions and mounts"
    return Finding(
        severity=Severity.ERROR,
        kind=f"{kind}-unreadable",
        message=f"{what} cannot be read: {error}",
        remedy=remedy,
    )


def _held(
    snapshot: Snapshot,
    world: World,
    formats: Formats,
    flaws: list[Flaw],
    problems: list[Finding],
) -> Held:
    disks: tuple[Disk, ...] = ()
    try:
        if snapshot.domain_xml:
            disks = parse_domain(snapshot.domain_xml, where=f"snapshot {snapshot.name}").disks
    except ImgtoolError as error:
        problems.append(_unreadable("record", f"snapshot {snapshot.name}", error))
    taking = {disk.name for disk in snapshot.disks if disk.mode not in (None, "no")}
    own: list[Flaw] = []
    chains = _chains(disks, snapshot.name, world, formats, own)
    flaws += [flaw for flaw in own if flaw.target in taking]  # others it does not need
    return Held(snapshot=snapshot, disks=disks, chains=chains)


def _chains(
    disks: Iterable[Disk], snapshot: str, world: World, formats: Formats, flaws: list[Flaw]
) -> dict[str, Chain]:
    found = {}
    for disk in disks:
        if disk.type not in LOCAL or disk.empty or disk.device == "cdrom":
            continue
        images: list[Image] = []
        for each in _layers(disk, world, formats):
            if isinstance(each, Image):
                images.append(each)
            else:
                flaws.append(replace(each, snapshot=snapshot))
        if images:
            found[disk.target] = Chain(tuple(reversed(images)))
    return found


def _layers(disk: Disk, world: World, formats: Formats) -> Iterator[Image | Flaw]:
    """The layers from the top down; a Flaw comes last, or says what imgtool does not touch."""

    def flaw(kind: str, path: Path, message: str, remedy: str) -> Flaw:
        return Flaw(kind=kind, target=disk.target, path=path, message=message, remedy=remedy)

    name, fmt = disk.source, disk.format
    try:
        if disk.type == "volume":
            name = world.store.volume(disk.pool, disk.volume)
    except ImgtoolError as error:
        yield flaw("unsupported", Path(disk.volume or "?"), error.message, error.remedy)
        return
    seen: set[FileId] = set()
    while name is not None:
        if fmt is None:
            message = f"{name}: of a format that imgtool does not know"
            yield flaw("unsupported", name, message, shlex.join(["qemu-img", "info", str(name)]))
            return
        try:
            image = image_at(name, fmt, world)
        except FileNotFoundError:
            yield flaw("missing", name, f"{name} is gone", "restore it")
            return
        except (OSError, RuntimeError) as error:
            yield flaw("unreadable", name, f"{name} cannot be read: {error}", "restore it")
            return
        except ImgtoolError as error:
            yield flaw("unreadable", name, error.message, error.remedy)
            return
        if image.identity.file in seen:
            below = f"qemu-img rebase -u -f {image.format} -F FORMAT -b BASE"
            yield flaw(
                "loop",
                name,
                f"{name}: the backing chain loops",
                f"{below} {shlex.quote(str(name))}",
            )
            return
        if len(seen) >= MAX_LAYERS:
            message = f"{name}: over {MAX_LAYERS} layers deep, which QEMU does not start"
            yield flaw("too-deep", name, message, shlex.join(["qemu-img", "commit", str(name)]))
            return
        seen.add(image.identity.file)
        yield image
        if image.encrypted or image.data_file:
            what = "is encrypted" if image.encrypted else "keeps its data in another file"
            yield flaw("unsupported", name, f"{name} {what}: imgtool does not touch it", "")
        if image.backing is None:
            return
        if ":" in image.backing.partition("/")[0]:
            message = f"{name}: its base {image.backing!r} is not a plain file name"
            yield flaw("unsupported", name, message, "")
            return
        name, fmt = _below(image, formats)
        if fmt is None and not image.backing_format:
            return  # the overlay itself is what has to be told of


def _below(image: Image, formats: Formats) -> tuple[Path, Format | None]:
    """Where the base is, and its format: as recorded in the overlay, else as all others say."""
    name = image.spelled.parent / (image.backing or "")
    if image.format is Format.VMDK:
        return name, Format.VMDK
    if image.backing_format:
        return name, Format.parse(image.backing_format)
    try:
        known = formats.get(read_inode(name.resolve()).identity.file, frozenset())
    except (ImgtoolError, OSError, RuntimeError):
        known = frozenset()
    return name, Format.parse(next(iter(known))) if len(known) == 1 else None


def _named(head: Head, held: Iterable[Held]) -> Iterator[Path]:
    for disk in head.domain.disks:
        if disk.source is not None:
            yield Path(os.path.realpath(disk.source))
    for each in held:
        for disk in each.disks:
            if disk.source is not None:
                yield Path(os.path.realpath(disk.source))
        for part in (*each.snapshot.disks, *each.snapshot.revert_disks):
            for path in (part.source, part.mirror):
                if path.startswith("/"):
                    yield Path(os.path.realpath(path))
