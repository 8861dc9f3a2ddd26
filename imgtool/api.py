"""One short function per operation. Everything that the command line can do, typed, silent.

`open_world` connects to a store; the other functions take the World it returns. All raise
ImgtoolError; `error.exit_code` and `error.remedy` say what is true then and what to do.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.engine import recovery, survey
from imgtool.engine.interrupt import Interrupt
from imgtool.engine.recovery import Recovery, Waiting
from imgtool.engine.room import Room, entered
from imgtool.engine.transaction import Direction, conclude, run
from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.model.domain import Head, SnapshotMode
from imgtool.model.errors import BadRequestError, NotFoundError
from imgtool.model.image import Chain
from imgtool.model.plan import Commit
from imgtool.model.snapshot import Snapshot, SnapshotRequest
from imgtool.plan.names import check_snapshot_name, overlay_path
from imgtool.plan.select import Choice, select
from imgtool.plan.snapshot import Facts, Place, Prepared, SnapshotPlan, plan_snapshot
from imgtool.stores.open import open_store
from imgtool.xml import patch
from imgtool.xml.snapshot import format_snapshot, parse_redefine, parse_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotOptions:
    """How a snapshot is taken; the names are those of virsh's options."""

    disk_only: bool = False
    reuse_external: bool = False
    no_metadata: bool = False
    relative: bool = False  # overlays record their bases by relative names
    force: bool = False  # reuse an overlay that has data of its own
    dry_run: bool = False  # plan, and begin nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskResult:
    """What became of one disk."""

    target: str
    mode: SnapshotMode
    base: Path | None  # the active layer of before
    overlay: Path | None  # the active layer of now, if another


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotResult:
    """A snapshot that was taken, or (`dry_run`) would be."""

    domain: str
    snapshot: str
    transaction: str
    disks: tuple[DiskResult, ...]
    planned: SnapshotPlan


@contextmanager
def open_world(
    connect: str = "",
    *,
    state_dir: Path | None = None,
    jobs: int = 0,
    files: Files | None = None,
    interrupt: Interrupt | None = None,
    say: Callable[[str], None] | None = None,
) -> Iterator[World]:
    """Connect to the store `connect` (`dir:PATH` or a libvirt URI; empty: as virsh would).

    `state_dir` overrides where journals are kept; `jobs` bounds how many disks are worked on at
    once; `say` receives lines for a person.
    """
    files = files or Files()
    store = open_store(connect or default_uri(), files=files)
    try:
        yield World(
            store=store,
            state_dir=state_dir.absolute() if state_dir else store.state_dir,
            files=files,
            jobs=jobs,
            interrupt=interrupt or Interrupt(),
            say=say or (lambda _line: None),
        )
    finally:
        store.close()


def default_uri() -> str:
    """$IMGTOOL_CONNECT, else $LIBVIRT_DEFAULT_URI, else virsh's own default."""
    for variable in ("IMGTOOL_CONNECT", "LIBVIRT_DEFAULT_URI"):
        if os.environ.get(variable):
            return os.environ[variable]
    return "qemu:///system" if os.geteuid() == 0 else "qemu:///session"


def locate(domain: str, connect: str) -> tuple[str, str]:
    """A DOMAIN that is a path to an .xml file means that folder and that domain."""
    if domain.endswith(".xml") and (os.sep in domain or Path(domain).is_file()):
        path = Path(domain).absolute()
        return f"dir:{path.parent}", path.stem
    return connect, domain


@contextmanager
def working_on(world: World, domain: str) -> Iterator[Room]:
    """Hold the domain's lock, having ended what an earlier transaction left open."""
    uuid = world.store.head(domain).domain.uuid
    with entered(world.state_dir, uuid, world.files) as room:
        before = recovery.waiting(world, uuid)
        with world.interrupt.deferred(lambda: None):
            direction = conclude(room, world)
        if direction is not None and before is not None:
            way = "finished" if direction is Direction.FORWARD else "undone"
            world.say(f"{before.plan.summary} was interrupted; it is {way} now")
        world.interrupt.check()
        yield room


def take_snapshot(
    world: World, domain: str, request: SnapshotRequest, options: SnapshotOptions
) -> SnapshotResult:
    """Take a snapshot of a stopped domain: all the disks that are asked for, or none.

    Raises what the planner and the transaction raise; after PendingError, `recover` is needed.
    A crash at any moment is ended by `recover`, or by the next operation on the domain.
    """
    if options.dry_run:
        head = world.store.head(domain)
        planned = _plan(world, head, request, options)
        _say(world, planned)
        return _result(head, planned)
    with working_on(world, domain) as room:
        head = world.store.head(domain)
        planned = _plan(world, head, request, options)
        commit = _commit(head, planned)
        run(planned.plan, commit, room, world)
        _say(world, planned)
        return _result(head, planned)


def redefine_snapshot(world: World, domain: str, xml: bytes, *, current: bool) -> str:
    """Record a snapshot from its XML, as `snapshot-create --redefine`; no image is touched."""
    snapshot = parse_redefine(xml, where="the snapshot to redefine")
    check_snapshot_name(snapshot.name)
    domain = world.store.head(domain).domain.name
    with working_on(world, domain):
        names = {each.name for each in snapshots(world, domain)}
        if snapshot.parent is not None and snapshot.parent not in names:
            raise NotFoundError(
                f"parent {snapshot.parent} for moment {snapshot.name} not found",
                remedy="redefine the parent first",
            )
        world.store.record(domain, snapshot.name, format_snapshot(snapshot), current=current)
    return snapshot.name


def snapshots(world: World, domain: str) -> tuple[Snapshot, ...]:
    """All recorded snapshots of a domain, oldest first."""
    found = (parse_snapshot(xml, where=domain) for xml in world.store.snapshots(domain))
    return tuple(sorted(found, key=lambda each: (each.created, each.name)))


def set_current_snapshot(world: World, domain: str, name: str) -> None:
    """Mark a recorded snapshot as the current one, as `snapshot-current`. Raises NotFoundError."""
    domain = world.store.head(domain).domain.name
    with working_on(world, domain):
        if name not in {each.name for each in snapshots(world, domain)}:
            raise NotFoundError(
                f"domain {domain} has no snapshot {name!r}", remedy="see imgtool snapshot-list"
            )
        world.store.set_current(domain, name)


def chains(world: World, domain: str, targets: Sequence[str] = ()) -> dict[str, Chain]:
    """The backing chain of each disk that has a local image, base first, by target.

    `targets` picks disks, whose chains must then be readable; without it, cdroms and the like
    that cannot be read are left out. Raises NotFoundError, ChainError, UnsupportedError.
    """
    parsed = world.store.head(domain).domain
    picked = []
    for target in targets:
        disk = parsed.disk(target)
        if disk is None:
            raise NotFoundError(f"no disk named {target!r}", remedy="see imgtool domblklist")
        picked.append(disk)
    if not picked:
        picked = [disk for disk in parsed.disks if disk.device == "disk" and not disk.empty]
    return {disk.target: survey.chain_of(disk, world) for disk in picked}


def recover(world: World, domain: str | None = None) -> Recovery:
    """End what was left open: of one domain (name or UUID), or of all."""
    return recovery.recover(world, None if domain is None else _uuid(world, domain))


def pending(world: World, domain: str | None = None) -> tuple[Waiting, ...]:
    """What is open, and which way it would end. Reads only."""
    found = recovery.all_waiting(world)
    if domain is None:
        return found
    uuid = _uuid(world, domain)
    return tuple(each for each in found if each.plan.uuid == uuid)


def define(world: World, xml: bytes) -> str:
    """Add or replace a domain, as virsh define; returns its name. Refused while it is pending."""
    from imgtool.xml.domain import parse_domain

    name = parse_domain(xml, where="the domain to define").name
    if name in world.store.domains():
        with working_on(world, name):
            return world.store.define(xml)
    return world.store.define(xml)


def undefine(world: World, domain: str, *, snapshots_metadata: bool = False) -> None:
    """Forget a stopped domain; its images stay."""
    domain = world.store.head(domain).domain.name
    with working_on(world, domain):
        world.store.undefine(domain, snapshots_metadata=snapshots_metadata)


def _uuid(world: World, domain: str) -> str:
    try:
        return world.store.head(domain).domain.uuid
    except NotFoundError:
        for each in recovery.all_waiting(world):
            if domain in (each.plan.domain, each.plan.uuid):
                return each.plan.uuid  # undefined meanwhile
        raise


def _plan(
    world: World, head: Head, request: SnapshotRequest, options: SnapshotOptions
) -> SnapshotPlan:
    domain = head.domain
    created = int(time.time())
    named = replace(request, name=request.name or str(created))
    check_snapshot_name(named.name)
    choices = select(named, domain, head.state, disk_only=options.disk_only)
    taking = [choice for choice in choices if choice.mode is not SnapshotMode.NO]
    found = {choice.disk.target: survey.chain_of(choice.disk, world) for choice in taking}
    others = [disk for disk in domain.disks if disk.target not in found]
    places, prepared = _overlays(world, taking, named.name, found, options)
    txid = secrets.token_hex(8)
    facts = Facts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / domain.uuid / txid,
        created=created,
        chains=found | survey.chains_of(others, world),
        places=places,
        prepared=prepared,
        snapshots=frozenset(each.name for each in snapshots(world, domain.name)),
        current=world.store.current(domain.name),
        relative=options.relative,
        metadata=not options.no_metadata,
        force=options.force,
    )
    return plan_snapshot(named, choices, facts)


def _overlays(
    world: World,
    taking: Sequence[Choice],
    name: str,
    found: dict[str, Chain],
    options: SnapshotOptions,
) -> tuple[dict[str, Place], dict[str, Prepared]]:
    """Where the overlays go, and those that are there already with --reuse-external."""
    places: dict[str, Place] = {}
    prepared: dict[str, Prepared] = {}
    for choice in taking:
        target = choice.disk.target
        if choice.mode is not SnapshotMode.EXTERNAL:
            continue
        if choice.asked is not None and choice.asked.type == "block" and not options.reuse_external:
            raise BadRequestError(
                f"{target}: an overlay on a block device would overwrite what is there",
                remedy="prepare it with qemu-img create, then use --reuse-external",
            )
        path = choice.file or overlay_path(
            choice.disk, name, regular_file=not found[target].active.block_device
        )
        if options.reuse_external:
            prepared[target] = survey.prepared(target, path, world)
        else:
            places[target] = survey.place_of(target, path)
    return places, prepared


def _say(world: World, planned: SnapshotPlan) -> None:
    for note in planned.notes:
        world.say(note)


def _commit(head: Head, planned: SnapshotPlan) -> Commit:
    txid = planned.plan.txid
    stamped = replace(
        planned.snapshot, domain_xml=patch.stamp_record(head.xml, txid=txid, where=head.domain.name)
    )
    return Commit(
        expected=head.digest,
        xml=patch.pivot(head.xml, moves=planned.moves, txid=txid, where=head.domain.name),
        records=(format_snapshot(stamped),) if planned.plan.records else (),
        pins=planned.pins,
        space=planned.space,
    )


def _result(head: Head, planned: SnapshotPlan) -> SnapshotResult:
    moved = {move.target: move.path for move in planned.moves}
    changed = {step.target: step.image for step in planned.plan.changes}
    bases = {pin.target: pin.path for pin in planned.pins}
    disks = []
    for disk in planned.snapshot.disks:
        base = head.domain.disk(disk.name)
        disks.append(
            DiskResult(
                target=disk.name,
                mode=disk.mode or SnapshotMode.NO,
                base=(base.source if base else None)
                or changed.get(disk.name)
                or bases.get(disk.name),
                overlay=moved.get(disk.name),
            )
        )
    return SnapshotResult(
        domain=head.domain.name,
        snapshot=planned.snapshot.name,
        transaction=planned.plan.txid,
        disks=tuple(disks),
        planned=planned,
    )
