"""Make chains shorter, disks larger, names of bases right: all disks that are named, or none."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.api.disks import chosen_chains, disk_of
from imgtool.api.world import working_on
from imgtool.engine import family, guard, survey
from imgtool.engine.transaction import run
from imgtool.engine.world import World
from imgtool.model.domain import Disk, Head
from imgtool.model.errors import BadRequestError, NotFoundError
from imgtool.model.image import Chain, Format, Image
from imgtool.model.plan import Commit
from imgtool.plan.blockcommit import CommitRequest, plan_commit
from imgtool.plan.blockjob import JobFacts, JobPlan
from imgtool.plan.blockpull import PullRequest, plan_pull
from imgtool.plan.rebase import RebaseRequest, plan_rebase
from imgtool.plan.resize import ResizeRequest, Shrinking, plan_resize
from imgtool.stores.base import require_stopped
from imgtool.xml import patch

_INDEX = re.compile(r"[a-z]+\[\d+\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitOptions:
    """How data go down; the names are those of virsh's options."""

    base: str = ""  # path of a layer; empty: the bottom of the chain
    top: str = ""  # path of a layer; empty: the active one
    shallow: bool = False
    active: bool = False
    keep_overlay: bool = False
    delete: bool = False
    keep_relative: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """How data come up; the names are those of virsh's options."""

    base: str = ""  # path of a layer; empty: no base is left
    keep_relative: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeOptions:
    """How large a disk is to be."""

    size: int | None  # bytes; None: the capacity of its block device
    extend: bool = False  # never shrink
    force: bool = False  # shrink, although what is beyond is lost
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RebaseOptions:
    """How the overlays of a chain name their bases."""

    relative: bool | None = None  # False: absolute; None: as now
    base: str = ""  # path of another base for the active layer; empty: the same
    format: Format | None = None  # of that base; None: as it is recorded in the chain
    unsafe: bool = False  # only record its name
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """What a block job did, or (`dry_run`) would do."""

    domain: str
    transaction: str  # empty: there was nothing to do
    planned: JobPlan


def block_commit(
    world: World, domain: str, disks: Sequence[str], options: CommitOptions
) -> JobResult:
    """Commit layers of each disk (target or source path; none given: all) into their base.

    What the guest sees never changes; a crash is ended by the next operation on the domain, and
    a commit that was rolled back is completed by running it again.
    """
    request = CommitRequest(
        base=_layer(options.base),
        top=_layer(options.top),
        shallow=options.shallow,
        active=options.active,
        keep_overlay=options.keep_overlay,
        delete=options.delete,
        keep_relative=options.keep_relative,
    )

    def make(head: Head) -> JobPlan:
        facts = _facts(world, head, disks)
        return plan_commit(tuple(facts.chains), request, facts)

    return _run(world, domain, make, dry_run=options.dry_run)


def block_pull(world: World, domain: str, disks: Sequence[str], options: PullOptions) -> JobResult:
    """Copy into each active layer what it shows of the layers below, or of those above `base`."""
    request = PullRequest(base=_layer(options.base), keep_relative=options.keep_relative)

    def make(head: Head) -> JobPlan:
        facts = _facts(world, head, disks)
        return plan_pull(tuple(facts.chains), request, facts)

    return _run(world, domain, make, dry_run=options.dry_run)


def resize(world: World, domain: str, disk: str, options: ResizeOptions) -> JobResult:
    """Give a disk another size. Raises LossError for a smaller one without `force`."""
    shrinking = Shrinking.CUT if options.force else Shrinking.REFUSE
    request = ResizeRequest(
        size=options.size, shrinking=Shrinking.NEVER if options.extend else shrinking
    )

    def make(head: Head) -> JobPlan:
        facts = _facts(world, head, [disk])
        return plan_resize(next(iter(facts.chains)), request, facts)

    return _run(world, domain, make, dry_run=options.dry_run)


def rebase(world: World, domain: str, disk: str, options: RebaseOptions) -> JobResult:
    """Name bases relatively or absolutely, in a whole chain, or build on another base.

    A base that is not where it is said to be is looked for beside its overlay; `say` tells which.
    """

    def make(head: Head) -> JobPlan:
        found = disk_of(head, disk)
        chain = survey.chain_of(found, world, _Finder(found.target, world))
        base = _new_base(world, found.target, chain, options) if options.base else None
        facts = _facts(world, head, [disk], {found.target: chain})
        return plan_rebase(found.target, RebaseRequest(relative=options.relative, base=base), facts)

    def make_unsafe(head: Head) -> JobPlan:
        found = disk_of(head, disk)
        top = survey.chain_of(found, world, lambda _image: None)
        base = _new_base(world, found.target, top, options)
        chain = Chain((*base.images, top.active))
        facts = _facts(world, head, [disk], {found.target: chain})
        whole = options.relative is not None
        request = RebaseRequest(relative=options.relative, only_active=not whole)
        return plan_rebase(found.target, request, facts)

    unsafe = options.unsafe and options.base
    return _run(world, domain, make_unsafe if unsafe else make, dry_run=options.dry_run)


def _run(world: World, domain: str, make: Callable[[Head], JobPlan], *, dry_run: bool) -> JobResult:
    if dry_run:
        return _result(*_planned(world, domain, make))
    with working_on(world, domain, jobs=True) as room:  # those of other disks
        head, planned = _planned(world, domain, make)
        if not planned.empty:
            plan = planned.plan
            xml = patch.pivot(head.xml, moves=planned.moves, txid=plan.txid, where=plan.domain)
            commit = Commit(expected=head.digest, xml=xml, pins=planned.pins, space=planned.space)
            run(plan, commit, room, world)
        return _result(head, planned)


def _planned(world: World, domain: str, make: Callable[[Head], JobPlan]) -> tuple[Head, JobPlan]:
    head = world.store.head(domain)
    require_stopped(head.domain.name, head.state)
    planned = make(head)
    for note in planned.notes:
        world.say(note)
    return head, planned


def _result(head: Head, planned: JobPlan) -> JobResult:
    txid = "" if planned.empty else planned.plan.txid
    return JobResult(domain=head.domain.name, transaction=txid, planned=planned)


def _facts(
    world: World, head: Head, disks: Sequence[str], chains: dict[str, Chain] | None = None
) -> JobFacts:
    if chains is None:
        chains = chosen_chains(world, head, disks)
    guard.require_free(world, head, chains)
    lineage = family.lineage_of(head, world)
    lineage = replace(lineage, current={**lineage.current, **chains})
    txid = secrets.token_hex(8)
    return JobFacts(
        head=head,
        store=world.store.uri,
        txid=txid,
        workspace=world.state_dir / head.domain.uuid / txid,
        lineage=lineage,
        chains=chains,
        writable=family.writable_images(lineage),
        folders=family.folders_of(lineage),
    )


def _layer(path: str) -> Path | None:
    """A layer as it was named, with its links resolved; None for none."""
    if _INDEX.match(path):
        raise BadRequestError(
            f"{path}: layers have no numbers while a domain is stopped",
            remedy="name the layer by its path: see imgtool chain",
        )
    return Path(os.path.realpath(path)) if path else None


@dataclass(frozen=True, slots=True)
class _Finder:
    """Finds bases, also of a folder that was moved by hand."""

    target: str
    world: World

    def __call__(self, image: Image) -> Path | None:
        recorded = survey.backing_path(image)
        if recorded is None:
            return None
        beside = image.spelled.parent / recorded.name
        if os.path.lexists(recorded) or not os.path.lexists(beside):
            return recorded
        self.world.say(
            f"{self.target}: the base of {image.spelled}, {recorded}, is taken to be {beside}"
        )
        return beside


def _new_base(world: World, target: str, chain: Chain, options: RebaseOptions) -> Chain:
    """The new base and what is below it. Raises BadRequestError if nobody knows its format."""
    path = Path(options.base).absolute()
    if not path.exists():
        raise NotFoundError(
            f"{target}: {path}: no such image", remedy="name an image that is there"
        )
    formats = [image.format for image in chain.images if image.path == path.resolve()]
    if options.unsafe and chain.active.backing_format:
        formats += [fmt for fmt in Format if fmt == chain.active.backing_format]
    fmt = options.format or next(iter(formats), None)
    if fmt is None:
        raise BadRequestError(
            f"{target}: the format of {path} is not recorded in the chain",
            remedy="say which it is: --format raw, or --format qcow2",
        )
    base = Disk(target=target, source=path, format=fmt)
    return survey.chain_of(base, world, _Finder(target, world))
