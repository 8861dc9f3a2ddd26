"""Plan the end of a mirrored snapshot: the domain goes over to its mirrors, or gives them up.

old.qcow2 <- old.migrate    where the domain is
old.qcow2 <- new.qcow2      elsewhere: its base is a copy
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imgtool.model.errors import BadRequestError, ChainError
from imgtool.model.image import Chain, Format, Image
from imgtool.model.plan import (
    Aftermath,
    CarryOver,
    Drop,
    DropRecord,
    LateRecord,
    Move,
    Pin,
    Plan,
    SetCurrent,
    Space,
)
from imgtool.model.snapshot import Snapshot
from imgtool.plan.snapshot import MAX_LAYERS
from imgtool.plan.undertaking import Undertaking, node, require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """A mirrored disk: where it is, and its mirror."""

    target: str
    source: Chain
    mirror: Chain
    source_data: bool  # the active layer has clusters of its own
    mirror_data: bool  # so has the mirror


@dataclass(frozen=True, slots=True, kw_only=True)
class Unwanted:
    """A mirror that is given up; `reason` says why its file is left where it is."""

    target: str
    path: str
    image: Image | None  # None: it is gone, or cannot be read
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndFacts(Undertaking):
    """What the survey found."""

    snapshot: Snapshot
    current: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndPlan:
    """The plan, and what is only known to its maker."""

    plan: Plan
    moves: tuple[Move, ...]
    pins: tuple[Pin, ...]
    space: tuple[Space, ...]
    notes: tuple[str, ...]  # what a person should know, a line each


def plan_mirror_pivot(sides: Sequence[Sides], trust: bool, facts: EndFacts) -> EndPlan:
    """Let the domain name its mirrors, all disks at once; what it has written since goes along.

    The old place stays as it is. Raises ChainError, BadRequestError; each names the disk.
    """
    _require_distinct(sides)
    for each in sides:
        _require_equal_shape(each)
    carried = [each for each in sides if each.source_data or each.mirror_data]
    steps = [
        CarryOver(
            target=each.target,
            source=node(each.source.active),
            mirror=node(each.mirror.active),
            verify=each.mirror_data and not trust,
        )
        for each in carried
    ]
    plan = facts.plan(
        f"pivot to the mirrors of snapshot {facts.snapshot.name} of {facts.head.domain.name}",
        steps,
        aftermath=Aftermath(records=late_records(facts)),
    )
    moves = tuple(
        Move(
            target=each.target,
            path=each.mirror.active.spelled,
            format=Format.QCOW2,
            block_device=each.mirror.active.block_device,
            over=False,
        )
        for each in sides
    )
    written = {step.mirror.path for step in steps}
    pins = tuple(
        Pin(
            target=each.target,
            path=image.path,
            identity=image.identity,
            exclusive=image.path in written,
        )
        for each in sides
        for image in (*each.source.images, *each.mirror.images)
    )
    space = tuple(
        Space(
            target=each.target,
            folder=each.mirror.active.path.parent,
            size=each.source.active.allocation,
        )
        for each in carried
        if not each.mirror.active.block_device
    )
    return EndPlan(plan=plan, moves=moves, pins=pins, space=space, notes=tuple(_left(sides)))


def plan_mirror_abort(
    mirrors: Sequence[Unwanted], stays: Sequence[tuple[str, Chain]], facts: EndFacts
) -> EndPlan:
    """Drop the mirrors, and the snapshot; the domain stays on what it uses (`stays`, by disk)."""
    wanted = [(each.target, each.image) for each in mirrors if each.image and not each.reason]
    drops = tuple(
        Drop(target=target, path=image.path, inode=image.identity.inode) for target, image in wanted
    )
    plan = facts.plan(
        f"abort of the mirrors of snapshot {facts.snapshot.name} of {facts.head.domain.name}",
        (),
        aftermath=Aftermath(records=late_records(facts), drops=drops),
    )
    pins = [
        Pin(
            target=target,
            path=image.path,
            identity=image.identity,
            exclusive=True,
            written=False,
        )
        for target, image in wanted
    ]
    for target, chain in stays:
        pins += [
            Pin(target=target, path=image.path, identity=image.identity) for image in chain.images
        ]
    notes = tuple(
        f"{each.target}: {each.path} {each.reason}, and is left where it is"
        if each.reason
        else f"{each.target}: {each.path} is not there any more"
        for each in mirrors
        if each.reason or each.image is None
    )
    return EndPlan(plan=plan, moves=(), pins=tuple(pins), space=(), notes=notes)


def late_records(facts: EndFacts) -> tuple[LateRecord, ...]:
    """The snapshot's record goes; its parent is the current one, as after any deletion."""
    name, parent = facts.snapshot.name, facts.snapshot.parent
    current = (SetCurrent(name=parent, previous=name),) if facts.current == name else ()
    return (*current, DropRecord(name=name))


def _require_distinct(sides: Sequence[Sides]) -> None:
    """Each mirror is a file of its own, and in no other chain of the domain."""
    for each in sides:
        top = each.mirror.active
        others = [other for other in sides if other is not each]
        chains = [each.source, *(chain for other in others for chain in (other.source,))]
        below = [image for chain in chains for image in chain.images]
        below += [image for other in others for image in other.mirror.images]
        if any(image.identity.file == top.identity.file for image in below):
            raise BadRequestError(
                f"{each.target}: the mirror {top.spelled} is in another chain of the domain",
                remedy="give it up: snapshot-delete --mirror-abort",
            )


def _require_equal_shape(sides: Sides) -> None:
    target, source, mirror = sides.target, sides.source, sides.mirror
    for image in (*source.images, *mirror.images):
        require_sound(target, image)
    top, other = source.active, mirror.active
    problem = ""
    if len(source.images) < 2 or len(mirror.images) < 2:
        bare = top if len(source.images) < 2 else other
        problem = f"{bare.spelled} has no base"
    elif len(mirror.images) > MAX_LAYERS:
        problem = f"{other.spelled} is over {MAX_LAYERS} layers deep"
    elif any(image.identity.file == top.identity.file for image in mirror.images):
        problem = f"the mirror {other.spelled} builds on {top.spelled} itself"
    elif top.virtual_size != other.virtual_size:
        problem = _sizes(other, top)
    elif source.images[-2].virtual_size != mirror.images[-2].virtual_size:
        problem = _sizes(mirror.images[-2], source.images[-2])
    elif top.snapshots or other.snapshots:
        inside = top if top.snapshots else other
        problem = f"{inside.spelled} has internal snapshots inside, which stay behind"
    if problem:
        raise ChainError(
            f"{target}: {problem}",
            remedy="mend the mirror's chain, or give it up: snapshot-delete --mirror-abort",
        )


def _sizes(one: Image, other: Image) -> str:
    return f"{one.spelled} shows {one.virtual_size} bytes, {other.spelled} {other.virtual_size}"


def _left(sides: Sequence[Sides]) -> Iterator[str]:
    for each in sides:
        top = each.source.active
        yield f"{each.target}: the old place stays as it is: {top.spelled} and what is below it"
        files = {image.identity.file for image in each.source.images}
        shared = [image for image in each.mirror.images if image.identity.file in files]
        if shared:
            yield (
                f"{each.target}: {shared[-1].spelled} and what is below it is used by both places: "
                "it was not copied"
            )
        lost = [name for name in top.bitmaps if name not in each.mirror.active.bitmaps]
        if lost:
            yield f"{each.target}: bitmaps of {top.spelled} stay there: {', '.join(lost)}"
