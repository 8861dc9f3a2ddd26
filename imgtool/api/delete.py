"""Delete snapshots, with their data or (metadata) without."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace

from imgtool.api.revert import current_or, require_recorded
from imgtool.api.world import working_on
from imgtool.engine import family, guard
from imgtool.engine.room import Room
from imgtool.engine.transaction import run
from imgtool.engine.world import World
from imgtool.model.domain import Head
from imgtool.model.plan import Aftermath, Commit, Plan, ReplaceRecord
from imgtool.model.snapshot import Snapshot
from imgtool.plan.delete import DeleteFacts, DeletePlan, plan_delete
from imgtool.plan.lineage import Lineage
from imgtool.stores.base import require_stopped
from imgtool.xml import patch
from imgtool.xml.snapshot import format_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteOptions:
    """What to delete; the names are those of virsh's options."""

    children: bool = False  # the snapshot and all its descendants
    children_only: bool = False  # the descendants alone
    metadata: bool = False  # only the records; no image is touched
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteResult:
    """What was deleted, or (`dry_run`) the first of what would be."""

    domain: str
    deleted: tuple[str, ...]  # children before their parents
    planned: tuple[DeletePlan, ...]


def delete_snapshot(
    world: World, domain: str, snapshot: str, options: DeleteOptions
) -> DeleteResult:
    """Delete a snapshot (empty: the current one) on all disks of a stopped domain, or on none.

    Of several, each is a transaction of its own, leaves first: an error leaves those that follow
    as they are, and says so. No QEMU is started. A crash is ended by the next operation.
    """
    if options.dry_run:
        head = world.store.head(domain)
        names = _names(world, head, snapshot, options)
        first = names[:1] if not options.metadata else ()
        shown = tuple(_plan(world, head, name) for name in first)
        return DeleteResult(domain=head.domain.name, deleted=names, planned=shown)
    with working_on(world, domain) as room:
        head = world.store.head(domain)
        names = _names(world, head, snapshot, options)
        plans = tuple(_delete(world, head.domain.name, name, options, room) for name in names)
    return DeleteResult(
        domain=head.domain.name,
        deleted=names,
        planned=tuple(plan for plan in plans if plan is not None),
    )


def _names(world: World, head: Head, snapshot: str, options: DeleteOptions) -> tuple[str, ...]:
    domain = head.domain.name
    name = current_or(world, domain, snapshot)
    lineage = Lineage(
        current={}, held={each.snapshot.name: each for each in family.held(head, world)}
    )
    require_recorded(lineage, domain, name)
    if not options.metadata:
        require_stopped(domain, head.state)
    names = tuple(_descendants(name, [each.snapshot for each in lineage.held.values()]))
    if not options.children_only:
        names = (*names, name) if options.children else (name,)
    mirrored = guard.mirrored(world, head)
    if mirrored is not None and (mirrored.name in names or not options.metadata):
        guard.require_not_mirrored(world, head)
    guard.require_no_job(world, head)
    return names


def _descendants(name: str, snapshots: Iterable[Snapshot]) -> Iterable[str]:
    """Children before their parents."""
    known = list(snapshots)
    for child in known:
        if child.parent == name:
            yield from _descendants(child.name, known)
            yield child.name


def _delete(
    world: World, domain: str, name: str, options: DeleteOptions, room: Room
) -> DeletePlan | None:
    head = world.store.head(domain)
    if options.metadata:
        _forget(world, head, name)
        return None
    planned = _plan(world, head, name)
    for note in planned.notes:
        world.say(note)
    plan = _with_records(world, head, planned)
    commit = Commit(
        expected=head.digest,
        xml=patch.pivot(head.xml, moves=(), txid=plan.txid, where=domain),
        pins=planned.pins,
        space=planned.space,
    )
    run(plan, commit, room, world)
    return planned


def _plan(world: World, head: Head, name: str) -> DeletePlan:
    lineage = family.lineage_of(head, world)
    txid = secrets.token_hex(8)
    facts = DeleteFacts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / head.domain.uuid / txid,
        lineage=lineage,
        writable=family.writable_images(lineage),
        folders=family.folders_of(lineage),
        current=world.store.current(head.domain.name),
    )
    return plan_delete(name, facts)


def _with_records(world: World, head: Head, planned: DeletePlan) -> Plan:
    """The plan with the new records of those snapshots that it changes."""
    by_name = {each.name: each for each in planned.reparented}
    for held in family.held(head, world):
        if held.snapshot.name in planned.renamed:
            by_name.setdefault(held.snapshot.name, held.snapshot)
    replaced = []
    for name, snapshot in by_name.items():
        document = snapshot.domain_xml
        if moves := planned.renamed.get(name):
            document = patch.repoint(document, moves=moves, where=f"snapshot {name}")
        xml = format_snapshot(replace(snapshot, domain_xml=document))
        replaced.append(ReplaceRecord(name=name, xml=xml.decode(errors="surrogateescape")))
    old = planned.plan.aftermath
    records = (*replaced, *old.records)
    aftermath = Aftermath(
        merges=old.merges,
        relinks=old.relinks,
        repoints=old.repoints,
        records=records,
        drops=old.drops,
    )
    return replace(planned.plan, aftermath=aftermath)


def _forget(world: World, head: Head, name: str) -> None:
    """Drop a record; its children get its parent, as libvirt does it."""
    domain = head.domain.name
    for held in family.held(head, world):
        if held.snapshot.parent == name:
            parent = next(
                each.snapshot.parent
                for each in family.held(head, world)
                if each.snapshot.name == name
            )
            document = format_snapshot(replace(held.snapshot, parent=parent))
            world.store.record(domain, held.snapshot.name, document, current=False)
    world.store.forget(domain, name)
