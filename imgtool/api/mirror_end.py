"""End a mirrored snapshot: go over to the mirrors, or give them up."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.api.revert import current_or
from imgtool.api.world import working_on
from imgtool.engine import family, survey
from imgtool.engine.transaction import run
from imgtool.engine.world import World, naming
from imgtool.host.headers import read_image
from imgtool.model.domain import Disk, Head
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    DomainChangedError,
    ImgtoolError,
    NotFoundError,
)
from imgtool.model.image import Chain, Format, Image
from imgtool.model.plan import Aftermath, Commit, Plan, ReplaceRecord
from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.plan.lineage import files_of
from imgtool.plan.mirror_end import (
    EndFacts,
    EndPlan,
    Sides,
    Unwanted,
    plan_mirror_abort,
    plan_mirror_pivot,
)
from imgtool.plan.undertaking import node
from imgtool.stores.base import require_stopped
from imgtool.xml import patch
from imgtool.xml.snapshot import format_snapshot, parse_snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorEndOptions:
    """Which way a mirrored snapshot ends."""

    pivot: bool  # go over to the mirrors; else: give them up
    trust: bool = False  # do not read the data of both places to compare them
    dry_run: bool = False  # plan, compare no data, and begin nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorEndResult:
    """A mirrored snapshot that was ended, or (`dry_run`) would be."""

    domain: str
    snapshot: str
    transaction: str
    pivoted: bool
    planned: EndPlan


def end_mirror(
    world: World, domain: str, snapshot: str, options: MirrorEndOptions
) -> MirrorEndResult:
    """Delete the current, mirrored snapshot (empty: whichever it is) of a stopped domain.

    With `pivot` the domain names its mirrors then, all disks at once, else it stays where it is
    and its mirrors are removed. Raises ChainError: the mirror's chain is not complete, or shows
    other data. A crash is ended by the next operation on the domain: one way or the other.
    """
    if options.dry_run:
        head = world.store.head(domain)
        return _result(head, *_plan(world, head, snapshot, options), options)
    with working_on(world, domain) as room:
        head = world.store.head(domain)
        facts, planned = _plan(world, head, snapshot, options)
        xml = patch.pivot(head.xml, moves=planned.moves, txid=facts.txid, where=planned.plan.domain)
        commit = Commit(expected=head.digest, xml=xml, pins=planned.pins, space=planned.space)
        run(_with_records(world, head, planned.plan, facts), commit, room, world)
        for note in planned.notes:
            world.say(note)
        return _result(head, facts, planned, options)


def _plan(
    world: World, head: Head, name: str, options: MirrorEndOptions
) -> tuple[EndFacts, EndPlan]:
    require_stopped(head.domain.name, head.state)
    snapshot = _mirrored(world, head, current_or(world, head.domain.name, name))
    txid = secrets.token_hex(8)
    facts = EndFacts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / head.domain.uuid / txid,
        snapshot=snapshot,
        current=world.store.current(head.domain.name),
    )
    mirrors = [disk for disk in snapshot.disks if disk.mirror]
    if not options.pivot:
        unwanted = _unwanted(world, head, snapshot, mirrors)
        stays = survey.chains_of(head.domain.disks, world)
        named = [(disk.name, stays[disk.name]) for disk in mirrors if disk.name in stays]
        return facts, plan_mirror_abort(unwanted, named, facts)
    sides = [_sides(world, head, disk) for disk in mirrors]
    planned = plan_mirror_pivot(sides, options.trust, facts)
    if not options.trust and not options.dry_run:
        _require_equal(world, sides)
    return facts, planned


def _mirrored(world: World, head: Head, name: str) -> Snapshot:
    """The snapshot, if it can be ended. Raises NotFoundError, BadRequestError."""
    domain = head.domain.name
    found = {
        each.name: each
        for each in (parse_snapshot(xml, where=domain) for xml in world.store.snapshots(domain))
    }
    if name not in found:
        raise NotFoundError(
            f"no domain snapshot with matching name '{name}'",
            remedy=f"imgtool snapshot-list {domain}",
        )
    if not any(disk.mirror for disk in found[name].disks):
        raise BadRequestError(
            f"snapshot {name} has no mirrors",
            remedy=f"imgtool snapshot-delete {domain} {name}, without --mirror-...",
        )
    if world.store.current(domain) != name:
        raise BadRequestError(
            f"snapshot {name} is not the current one: the domain has gone on without its mirrors",
            remedy=f"imgtool snapshot-delete {domain} {name}, without --mirror-...",
        )
    return found[name]


def _sides(world: World, head: Head, disk: SnapshotDisk) -> Sides:
    now = head.domain.disk(disk.name)
    if now is None or now.source is None or not _same(now.source, Path(disk.source)):
        raise DomainChangedError(
            f"{disk.name}: the domain is not on {disk.source} any more",
            remedy="give the mirror up: snapshot-delete --mirror-abort",
        )
    source = survey.chain_of(now, world)
    wanted = Disk(target=disk.name, source=Path(disk.mirror), format=Format.QCOW2)
    try:
        mirror = survey.chain_of(wanted, world)
    except ChainError as error:
        folder = os.fspath(Path(disk.mirror).parent)
        raise ChainError(
            f"{error.message}: the mirror {disk.mirror} is not complete",
            remedy=f"imgtool chain-copy {head.domain.name} --disk {disk.name} --to {folder}; "
            f"or: {error.remedy}",
        ) from error
    return Sides(
        target=disk.name,
        source=source,
        mirror=mirror,
        source_data=_has_data(source.active, world),
        mirror_data=_has_data(mirror.active, world),
    )


def _same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _has_data(image: Image, world: World) -> bool:
    if image.format is not Format.QCOW2:
        return True
    return world.qemu.has_own_data(image.path, block_device=image.block_device)


def _require_equal(world: World, sides: Sequence[Sides]) -> None:
    """What the active layers and the mirrors build on shows the same data. Raises ChainError.

    Nobody may have written any of it since the survey: the pins compare times afterwards.
    """

    def compare(each: Sides) -> None:
        base, copy = each.source.images[-2], each.mirror.images[-2]
        if base.identity.file == copy.identity.file:
            return
        watch = world.watch(each.target, f"comparing with {copy.path.name}")
        with naming(each.target, copy.path):
            same = world.qemu.same_content(node(base), node(copy), watch=watch)
        if not same:
            raise ChainError(
                f"{each.target}: {copy.spelled} shows other data than {base.spelled}",
                remedy="copy the layers again, or give the mirror up: --mirror-abort",
            )

    world.each(compare, sides)


def _unwanted(
    world: World, head: Head, snapshot: Snapshot, mirrors: Sequence[SnapshotDisk]
) -> list[Unwanted]:
    """The mirrors, and why those are left that are not plainly what this snapshot has made."""
    before = family.held_by(snapshot, world)
    needed = files_of(survey.chains_of(head.domain.disks, world).values())
    for held in family.held(head, world):
        needed |= files_of(held.chains.values())
    found = []
    for disk in mirrors:
        image, reason = _droppable(disk, before.chains.get(disk.name))
        if image is not None and not reason:
            users = family.users_of(head, image, world)
            if image.identity.file in needed:
                reason = "is used by the domain or a snapshot"
            elif users:
                reason = f"is used by {', '.join(users)}"
        found.append(Unwanted(target=disk.name, path=disk.mirror, image=image, reason=reason))
    return found


def _droppable(disk: SnapshotDisk, before: Chain | None) -> tuple[Image | None, str]:
    path = Path(disk.mirror)
    if not os.path.lexists(path):
        return None, ""
    try:
        image = read_image(path.resolve(strict=True), Format.QCOW2)
    except (OSError, RuntimeError, ImgtoolError):
        return None, "is no qcow2 image any more"
    reasons = {
        "is a block device": image.block_device,
        "is a symbolic link": path.is_symlink(),
        "has internal snapshots inside": bool(image.snapshots),
        "has another size": before is not None and image.virtual_size != before.active.virtual_size,
        "has another base": before is not None
        and Path(image.backing or "").name != before.active.path.name,
    }
    return image, next((reason for reason, holds in reasons.items() if holds), "")


def _with_records(world: World, head: Head, plan: Plan, facts: EndFacts) -> Plan:
    """The plan with new records of the snapshot's children, which get its parent."""
    replaced = []
    for held in family.held(head, world):
        if held.snapshot.parent == facts.snapshot.name:
            xml = format_snapshot(replace(held.snapshot, parent=facts.snapshot.parent))
            text = xml.decode(errors="surrogateescape")
            replaced.append(ReplaceRecord(name=held.snapshot.name, xml=text))
    late = plan.aftermath
    aftermath = Aftermath(records=(*replaced, *late.records), drops=late.drops)
    return replace(plan, aftermath=aftermath)


def _result(
    head: Head, facts: EndFacts, planned: EndPlan, options: MirrorEndOptions
) -> MirrorEndResult:
    return MirrorEndResult(
        domain=head.domain.name,
        snapshot=facts.snapshot.name,
        transaction=facts.txid,
        pivoted=options.pivot,
        planned=planned,
    )
