"""What is left to do once the pivot has decided. Idempotent throughout: recovery does it again."""

from __future__ import annotations

import os
from pathlib import Path

from imgtool.engine import raw, rewrite
from imgtool.engine.world import World, naming
from imgtool.model.errors import PendingError
from imgtool.model.plan import (
    Aftermath,
    Drop,
    DropRecord,
    LateRecord,
    Move,
    Plan,
    ReplaceRecord,
    Repoint,
)
from imgtool.xml import patch


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
    _drop(todo.drops, world)


def _merged(todo: Aftermath, domain: str, world: World) -> set[Path]:
    """Tops whose merge is known to be complete, so that it must not be run again.

    A domain that names the base already may have run since: merging again would put the old data
    of the top over what its guest has written. And a top that is gone was dropped after its merge.
    """
    disks = world.store.head(domain).domain
    done = {drop.path for drop in todo.drops if not os.path.lexists(drop.path)}
    for repoint in todo.repoints:
        disk = disks.disk(repoint.target)
        if disk is not None and disk.source is not None and _same(disk.source, repoint.path):
            done.add(Path(os.path.realpath(repoint.was)))
    return done


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
    if isinstance(record, ReplaceRecord):
        world.store.record(domain, record.name, record.xml.encode(), current=False)
    elif isinstance(record, DropRecord):
        world.store.forget(domain, record.name)
    else:
        world.store.set_current(domain, record.name)


def _drop(drops: tuple[Drop, ...], world: World) -> None:
    folders = set()
    for drop in drops:
        with naming(drop.target, drop.path):
            if os.path.lexists(drop.path):
                if drop.path.lstat().st_ino != drop.inode:
                    raise PendingError(
                        f"{drop.target}: {drop.path} is not the file that was to be removed",
                        remedy="move it elsewhere, then run `imgtool recover`",
                    )
                world.files.unlink(drop.path)
            folders.add(drop.path.parent)
    for folder in sorted(folders):
        if folder.is_dir():
            world.files.sync_dir(folder)
