"""What is left to do once the pivot has decided. Idempotent throughout: recovery does it again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from imgtool.engine import family, raw, rewrite, survey
from imgtool.engine.world import World, naming
from imgtool.host.headers import read_image
from imgtool.model.errors import ChainError, PendingError
from imgtool.model.image import Chain, Format
from imgtool.model.plan import (
    Aftermath,
    Drop,
    DropRecord,
    LateRecord,
    Move,
    Plan,
    Relink,
    ReplaceRecord,
    Repoint,
)
from imgtool.plan.lineage import FileId, Lineage, files_of
from imgtool.xml import patch
from imgtool.xml.snapshot import parse_snapshot


def bring_about(plan: Plan, domain: str, world: World) -> None:
    """Merge, relink, repoint the domain, then its snapshots' metadata, then remove images.

    In this order, so that nothing names an image that is not right yet or is gone already. A
    crash inside is followed by the whole of it again.
    """
    todo = plan.aftermath
    merged = _merged(todo, domain, world)
    merges = [step for step in todo.merges if step.layers[-1].path not in merged]
    with world.interrupt.exposed():  # hours of data, perhaps, and `recover` goes on with them
        world.each(lambda step: rewrite.merge_down(step, world), merges)
    for merge in merges:
        base = merge.layers[0]
        rewrite.mend_image(merge.target, base.path, base.format, world)
    world.each(lambda step: rewrite.relink(step, world), todo.relinks)
    _repoint(todo.repoints, plan.txid, domain, world)
    for cut in todo.cuts:
        raw.resize(cut, world)
    for record in todo.records:
        _change(record, domain, world)
    _drop(todo.drops, domain, world)


def _merged(todo: Aftermath, domain: str, world: World) -> set[Path]:
    """Tops that must not be merged (again): somebody sees their base otherwise than through them.

    A domain that names the base may have run since: merging again would put the old data of the
    top over what its guest has written. And a top that is gone was dropped after its merge.
    """
    over: list[tuple[Path, Path | None]] = [*_relinked(todo.relinks)]
    for chain in _chains(domain, world).values():
        paths = [image.path for image in chain.images]
        over += zip(paths, [*paths[1:], None], strict=True)
    done = {drop.path for drop in todo.drops if not os.path.lexists(drop.path)}
    for merge in todo.merges:
        base, above = merge.layers[0].path, merge.layers[1].path
        if any(lower == base and upper != above for lower, upper in over):
            done.add(merge.layers[-1].path)
    return done


def _chains(domain: str, world: World) -> dict[str, Chain]:
    """What the disks of the domain lead to now, as far as it can be read."""
    return survey.chains_of(world.store.head(domain).domain.disks, world)


def _relinked(relinks: tuple[Relink, ...]) -> Iterator[tuple[Path, Path]]:
    """The base that each of the images names now, and the image."""
    for step in relinks:
        with suppress(ChainError):  # half of a name, if the power went: it is written again
            backing = read_image(step.image, Format.QCOW2).backing
            if backing is not None:
                yield Path(os.path.realpath(step.image.parent / backing)), step.image


def _repoint(repoints: tuple[Repoint, ...], txid: str, domain: str, world: World) -> None:
    """Let disks that still name the old image name the new one, which has the same content."""
    head = world.store.head(domain)
    moves = []
    for repoint in repoints:
        disk = head.domain.disk(repoint.target)
        if disk is not None and disk.source is not None and _same(disk.source, repoint.was):
            moves.append(
                Move(
                    target=repoint.target,
                    path=repoint.path,
                    format=repoint.format,
                    block_device=repoint.block_device,
                    over=False,
                )
            )
    if moves:
        xml = patch.pivot(head.xml, moves=moves, txid=txid, where=domain)
        world.store.pivot(domain, expected=head.digest, xml=xml)


def _same(one: object, other: object) -> bool:
    return os.path.realpath(str(one)) == os.path.realpath(str(other))


def _change(record: LateRecord, domain: str, world: World) -> None:
    """What somebody has made of the snapshots since a crash is left as it is."""
    if isinstance(record, ReplaceRecord):
        if record.name in _recorded(domain, world):
            world.store.record(domain, record.name, record.xml.encode(), current=False)
    elif isinstance(record, DropRecord):
        world.store.forget(domain, record.name)
    elif world.store.current(domain) == record.previous:
        world.store.set_current(domain, record.name)


def _recorded(domain: str, world: World) -> set[str]:
    return {parse_snapshot(xml, where=domain).name for xml in world.store.snapshots(domain)}


def _drop(drops: tuple[Drop, ...], domain: str, world: World) -> None:
    """Remove images, durably; one that is in use again, such as below a newer overlay, stays."""
    there = [drop for drop in drops if os.path.lexists(drop.path)]
    needed = _needed(there, domain, world) if there else set()
    for drop in there:
        with naming(drop.target, drop.path):
            facts = drop.path.lstat()
            if (facts.st_dev, facts.st_ino) in needed:
                world.say(f"{drop.target}: {drop.path} is in use again and stays where it is")
                continue
            if facts.st_ino != drop.inode:
                raise PendingError(
                    f"{drop.target}: {drop.path} is not the file that was to be removed",
                    remedy="move it elsewhere, then run `imgtool recover`",
                )
            world.files.unlink(drop.path)
    for folder in sorted({drop.path.parent for drop in drops}):
        if folder.is_dir():
            world.files.sync_dir(folder)


def _needed(drops: list[Drop], domain: str, world: World) -> set[FileId]:
    """The files that the domain and its snapshots lead to now, and those that others do.

    Hours may have passed since the plan was made, or days, if it is recovered: somebody may have
    built on an image meanwhile.
    """
    head = world.store.head(domain)
    held = {each.snapshot.name: each for each in family.held(head, world)}
    needed = files_of(_chains(domain, world).values()) | Lineage(current={}, held=held).needed()
    going = {world.files.identity(drop.path).file: drop.path for drop in drops}
    strangers = family.strangers_to(head, going, world)
    return needed | files_of(stranger.chain for stranger in strangers)
