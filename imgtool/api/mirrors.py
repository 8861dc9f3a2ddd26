"""Prepare overlays for mirroring: of a domain, running or not, or of one image."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.api.world import working_on
from imgtool.engine import making, survey
from imgtool.engine.transaction import run
from imgtool.engine.world import World, naming
from imgtool.model.domain import Disk, Domain, Head
from imgtool.model.errors import (
    BadRequestError,
    ExistsError,
    NotFoundError,
    QemuImgError,
    UnsupportedError,
)
from imgtool.model.image import Chain, Format, Qcow2Features
from imgtool.model.plan import Commit, CreateOverlay
from imgtool.model.snapshot import SnapshotDisk
from imgtool.plan.mirror import (
    MirrorFacts,
    MirrorFilesPlan,
    MirrorWish,
    plan_mirror_files,
)
from imgtool.plan.names import backing_name
from imgtool.plan.select import why_not
from imgtool.plan.undertaking import require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorFilesResult:
    """Mirror files that were made, or (`dry_run`) would be."""

    domain: str
    transaction: str
    planned: MirrorFilesPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayOptions:
    """How one overlay is made."""

    format: Format  # of the base: it is never probed
    relative: bool = False  # record the base by a relative name
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayResult:
    """An overlay that was made, or (`dry_run`) would be."""

    overlay: Path
    backing: str  # as it is recorded
    backing_format: Format
    virtual_size: int  # bytes


def create_mirror_files(
    world: World, domain: str, disks: Sequence[SnapshotDisk], *, dry_run: bool = False
) -> MirrorFilesResult:
    """Make the overlays `source` (beside the active layer) and `mirror` of each disk, or none.

    The domain may run: its images are looked at, and neither opened for writing nor locked. A
    crash leaves files that the next operation on the domain, or `recover`, removes.
    """
    if dry_run:
        head = world.store.head(domain)
        return _result(head, _plan(world, head, disks))
    with working_on(world, domain, jobs=True) as room:
        head = world.store.head(domain)
        planned = _plan(world, head, disks)
        commit = Commit(expected=head.digest, xml=head.xml, space=planned.space)
        run(planned.plan, commit, room, world)
        return _result(head, planned)


def _plan(world: World, head: Head, disks: Sequence[SnapshotDisk]) -> MirrorFilesPlan:
    wishes: list[MirrorWish] = []
    chains: dict[str, Chain] = {}
    for asked in disks:
        disk = _disk(head.domain, asked)
        if disk.target in chains:
            raise BadRequestError(f"disk {disk.target!r} specified twice", remedy="name it once")
        chains[disk.target] = survey.chain_of(disk, world)
        wishes.append(_wish(disk.target, asked))
    if not wishes:
        raise BadRequestError(
            "no disk is named", remedy="--diskspec DISK,file=PATH,mirror=PATH for each"
        )
    txid = secrets.token_hex(8)
    facts = MirrorFacts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / head.domain.uuid / txid,
        chains=chains,
    )
    return plan_mirror_files(wishes, facts)


def _disk(domain: Domain, asked: SnapshotDisk) -> Disk:
    disk = domain.disk(asked.name)
    if disk is None:
        raise NotFoundError(f"no disk named {asked.name!r}", remedy="see imgtool domblklist")
    if reason := why_not(disk):
        raise UnsupportedError(f"{disk.target}: {reason}", remedy="leave this disk out")
    return disk


def _wish(target: str, asked: SnapshotDisk) -> MirrorWish:
    spec = asked.spec
    if asked.driver not in ("", "qcow2"):
        problem = f"an overlay of format {asked.driver} is not made by imgtool; use qcow2"
    elif asked.type != "file":
        problem = "an overlay on a block device would overwrite what is there"
    elif spec is not None and spec.snapshot not in (None, "external"):
        problem = f"snapshot={spec.snapshot}: nothing is snapshotted here"
    elif not asked.source and not asked.mirror:
        problem = "neither file= nor mirror= is given"
    else:
        places = [
            survey.place_of(target, Path(path).absolute()) if path else None
            for path in (asked.source, asked.mirror)
        ]
        return MirrorWish(target=target, file=places[0], mirror=places[1])
    raise BadRequestError(
        f"{target}: {problem}", remedy=f"--diskspec {target},file=PATH,mirror=PATH"
    )


def _result(head: Head, planned: MirrorFilesPlan) -> MirrorFilesResult:
    return MirrorFilesResult(
        domain=head.domain.name, transaction=planned.plan.txid, planned=planned
    )


def create_overlay(
    world: World, base: Path, overlay: Path, options: OverlayOptions
) -> OverlayResult:
    """Make an empty overlay of one image, with its size, features, owner, mode and labels.

    Nothing that exists is replaced. A crash leaves nothing, a hidden file beside it (which `gc`
    removes where it looks), or the whole overlay. Raises ChainError, UnsupportedError,
    ExistsError, BadRequestError.
    """
    overlay = overlay.absolute()
    disk = Disk(target=overlay.name, source=base.absolute(), format=options.format)
    image = survey.chain_of(disk, world).active
    require_sound(disk.target, image)
    place = survey.place_of(overlay.name, overlay)
    if place.taken:
        raise ExistsError(f"{overlay} already exists", remedy="choose another file, or remove it")
    named = image.path if options.relative else image.spelled
    step = CreateOverlay(
        target=disk.target,
        base=image.path,
        base_format=image.format,
        backing=backing_name(named, place.folder, relative=options.relative),
        overlay=overlay,
        staged=overlay.parent / f".imgtool-{secrets.token_hex(8)}-0",
        virtual_size=image.virtual_size,
        features=image.features or Qcow2Features(),
    )
    if not options.dry_run:
        with world.interrupt.deferred(world.qemu.cancel):
            try:
                _make(step, world)
            except QemuImgError:
                world.interrupt.check()  # it was cancelled: that is what has gone wrong
                raise
    return OverlayResult(
        overlay=overlay,
        backing=step.backing,
        backing_format=step.base_format,
        virtual_size=step.virtual_size,
    )


def _make(step: CreateOverlay, world: World) -> None:
    """The overlay with its final name, durably, or nothing."""
    try:
        making.create_overlay(step, world)
        with naming(step.target, step.overlay):
            making.sync(step, world)
            world.interrupt.check()
            world.files.publish(step.staged, step.overlay)
    finally:
        with naming(step.target, step.overlay):
            world.files.unlink(step.staged)
            world.files.sync_dir(step.overlay.parent)
    world.interrupt.outcome = "came too late: the work is done"
