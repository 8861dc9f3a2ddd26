"""Plan mirror files: two overlays of one content, whose relative backing name means two places.

/path1/to/old.qcow2 <- /path1/to/old.migrate    beside the active layer
/path2/to/old.qcow2 <- /path2/to/new.qcow2      the mirror: its base will be copied there
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.model.errors import BadRequestError, ChainError, ExistsError
from imgtool.model.image import Chain, Image, Qcow2Features
from imgtool.model.plan import CreateOverlay, Pin, Plan, Space
from imgtool.plan.names import backing_name, check_overlay
from imgtool.plan.select import Choice
from imgtool.plan.snapshot import (
    Facts,
    Place,
    Prepared,
    SnapshotPlan,
    overlay_space,
    require_depth,
)
from imgtool.plan.undertaking import Undertaking, require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorWish:
    """The files that one disk is to be given; at least one of them."""

    target: str
    file: Place | None = None  # beside the active layer
    mirror: Place | None = None  # elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorFacts(Undertaking):
    """What the survey found."""

    chains: Mapping[str, Chain]  # of the disks that are asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorFilesPlan:
    """The plan, and what it needs."""

    plan: Plan
    space: tuple[Space, ...]


def plan_mirror_files(wishes: Sequence[MirrorWish], facts: MirrorFacts) -> MirrorFilesPlan:
    """The files of all disks, or none. No image that exists is opened for it, nor the domain.

    Raises BadRequestError, ExistsError, ChainError; each names the disk.
    """
    steps: list[CreateOverlay] = []
    for wish in wishes:
        chain = facts.chains[wish.target]
        require_depth(wish.target, chain)
        _require_whole(wish.target, chain.active)
        if wish.file is not None:
            require_beside(wish.target, chain.active, wish.file)
        for place in (wish.file, wish.mirror):
            if place is not None:
                staged = facts.staged(place.overlay, len(steps))
                steps.append(relative_overlay(wish.target, chain.active, place, staged))
    mirrors = {each.target: each.mirror for each in wishes if each.mirror is not None}
    require_own_places(mirrors, facts.chains)
    require_distinct_places([place for wish in wishes for place in _places(wish)])
    summary = f"mirror files of {facts.head.domain.name}"
    plan = facts.plan(summary, steps, files_only=True)
    return MirrorFilesPlan(plan=plan, space=tuple(overlay_space(step) for step in steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrors:
    """Where the mirrors of a snapshot go, or those that are there; each disk is in one of them."""

    places: Mapping[str, Place]
    prepared: Mapping[str, Prepared]

    def path(self, target: str) -> Path:
        if target in self.places:
            return self.places[target].overlay
        return self.prepared[target].image.spelled


def add_mirrors(
    planned: SnapshotPlan, choices: Sequence[Choice], mirrors: Mirrors, facts: Facts
) -> SnapshotPlan:
    """The same snapshot with mirrors: made in the same transaction, noted in the same record.

    Raises BadRequestError, ExistsError, ChainError; each names the disk.
    """
    targets = [choice.disk.target for choice in choices if choice.mirror is not None]
    if not targets:
        return planned
    if not facts.metadata:
        raise BadRequestError(
            f"{targets[0]}: a mirror is kept in the snapshot's metadata",
            remedy="leave --no-metadata or the mirror out",
        )
    steps = list(planned.plan.steps)
    pins = []
    for target in targets:
        base = facts.chains[target].active
        if target in facts.places:
            require_beside(target, base, facts.places[target])
        if target in mirrors.places:
            place = mirrors.places[target]
            check_overlay(target, place.overlay)
            staged = facts.staged(place.overlay, len(steps))
            steps.append(relative_overlay(target, base, place, staged))
        else:
            image = _fitting(target, mirrors.prepared[target], facts)
            pins.append(Pin(target=target, path=image.path, identity=image.identity))
    _require_apart(targets, mirrors, facts)
    made = [step for step in steps[len(planned.plan.steps) :] if isinstance(step, CreateOverlay)]
    disks = tuple(
        replace(disk, mirror=os.fspath(mirrors.path(disk.name))) if disk.name in targets else disk
        for disk in planned.snapshot.disks
    )
    return replace(
        planned,
        plan=replace(planned.plan, steps=tuple(steps)),
        pins=(*planned.pins, *pins),
        space=(*planned.space, *(overlay_space(step) for step in made)),
        snapshot=replace(planned.snapshot, disks=disks),
    )


def _require_apart(targets: Sequence[str], mirrors: Mirrors, facts: Facts) -> None:
    """No file is in two roles, and none of them is in anybody's chain."""
    require_own_places(mirrors.places, facts.chains)
    places = [facts.places[target] for target in facts.places]
    require_distinct_places([*places, *mirrors.places.values()])
    files = {image.identity.file for chain in facts.chains.values() for image in chain.images}
    files |= {prepared.image.identity.file for prepared in facts.prepared.values()}
    for target in targets:
        if target not in mirrors.prepared:
            continue
        image = mirrors.prepared[target].image
        if image.identity.file in files:
            raise BadRequestError(
                f"{target}: the mirror {image.spelled} is in use already",
                remedy="give each disk a mirror of its own",
            )
        files.add(image.identity.file)


def _fitting(target: str, made: Prepared, facts: Facts) -> Image:
    """A mirror that was prepared; what it builds on may not be there yet."""
    base, image = facts.chains[target].active, made.image
    require_sound(target, image)
    problem = ""
    if image.virtual_size != base.virtual_size:
        problem = f"shows {image.virtual_size} bytes, the disk {base.virtual_size}"
    elif image.backing is None:
        problem = f"has no base; it should be {relative_name(base)}"
    elif Path(image.backing).is_absolute() or ":" in image.backing.partition("/")[0]:
        problem = f"names its base {image.backing}, which is not relative"
    elif image.backing_format != base.format:
        problem = f"records format {image.backing_format or 'none'} of its base, not {base.format}"
    elif image.snapshots:
        problem = "has internal snapshots inside"
    elif made.has_data and not facts.force:
        problem = "has data of its own (--force accepts that)"
    if problem:
        raise BadRequestError(
            f"{target}: the mirror {image.spelled} {problem}",
            remedy=f"remove it, then: imgtool mirror-create {facts.head.domain.name} "
            f"--diskspec {target},mirror={image.spelled}",
        )
    return image


def relative_overlay(target: str, base: Image, place: Place, staged: Path) -> CreateOverlay:
    """An overlay that looks for its base, by its last name, in its own folder."""
    if place.taken:
        raise ExistsError(
            f"{target}: {place.overlay} already exists", remedy="choose another file, or remove it"
        )
    return CreateOverlay(
        target=target,
        base=base.path,
        base_format=base.format,
        backing=relative_name(base),
        overlay=place.overlay,
        staged=staged,
        virtual_size=base.virtual_size,
        features=base.features or Qcow2Features(),
        unchecked=True,
    )


def relative_name(base: Image) -> str:
    """What both overlays record for the active layer."""
    return backing_name(base.path, base.path.parent, relative=True)


def require_beside(target: str, base: Image, place: Place) -> None:
    """Raises BadRequestError where the relative name would lead nowhere."""
    if place.folder != base.path.parent:
        raise BadRequestError(
            f"{target}: {place.overlay} is not beside {base.path}: its base, "
            f"{relative_name(base)!r}, would not be found",
            remedy=f"put it into {base.path.parent}; only the mirror may be elsewhere",
        )


def require_own_places(mirrors: Mapping[str, Place], chains: Mapping[str, Chain]) -> None:
    """The names beside each mirror must be free for the layers that it will look for there.

    Raises BadRequestError: a mirror with the name of such a layer, or two disks whose layers
    would get one name.
    """
    needed: dict[Path, tuple[str, Image]] = {}
    for target, place in mirrors.items():
        base = chains[target].active
        for image in chains[target].images:
            if place.overlay.name == image.path.name:
                raise BadRequestError(
                    f"{target}: the mirror {place.overlay} has the name of the layer {image.path}, "
                    "which it will need beside it",
                    remedy="give the mirror another name",
                )
        other, known = needed.setdefault(place.folder / base.path.name, (target, base))
        if known.identity.file != base.identity.file:
            raise BadRequestError(
                f"{other} and {target} would both look for {place.folder / base.path.name}, "
                f"but have {known.path} and {base.path}",
                remedy="put their mirrors into different folders",
            )


def require_distinct_places(places: Iterable[Place]) -> None:
    """Raises BadRequestError if one file would be made twice."""
    seen: set[Path] = set()
    for place in places:
        path = place.folder / place.overlay.name
        if path in seen:
            raise BadRequestError(
                f"{place.overlay} is given twice", remedy="give each file a name of its own"
            )
        seen.add(path)


def _places(wish: MirrorWish) -> Iterator[Place]:
    yield from (place for place in (wish.file, wish.mirror) if place is not None)


def _require_whole(target: str, image: Image) -> None:
    """A running guest's image may be marked dirty; one that is marked corrupt is damaged."""
    if image.corrupt:
        raise ChainError(
            f"{target}: {image.spelled} is marked corrupt",
            remedy=f"imgtool recover; else qemu-img check -r all -f {image.format} "
            f"{os.fspath(image.spelled)}",
        )
