"""See what is wrong with domains, and mend what can be mended without losing anything."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, replace

from imgtool.api.world import working_on
from imgtool.engine.inspect import Surroundings, examine, look_around
from imgtool.engine.room import Room
from imgtool.engine.transaction import run
from imgtool.engine.world import World
from imgtool.model.domain import Head
from imgtool.model.errors import NotFoundError
from imgtool.model.plan import Aftermath, Commit, Plan, ReplaceRecord
from imgtool.plan.checkup import findings_of
from imgtool.plan.finding import Examined, Finding, is_well
from imgtool.plan.mend import MendFacts, MendPlan, plan_mending
from imgtool.plan.undertaking import Undertaking
from imgtool.stores.base import require_stopped
from imgtool.xml import patch
from imgtool.xml.snapshot import format_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What was found wrong with one domain, worst first."""

    domain: str
    findings: tuple[Finding, ...]

    @property
    def well(self) -> bool:
        """Whether there is nothing but notes."""
        return is_well(self.findings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairOptions:
    """What a repair may do besides what loses nothing."""

    drop_orphan_tags: bool = False  # internal snapshots without a record, and stale ones
    adopt: bool = False  # record snapshots of which only the overlays are left
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairResult:
    """What a repair did, or (`dry_run`) would do, a line each. Nothing: there was nothing."""

    domain: str
    transaction: str
    mended: tuple[str, ...]
    planned: MendPlan


def check(world: World, domain: str = "", *, quick: bool = False) -> tuple[Checkup, ...]:
    """Compare XML, metadata and images of one domain, or of all. Reads only.

    Unless `quick`, qemu-img checks each image. What is broken is a finding, never an error.
    Raises NotFoundError for a domain that is not there, and StoreError without a store.
    """
    with world.interrupt.deferred(world.qemu.cancel):
        around = look_around(world)
        names = (listed_name(world, domain, around),) if domain else tuple(around.glances)
        found = []
        for name in names:
            seen = examine(name, around, world, quick=quick)
            world.interrupt.check()
            found.append(Checkup(domain=seen.name, findings=findings_of(seen)))
    return tuple(found)


def listed_name(world: World, domain: str, around: Surroundings) -> str:
    """The name of a domain, which may be given by its UUID. Raises NotFoundError."""
    if domain in around.glances:
        return domain
    name = world.store.head(domain).domain.name
    if name not in around.glances:
        raise NotFoundError(f"no domain {domain!r}", remedy="see imgtool list")
    return name


def repair(world: World, domain: str, options: RepairOptions) -> RepairResult:
    """Mend a stopped domain in one transaction: all of it, or none of it.

    An open transaction is ended first. A crash is ended by the next operation on the domain.
    """
    head = world.store.head(domain)
    if options.dry_run:
        planned = _plan(world, head, options)[1]
        return _result(head, planned)
    with working_on(world, head.domain.name) as room:
        head = world.store.head(domain)
        seen, planned = _plan(world, head, options)
        if planned.done:
            _mend(world, seen, head, planned, room)
        return _result(head, planned)


def _plan(world: World, head: Head, options: RepairOptions) -> tuple[Examined, MendPlan]:
    require_stopped(head.domain.name, head.state)
    seen = examine(head.domain.name, look_around(world), world, quick=False)
    txid = secrets.token_hex(8)
    facts = MendFacts(
        seen=seen,
        work=Undertaking(
            head=head,
            store=world.store.uri,
            txid=txid,
            workspace=world.state_dir / head.domain.uuid / txid,
        ),
        created=int(time.time()),
        drop_tags=options.drop_orphan_tags,
        adopt=options.adopt,
    )
    return seen, plan_mending(facts)


def _mend(world: World, seen: Examined, head: Head, planned: MendPlan, room: Room) -> None:
    txid, where = planned.plan.txid, head.domain.name
    records = []
    for snapshot, moves in planned.adopted:
        before = patch.repoint(head.xml, moves=moves, where=where)
        stamped = patch.stamp_record(before, txid=txid, where=where)
        records.append(format_snapshot(replace(snapshot, domain_xml=stamped)))
    commit = Commit(
        expected=head.digest,
        xml=patch.pivot(head.xml, moves=(), txid=txid, where=where),
        records=tuple(records),
        pins=planned.pins,
        space=planned.space,
    )
    run(_with_records(seen, planned), commit, room, world)


def _with_records(seen: Examined, planned: MendPlan) -> Plan:
    """The plan with the text of the records that are written again."""
    late = []
    for name, orphan in planned.rewritten:
        snapshot = seen.lineage.held[name].snapshot
        if orphan:
            snapshot = replace(snapshot, parent=None)
        xml = format_snapshot(replace(snapshot, active=None))
        late.append(ReplaceRecord(name=name, xml=xml.decode(errors="surrogateescape")))
    return replace(planned.plan, aftermath=Aftermath(records=tuple(late)))


def _result(head: Head, planned: MendPlan) -> RepairResult:
    return RepairResult(
        domain=head.domain.name,
        transaction=planned.plan.txid,
        mended=planned.done,
        planned=planned,
    )
