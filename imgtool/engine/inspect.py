"""Look at all that has to do with a domain, reading only, and stopping at nothing that is broken.

The other domains of the store are read, too: they may use the same images, and say what of.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from imgtool.engine import recovery
from imgtool.engine.checkpoint import Checkpoint, all_checkpoints
from imgtool.engine.glance import Formats, Glance, formats_of, image_at, look_at
from imgtool.engine.jobs import all_jobs
from imgtool.engine.libvirts_own import libvirts_own
from imgtool.engine.recovery import Waiting
from imgtool.engine.world import World
from imgtool.host.files import names_below
from imgtool.host.headers import read_image
from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import ImgtoolError, QemuImgError
from imgtool.model.image import Chain, Format, Image
from imgtool.model.job import CopyJob
from imgtool.plan.finding import Examined, Finding, Leftover, Report, Severity, Stray
from imgtool.plan.lineage import FileId, Lineage, Stranger, files_of

LOOKED_AT = 4096  # names in a folder of images; beyond that, somebody keeps other things there
STAGED = re.compile(r"\.imgtool-([0-9a-f]{16})-\d+")


@dataclass(slots=True, kw_only=True)
class Surroundings:
    """All domains of a store at a glance, and what has been found out about their images."""

    glances: Mapping[str, Glance]
    formats: Formats
    waiting: tuple[Waiting, ...]
    copies: Mapping[str, tuple[Checkpoint, ...]] = field(default_factory=dict)  # by UUID
    jobs: tuple[CopyJob, ...] = ()
    problems: tuple[Finding, ...] = ()
    overlays: dict[Path, tuple[Image, ...]] = field(default_factory=dict)  # by folder
    reports: dict[FileId, Report] = field(default_factory=dict)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Domains with parts that cannot be read: nobody knows what these name."""
        found = [name for name, glance in self.glances.items() if glance.problems]
        return (*found, *(problem.message for problem in self.problems))


def look_around(world: World) -> Surroundings:
    """Read every domain of the store. Raises only if the store itself cannot be read."""
    glances = {name: look_at(name, world) for name in world.store.domains()}
    formats = formats_of(glances.values())
    for name, glance in glances.items():
        if any(_has_unrecorded(chain) for chain in glance.all_chains()):
            glances[name] = look_at(name, world, formats)
    waiting: tuple[Waiting, ...] = ()
    jobs: tuple[CopyJob, ...] = ()
    problems: tuple[Finding, ...] = ()
    try:
        waiting = recovery.all_waiting(world)
        jobs = all_jobs(world)
    except ImgtoolError as error:
        problems = (
            Finding(
                severity=Severity.ERROR,
                kind="journal-unreadable",
                message=error.message,
                remedy=error.remedy,
            ),
        )
    return Surroundings(
        glances=glances,
        formats=formats,
        waiting=waiting,
        copies=all_checkpoints(world.state_dir, world.files),
        jobs=jobs,
        problems=problems,
    )


def examine(name: str, around: Surroundings, world: World, *, quick: bool = True) -> Examined:
    """All about one domain. Unless `quick`, `qemu-img check` is run on its images."""
    glance = around.glances[name]
    command = shlex.join(["imgtool", "-c", world.store.uri])
    if world.state_dir != world.store.state_dir:
        command += f" --state-dir {shlex.quote(str(world.state_dir))}"
    problems = (*glance.problems, *around.problems)
    if glance.head is None:
        return Examined(name=name, command=command, problems=problems, doubts=around.doubts)
    lineage = Lineage(current=glance.chains, held=glance.held)
    lineage = replace(lineage, strangers=tuple(_strangers(name, lineage, around)))
    pending = [each for each in around.waiting if each.plan.uuid == glance.head.domain.uuid]
    own = libvirts_own(glance, world)
    return Examined(
        name=name,
        command=command,
        head=glance.head,
        lineage=lineage,
        current=glance.current,
        flaws=glance.flaws,
        problems=(*problems, *own.odd),
        reports={} if quick else _reports(lineage, around, world),
        formats=around.formats,
        foreign_tags=frozenset(_foreign_tags(name, around)),
        strays=tuple(_strays(lineage, around, world)),
        leftovers=tuple(_leftovers(lineage, around)),
        copies=tuple(_copies(glance.head.domain.uuid, around)),
        pending=pending[0].plan.summary if pending else "",
        jobs=tuple(job for job in around.jobs if job.uuid == glance.head.domain.uuid),
        lost_mirrors=tuple(_lost_mirrors(lineage, glance.current)),
        claims=own.claims,
        on_disk=own.on_disk,
        own_file=own.file,
        doubts=around.doubts,
    )


def _lost_mirrors(lineage: Lineage, current: str | None) -> Iterator[tuple[str, Path]]:
    held = lineage.held.get(current or "")
    for disk in held.snapshot.disks if held else ():
        if disk.mirror and not os.path.lexists(disk.mirror):
            yield disk.name, Path(disk.mirror)


def _has_unrecorded(chain: Chain) -> bool:
    bottom = chain.base
    return bottom.backing is not None and bottom.backing_format is None


def _strangers(name: str, own: Lineage, around: Surroundings) -> Iterator[Stranger]:
    files = own.images().keys()
    for other, glance in around.glances.items():
        if other != name:
            for chain in glance.all_chains():
                if files_of([chain]) & files:
                    yield Stranger(who=f"domain {other}", chain=chain)


def _foreign_tags(name: str, around: Surroundings) -> Iterator[tuple[FileId, str]]:
    for other, glance in around.glances.items():
        for held in glance.held.values() if other != name else ():
            for target, chain in held.chains.items():
                if held.mode(target) is SnapshotMode.INTERNAL:
                    yield chain.active.identity.file, held.snapshot.name


def _reports(lineage: Lineage, around: Surroundings, world: World) -> dict[FileId, Report]:
    images = {
        file: image for file, image in lineage.images().items() if image.format is not Format.RAW
    }
    todo = [file for file in images if file not in around.reports]
    around.reports.update(
        zip(todo, world.each(lambda file: _report(images[file], world), todo), strict=True)
    )
    return {file: around.reports[file] for file in images}


def _report(image: Image, world: World) -> Report:
    try:
        found = world.qemu.check_alone(image.path, image.format, block_device=image.block_device)
    except QemuImgError as error:
        world.interrupt.check()
        return Report(problem=error.message)
    return Report(corruptions=found.corruptions, leaks=found.leaks, errors=found.errors)


def _folders(lineage: Lineage) -> list[Path]:
    return sorted({image.path.parent for image in lineage.images().values()})


def _strays(lineage: Lineage, around: Surroundings, world: World) -> Iterator[Stray]:
    """Overlays beside our images that build on one of them, and that nothing refers to."""
    targets = {
        image.identity.file: target
        for chains in (lineage.current, *(held.chains for held in lineage.held.values()))
        for target, chain in chains.items()
        for image in chain.images
    }
    used = files_of(chain for each in around.glances.values() for chain in each.all_chains())
    named = {path for glance in around.glances.values() for path in glance.named}
    named |= set(_planned(around))
    found: dict[FileId, tuple[Image, str]] = {}
    bases: dict[FileId, list[Path]] = {}
    for folder in _folders(lineage):
        for image in _overlays(folder, around, world):
            below = _files_below(image, world)
            if image.identity.file in used or image.path in named:
                continue
            if below:
                bases.setdefault(below[0], []).append(image.path)
            target = next((targets[file] for file in below if file in targets), None)
            if target is not None:
                found[image.identity.file] = (image, target)
    for file, (image, target) in found.items():
        yield Stray(
            image=image,
            target=target,
            has_data=bool(image.snapshots or image.bitmaps) or _has_data(image, world),
            overlays=tuple(bases.get(file, ())),
        )


def _has_data(image: Image, world: World) -> bool:
    try:
        return world.qemu.has_own_data(image.path, block_device=False)
    except QemuImgError:
        world.interrupt.check()
        return True  # nobody knows


def _overlays(folder: Path, around: Surroundings, world: World) -> tuple[Image, ...]:
    """The qcow2 overlays in a folder."""
    if folder not in around.overlays:
        around.overlays[folder] = tuple(_find_overlays(folder))
    return around.overlays[folder]


def _find_overlays(folder: Path) -> Iterator[Image]:
    for name in list(names_below(folder))[:LOOKED_AT]:
        path = folder / name
        try:
            if path.is_symlink() or not path.is_file() or name.startswith(".imgtool-"):
                continue
            image = read_image(path, Format.QCOW2)
        except (ImgtoolError, OSError):
            continue
        if image.backing is not None:
            yield image


def _files_below(image: Image, world: World) -> list[FileId]:
    """The files that an overlay builds on, its base first, as far as they can be read."""
    files: list[FileId] = []
    at: Image | None = image
    while at is not None and at.backing is not None and len(files) < 1000:
        try:
            at = image_at(at.spelled.parent / at.backing, _kind(at), world)
        except (ImgtoolError, OSError, RuntimeError):
            break
        if at.identity.file in files:
            break
        files.append(at.identity.file)
    return files


def _kind(overlay: Image) -> Format:
    """Read as raw, a file of unknown format can still be told from others."""
    return Format.parse(overlay.backing_format or "raw") or Format.RAW


def _planned(around: Surroundings) -> Iterator[Path]:
    """What open transactions and copy jobs have made, or are about to write or remove."""
    for job in around.jobs:
        for disk in job.disks:
            yield from (disk.staged, Path(os.path.realpath(disk.dest)))
    for waiting in around.waiting:
        plan = waiting.plan
        for step in plan.made:
            yield from (step.overlay, step.staged)
        yield from (drop.path for drop in plan.aftermath.drops)
        yield from (path for _target, path in plan.aftermath.images)


def _leftovers(lineage: Lineage, around: Surroundings) -> Iterator[Leftover]:
    open_now = {waiting.plan.txid for waiting in around.waiting}
    copies = {each.staged for found in around.copies.values() for each in found}
    open_now |= {job.id for job in around.jobs}
    for folder in _folders(lineage):
        for name in names_below(folder):
            match = STAGED.fullmatch(name)
            if match is None or match[1] in open_now or around.problems:
                continue
            if folder / name in copies:
                continue  # the domain that it is staged for knows of it
            try:
                facts = (folder / name).lstat()
            except OSError:
                continue
            yield Leftover(path=folder / name, inode=facts.st_ino)


def _copies(uuid: str, around: Surroundings) -> Iterator[Leftover]:
    """What a chain-copy of this domain has staged, wherever that is."""
    for each in around.copies.get(uuid, ()):
        try:
            facts = each.staged.lstat()
        except OSError:
            continue
        if each.inode in (0, facts.st_ino):
            size = 512 * facts.st_blocks
            yield Leftover(path=each.staged, inode=facts.st_ino, size=size)
