"""Plan a copy job.

base <- active              blockcopy vda DEST              DEST
base <- active              blockcopy --shallow vda DEST    base <- DEST
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from imgtool.model.domain import Disk
from imgtool.model.errors import (
    BadRequestError,
    ExistsError,
    NotFoundError,
    UnsupportedError,
)
from imgtool.model.image import Chain, Format, Image, Qcow2Features
from imgtool.model.job import CopyJob, DiskCopy, Layer, Phase
from imgtool.model.plan import Pin, Space
from imgtool.plan.blockjob import plain, require_whole_file
from imgtool.plan.lineage import is_relative
from imgtool.plan.names import backing_name, check_overlay
from imgtool.plan.snapshot import Place
from imgtool.plan.undertaking import Undertaking, require_sound

_OVERHEAD = 1 << 20  # bytes of tables, besides one byte in 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """One disk that is to be copied."""

    target: str
    dest: Path  # absolute
    format: Format | None = None  # None: that of the source
    shallow: bool = False
    reuse: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """A destination that somebody has made."""

    chain: Chain
    has_data: bool  # clusters of its own
    users: tuple[str, ...] = ()  # domains that have it in a chain


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyFacts(Undertaking):
    """What the survey found."""

    chains: Mapping[str, Chain]  # of the disks that are copied
    places: Mapping[str, Place] = field(default_factory=dict)  # of destinations to be made
    reused: Mapping[str, Reused] = field(default_factory=dict)
    snapshots: int = 0  # how many are recorded

    def disk(self, target: str) -> Disk:
        """Raises NotFoundError."""
        found = self.head.domain.disk(target)
        if found is None:
            raise NotFoundError(f"no disk named {target!r}", remedy="see imgtool domblklist")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyPlan:
    """A job before its first byte."""

    job: CopyJob
    pins: tuple[Pin, ...]
    space: tuple[Space, ...]
    notes: tuple[str, ...]  # what a person should know, a line each


def plan_copy(requests: Sequence[CopyRequest], facts: CopyFacts) -> CopyPlan:
    """A job that copies each disk; the images that exist are only read.

    Raises BadRequestError, ExistsError, UnsupportedError, ChainError; each names the disk.
    """
    _require_distinct(requests, facts)
    disks = tuple(_disk(request, number, facts) for number, request in enumerate(requests))
    domain = facts.head.domain
    job = CopyJob(
        id=facts.txid,
        store=facts.store,
        domain=domain.name,
        uuid=domain.uuid,
        phase=Phase.COPYING,
        disks=disks,
    )
    return CopyPlan(
        job=job,
        pins=tuple(copy_pins(job, facts)),
        space=tuple(_space(disk) for disk in disks if not disk.reuse),
        notes=tuple(note for disk in disks for note in _notes(disk, facts)),
    )


def copy_pins(job: CopyJob, facts: CopyFacts) -> Iterator[Pin]:
    """What must not change while it is copied, and what nobody else may even read."""
    for disk in job.disks:
        for image in facts.chains[disk.target].images:
            yield Pin(target=disk.target, path=image.path, identity=image.identity)
        made = facts.reused[disk.target].chain.images if disk.reuse else ()
        for image in made:
            yield Pin(
                target=disk.target,
                path=image.path,
                identity=image.identity,
                exclusive=image is made[-1],
                written=False,  # our own qemu-img reads it, to compare, with locks of its own
            )


def resolved(request: CopyRequest, chain: Chain) -> Format:
    """The format of the copy. Raises UnsupportedError for any but raw and qcow2."""
    fmt = request.format or chain.active.format
    if fmt not in (Format.RAW, Format.QCOW2):
        raise UnsupportedError(
            f"{request.target}: a copy cannot be a {fmt} image",
            remedy="say which it is to be: --format qcow2, or --format raw",
        )
    if fmt is Format.RAW and request.shallow and len(chain.images) > 1:
        raise UnsupportedError(
            f"{request.target}: a raw copy cannot be shallow: it has no base",
            remedy="leave --shallow out, or --format",
        )
    return fmt


def _require_distinct(requests: Sequence[CopyRequest], facts: CopyFacts) -> None:
    """Each disk once, each destination once. Raises BadRequestError."""
    if not requests:
        raise BadRequestError("no disk is named", remedy="give PATH and DEST, or --disk")
    targets: set[str] = set()
    dests: dict[object, str] = {}
    for request in requests:
        target = request.target
        if target in targets:
            raise BadRequestError(f"{target}: is named twice", remedy="name it once")
        targets.add(target)
        place = facts.places.get(target)
        key: object = (
            place.folder / place.overlay.name
            if place
            else facts.reused[target].chain.active.identity.file
        )
        if key in dests:
            raise BadRequestError(
                f"{dests[key]} and {target} would both be copied to {request.dest}",
                remedy="give each disk a file of its own",
            )
        dests[key] = target


def _disk(request: CopyRequest, number: int, facts: CopyFacts) -> DiskCopy:
    target, disk = request.target, facts.disk(request.target)
    chain = facts.chains[target]
    require_whole_file(disk)
    for image in chain.images:
        require_sound(target, image)
    top, fmt = chain.active, resolved(request, chain)
    base = chain.images[-2] if request.shallow and len(chain.images) > 1 else None
    made = facts.reused.get(target)
    if made is None:
        backing = _require_place(request, facts, base, top)
    else:
        backing = _require_fitting(request, made, top, base)
    copied = (top,) if base else chain.images
    features = (made.chain.active if made else top).features
    return DiskCopy(
        target=target,
        source=top.spelled,
        source_format=top.format,
        layers=_layers(chain),
        dest=request.dest,
        staged=request.dest if made else facts.staged(request.dest, number),
        format=fmt,
        backing=backing,
        backing_format=base.format if base else Format.RAW,
        features=features or Qcow2Features(),
        bitmaps=bool(top.bitmaps) and fmt is Format.QCOW2 and made is None,
        virtual_size=top.virtual_size,
        total=min(sum(image.allocation for image in copied), top.virtual_size),
        shallow=request.shallow,
        reuse=request.reuse,
        block_device=made is not None and made.chain.active.block_device,
    )


def _layers(chain: Chain) -> tuple[Layer, ...]:
    return tuple(
        Layer(path=image.path, identity=image.identity, block_device=image.block_device)
        for image in chain.images
    )


def _require_place(request: CopyRequest, facts: CopyFacts, base: Image | None, top: Image) -> str:
    """What a new destination records as its base. Raises ExistsError, BadRequestError."""
    place = facts.places[request.target]
    if place.taken:
        raise ExistsError(
            f"external destination file for disk {request.target} already exists: {request.dest}",
            remedy="choose another file, or see --reuse-external",
        )
    check_overlay(request.target, request.dest)
    if base is None:
        return ""
    relative = is_relative(top)
    named = base.path if relative else plain(base)
    return backing_name(named, place.folder, relative=relative)


def _require_fitting(request: CopyRequest, made: Reused, top: Image, base: Image | None) -> str:
    """The base of a destination that is there. Raises BadRequestError if it does not fit."""
    image = made.chain.active
    require_sound(request.target, image)
    check_overlay(request.target, request.dest)
    problem, remedy = "", "make another one with qemu-img create"
    if made.users:
        problem, remedy = f"is used by {', '.join(made.users)}", "choose another file"
    elif image.virtual_size != top.virtual_size:
        problem = f"shows {image.virtual_size} bytes, the disk {top.virtual_size}"
    elif image.snapshots:
        problem = "has internal snapshots inside"
    elif base is None and image.backing is not None:
        problem = f"builds on {image.backing}, which a copy of the whole disk does not need"
    elif base is not None and image.backing is None:
        problem = f"has no base; it should build on a copy of {base.spelled}"
    elif base is not None and made.has_data:
        problem = "has data of its own, which a shallow copy would not replace"
    if problem:
        raise BadRequestError(f"{request.target}: {image.spelled} {problem}", remedy=remedy)
    return image.backing or ""


def _space(disk: DiskCopy) -> Space:
    size = disk.total + disk.virtual_size // 512 + _OVERHEAD
    return Space(target=disk.target, folder=disk.dest.parent, size=size)


def _notes(disk: DiskCopy, facts: CopyFacts) -> Iterator[str]:
    top = facts.chains[disk.target].active
    if top.snapshots:
        tags = ", ".join(each.tag for each in top.snapshots)
        yield f"{disk.target}: internal snapshots stay in {top.spelled}: {tags}"
    if top.bitmaps and not disk.bitmaps:
        names = ", ".join(top.bitmaps)
        yield f"{disk.target}: bitmaps stay in {top.spelled}: {names}"
    if facts.snapshots and disk.target == min(facts.chains):
        yield f"the snapshots of {facts.head.domain.name} go on naming the images of before"
