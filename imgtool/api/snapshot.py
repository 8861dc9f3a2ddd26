"""Take a snapshot, or record one that is there."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.api.domains import snapshots
from imgtool.api.world import working_on
from imgtool.engine import guard, survey
from imgtool.engine.transaction import run
from imgtool.engine.world import World
from imgtool.model.domain import Head, SnapshotMode
from imgtool.model.errors import BadRequestError, NotFoundError
from imgtool.model.image import Chain
from imgtool.model.plan import Commit
from imgtool.model.snapshot import Snapshot, SnapshotRequest
from imgtool.plan.mirror import Mirrors, add_mirrors
from imgtool.plan.names import check_snapshot_name, overlay_path
from imgtool.plan.select import Choice, select
from imgtool.plan.snapshot import Facts, Place, Prepared, SnapshotPlan, plan_snapshot
from imgtool.xml import patch
from imgtool.xml.snapshot import format_snapshot, parse_redefine


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
    mirror: Path | None = None  # its equal elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotResult:
    """A snapshot that was taken, or (`dry_run`) would be."""

    domain: str
    snapshot: str
    transaction: str
    disks: tuple[DiskResult, ...]
    planned: SnapshotPlan


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
    head = world.store.head(domain)
    domain = head.domain.name
    with working_on(world, domain, jobs=True):
        names = {each.name for each in snapshots(world, domain)}
        if snapshot.parent is not None and snapshot.parent not in names:
            raise NotFoundError(
                f"parent {snapshot.parent} for moment {snapshot.name} not found",
                remedy="redefine the parent first",
            )
        if current:
            guard.require_not_mirrored(world, head, but=snapshot.name)
        mirrors = _mirrored(snapshot)
        if mirrors and snapshot.domain_xml:
            xml = patch.stamp_record(
                snapshot.domain_xml, txid=snapshot.transaction, mirrors=mirrors, where=domain
            )
            snapshot = replace(snapshot, domain_xml=xml)
        world.store.record(domain, snapshot.name, format_snapshot(snapshot), current=current)
    return snapshot.name


def _plan(
    world: World, head: Head, request: SnapshotRequest, options: SnapshotOptions
) -> SnapshotPlan:
    domain = head.domain
    created = int(time.time())
    named = replace(request, name=request.name or str(created))
    check_snapshot_name(named.name)
    guard.require_free(world, head)
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
    mirrors = _mirrors(world, choices, options)
    return add_mirrors(plan_snapshot(named, choices, facts), choices, mirrors, facts)


def _mirrors(world: World, choices: Sequence[Choice], options: SnapshotOptions) -> Mirrors:
    """Where the mirrors go, or those that are there already with --reuse-external."""
    asked = {choice.disk.target: choice.mirror for choice in choices if choice.mirror is not None}
    if options.reuse_external:
        prepared = {target: survey.prepared(target, path, world) for target, path in asked.items()}
        return Mirrors(places={}, prepared=prepared)
    places = {target: survey.place_of(target, path) for target, path in asked.items()}
    return Mirrors(places=places, prepared={})


def _mirrored(snapshot: Snapshot) -> dict[str, str]:
    return {disk.name: disk.mirror for disk in snapshot.disks if disk.mirror}


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
        planned.snapshot,
        domain_xml=patch.stamp_record(
            head.xml, txid=txid, mirrors=_mirrored(planned.snapshot), where=head.domain.name
        ),
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
                mirror=Path(disk.mirror) if disk.mirror else None,
            )
        )
    return SnapshotResult(
        domain=head.domain.name,
        snapshot=planned.snapshot.name,
        transaction=planned.plan.txid,
        disks=tuple(disks),
        planned=planned,
    )
