"""Move the disks of a stopped domain to another folder, with their snapshots."""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.api.disks import disk_of
from imgtool.api.revert import records_of
from imgtool.api.world import working_on
from imgtool.engine import family, guard, survey
from imgtool.engine.transaction import run
from imgtool.engine.world import World
from imgtool.host.files import names_below
from imgtool.host.sharing import can_share
from imgtool.model.domain import Disk, Head, SnapshotMode
from imgtool.model.errors import BadRequestError, ChainError, UnsupportedError
from imgtool.model.image import Chain
from imgtool.model.plan import Commit
from imgtool.plan.lineage import FileId, Lineage
from imgtool.plan.migrate import MigrateFacts, MigratePlan, MigrateRequest, plan_migrate
from imgtool.plan.repointing import Repointed
from imgtool.stores.base import require_stopped
from imgtool.xml import patch
from imgtool.xml.domain import parse_domain
from imgtool.xml.snapshot import format_snapshot

INACTIVE = "inactiveDomain"
_LOCAL = ("file", "block", "volume")


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateOptions:
    """What moves, and how."""

    to: Path  # a folder that is there
    disks: Sequence[str] = ()  # targets, or paths of active layers; none: all that can be written
    flatten: bool = False  # one image without a base for each disk
    delete_source: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrateResult:
    """A move that was made, or (`dry_run`) would be."""

    domain: str
    transaction: str  # empty: there was nothing to do
    to: Path
    planned: MigratePlan


def migrate(world: World, domain: str, options: MigrateOptions) -> MigrateResult:
    """Copy all layers of the disks and of their snapshots into a folder, and let the domain use it.

    All disks or none. Afterwards the chains are relative, and the sources are as they were; or,
    with `delete_source`, those that nobody else needs are gone. A crash leaves the old place or
    the new one; the next operation on the domain, or `recover`, removes what is left in the other.
    """
    if options.dry_run:
        return _result(*_plan(world, domain, options))
    with working_on(world, domain) as room:
        head, request, planned = _plan(world, domain, options)
        if not planned.empty:
            run(planned.plan, _commit(head, planned), room, world)
        return _result(head, request, planned)


def _plan(
    world: World, domain: str, options: MigrateOptions
) -> tuple[Head, MigrateRequest, MigratePlan]:
    head = world.store.head(domain)
    require_stopped(head.domain.name, head.state)
    guard.require_free(world, head)
    to = _folder(options.to)
    request = MigrateRequest(to=to, flatten=options.flatten, delete_source=options.delete_source)
    planned = plan_migrate(request, _facts(world, head, to, options))
    for note in planned.notes:
        world.say(note)
    return head, request, planned


def _facts(world: World, head: Head, to: Path, options: MigrateOptions) -> MigrateFacts:
    disks = _disks(head, options.disks)
    chains = {disk.target: survey.chain_of(disk, world) for disk in disks}
    lineage = family.lineage_of(head, world)
    lineage = replace(lineage, current={**lineage.current, **chains})
    _require_snapshots(lineage, chains, world)
    txid = secrets.token_hex(8)
    folder = to.resolve()
    inactive = {
        name: parse_domain(xml, where=f"snapshot {name}", root=INACTIVE).disks
        for name, held in lineage.held.items()
        if (xml := held.snapshot.inactive_xml)
    }
    return MigrateFacts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / head.domain.uuid / txid,
        lineage=lineage,
        chains=chains,
        folder=folder,
        taken=frozenset(names_below(folder)),
        files=dict(_files(lineage, inactive, world)),
        records=records_of(world, head.domain.name),
        inactive=inactive,
        shared=frozenset(_shared(lineage, folder)),
    )


def _folder(to: Path) -> Path:
    """The folder as the XML will spell it. Raises BadRequestError if it is not there."""
    path = to.absolute()
    if not path.is_dir():
        what = "is no folder" if os.path.lexists(path) else "no such folder"
        raise BadRequestError(f"{path}: {what}", remedy=f"mkdir -p {path}, or choose another")
    return path.resolve() if ".." in path.parts else path


def _disks(head: Head, names: Sequence[str]) -> tuple[Disk, ...]:
    """Those that are named; else all but cdroms, floppies and what is read-only."""
    if names:
        return tuple(dict.fromkeys(disk_of(head, name) for name in names))
    found = tuple(
        disk
        for disk in head.domain.disks
        if disk.device in ("disk", "lun") and not disk.empty and not disk.readonly
    )
    for disk in found:
        if disk.type not in _LOCAL:
            others = [f"--disk {each.target}" for each in found if each.type in _LOCAL]
            raise UnsupportedError(
                f"{disk.target}: is a {disk.type} disk, which is in no folder",
                remedy=f"name the others: {' '.join(others) or 'there are none'}",
            )
    return found


def _require_snapshots(lineage: Lineage, chains: dict[str, Chain], world: World) -> None:
    """Raises ChainError if an image that a snapshot of these disks needs cannot be read."""
    for name, held in lineage.held.items():
        for disk in held.disks:
            if disk.target in chains and held.mode(disk.target) is not SnapshotMode.NO:
                try:
                    survey.chain_of(disk, world)
                except (ChainError, UnsupportedError) as error:
                    raise ChainError(
                        f"snapshot {name}: {error.message}",
                        remedy="restore it; if it is lost for good: "
                        f"imgtool snapshot-delete DOMAIN {name} --metadata",
                    ) from error


def _files(
    lineage: Lineage, inactive: dict[str, tuple[Disk, ...]], world: World
) -> list[tuple[Path, FileId]]:
    """What the paths in the records lead to; those that lead nowhere are left out."""
    paths = set()
    for name, held in lineage.held.items():
        for part in (*held.snapshot.disks, *held.snapshot.revert_disks):
            if part.source.startswith("/"):
                paths.add(Path(part.source))
        paths |= {disk.source for disk in inactive.get(name, ()) if disk.source is not None}
    return [
        (path, world.files.identity(path).file)
        for path in sorted(paths)
        if path.is_file() or path.is_block_device()
    ]


def _shared(lineage: Lineage, folder: Path) -> list[FileId]:
    """Files whose copies in the folder need no space: one tells for all of its folder."""
    by_folder: dict[Path, bool] = {}
    found = []
    for file, image in lineage.images().items():
        if not image.block_device:
            parent = image.path.parent
            if parent not in by_folder:
                by_folder[parent] = can_share(image.path, folder)
            if by_folder[parent]:
                found.append(file)
    return found


def _commit(head: Head, planned: MigratePlan) -> Commit:
    plan = planned.plan
    return Commit(
        expected=head.digest,
        xml=patch.pivot(head.xml, moves=planned.moves, txid=plan.txid, where=plan.domain),
        records=tuple(_record(each, plan.txid) for each in planned.snapshots),
        pins=planned.pins,
        space=planned.space,
    )


def _record(changed: Repointed, txid: str) -> bytes:
    snapshot = changed.snapshot
    where = f"snapshot {snapshot.name}"
    xml = patch.repoint(snapshot.domain_xml, moves=changed.moves, where=where)
    inactive = snapshot.inactive_xml
    if inactive:
        inactive = patch.repoint(inactive, moves=changed.inactive_moves, where=where, root=INACTIVE)
    stamped = patch.stamp_record(xml, txid=txid, where=where)
    return format_snapshot(replace(snapshot, domain_xml=stamped, inactive_xml=inactive))


def _result(head: Head, request: MigrateRequest, planned: MigratePlan) -> MigrateResult:
    return MigrateResult(
        domain=head.domain.name,
        transaction="" if planned.empty else planned.plan.txid,
        to=request.to,
        planned=planned,
    )
