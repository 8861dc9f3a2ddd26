"""Revert a domain to a snapshot."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace

from imgtool.api.world import working_on
from imgtool.engine import family, guard
from imgtool.engine.transaction import run
from imgtool.engine.world import World
from imgtool.model.domain import Head
from imgtool.model.errors import ExistsError, NotFoundError
from imgtool.model.plan import Commit
from imgtool.plan.lineage import Lineage
from imgtool.plan.names import check_snapshot_name
from imgtool.plan.revert import RevertFacts, RevertPlan, plan_revert
from imgtool.stores.base import require_stopped
from imgtool.xml import patch
from imgtool.xml.snapshot import format_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertOptions:
    """How to revert."""

    force: bool = False  # drop what was written since, unless a snapshot holds it
    keep: bool = False  # keep it, as a snapshot of its own
    keep_as: str = ""  # that snapshot's name; empty: CURRENT-kept-N
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RevertResult:
    """What a revert did, or (`dry_run`) would do."""

    domain: str
    snapshot: str
    transaction: str
    kept: str  # name of the snapshot that holds the state of before; empty: none
    planned: RevertPlan


def revert_to(world: World, domain: str, snapshot: str, options: RevertOptions) -> RevertResult:
    """Let every disk of a stopped domain show what it showed at a snapshot: all disks, or none.

    An empty `snapshot` means the current one. Raises LossError where data would be lost without
    `force` or `keep`; after PendingError, `recover` is needed. A crash is ended by the next
    operation on the domain.
    """
    if options.dry_run:
        head = world.store.head(domain)
        return _result(head, *_plan(world, head, snapshot, options))
    with working_on(world, domain) as room:
        head = world.store.head(domain)
        facts, planned, name = _plan(world, head, snapshot, options)
        run(planned.plan, _commit(facts, planned, name), room, world)
        return _result(head, facts, planned, name)


def current_or(world: World, domain: str, snapshot: str) -> str:
    """The name that is given, or that of the current snapshot. Raises NotFoundError."""
    name = snapshot or world.store.current(domain)
    if not name:
        raise NotFoundError(
            f"domain {domain} has no current snapshot", remedy="name one; see snapshot-list"
        )
    return name


def records_of(world: World, domain: str) -> dict[str, str]:
    """The XML of every recorded snapshot, by name, as text that a journal can hold."""
    from imgtool.xml.snapshot import parse_snapshot

    found = {}
    for document in world.store.snapshots(domain):
        name = parse_snapshot(document, where=domain).name
        found[name] = document.decode(errors="surrogateescape")
    return found


def require_recorded(lineage: Lineage, domain: str, name: str) -> None:
    """Raises NotFoundError, as virsh would."""
    if name not in lineage.held:
        raise NotFoundError(
            f"no domain snapshot with matching name '{name}'",
            remedy=f"imgtool snapshot-list {domain}",
        )


def _plan(
    world: World, head: Head, snapshot: str, options: RevertOptions
) -> tuple[RevertFacts, RevertPlan, str]:
    domain = head.domain
    require_stopped(domain.name, head.state)
    name = current_or(world, domain.name, snapshot)
    guard.require_free(world, head)
    lineage = family.lineage_of(head, world, losses=True)
    require_recorded(lineage, domain.name, name)
    current = world.store.current(domain.name)
    txid = secrets.token_hex(8)
    facts = RevertFacts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / domain.uuid / txid,
        created=int(time.time()),
        lineage=lineage,
        taken=family.taken_names(lineage),
        folders=family.folders_of(lineage),
        records=records_of(world, domain.name),
        current=current,
        keep=_kept_name(lineage, current, options) if options.keep or options.keep_as else "",
        force=options.force,
    )
    return facts, plan_revert(name, facts), name


def _kept_name(lineage: Lineage, current: str | None, options: RevertOptions) -> str:
    if options.keep_as:
        check_snapshot_name(options.keep_as)
        if options.keep_as in _names_in_use(lineage):
            raise ExistsError(
                f"domain moment {options.keep_as} already exists", remedy="choose another name"
            )
        return options.keep_as
    stem = f"{current or 'state'}-kept"
    number = 1
    while f"{stem}-{number}" in _names_in_use(lineage):
        number += 1
    check_snapshot_name(f"{stem}-{number}")
    return f"{stem}-{number}"


def _names_in_use(lineage: Lineage) -> set[str]:
    names = set(lineage.held)
    for image in lineage.images().values():
        for tag in image.snapshots:
            names |= {tag.tag, tag.id}
    return names


def _commit(facts: RevertFacts, planned: RevertPlan, name: str) -> Commit:
    where = f"snapshot {name}"
    old = patch.unstamp(facts.lineage.held[name].snapshot.domain_xml, where=where)
    records = []
    for snapshot in planned.snapshots:
        stamped = patch.stamp_record(snapshot.domain_xml, txid=facts.txid, where=where)
        records.append(format_snapshot(replace(snapshot, domain_xml=stamped)))
    return Commit(
        expected=facts.head.digest,
        xml=patch.pivot(old, moves=planned.moves, txid=facts.txid, where=where),
        records=tuple(records),
        pins=planned.pins,
        space=planned.space,
    )


def _result(head: Head, facts: RevertFacts, planned: RevertPlan, name: str) -> RevertResult:
    return RevertResult(
        domain=head.domain.name,
        snapshot=name,
        transaction=facts.txid,
        kept=facts.keep,
        planned=planned,
    )
