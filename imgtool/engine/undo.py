"""The two ways a transaction ends. Every function here is idempotent and safe to kill."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from imgtool.engine import aftermath, redo, rewrite
from imgtool.engine.journal import Pending, StagedOverlay
from imgtool.engine.world import World
from imgtool.host import qcow2
from imgtool.model.errors import PendingError
from imgtool.model.plan import ChangeInPlace, Made, Plan, PutRecord, RecordStep, SetCurrent
from imgtool.xml.snapshot import parse_snapshot


def finish(pending: Pending, domain: str, world: World) -> None:
    """After the pivot: make it durable, let QEMU have the images, drop the staged names."""
    world.store.settle(domain)
    for change in pending.plan.changes:
        with redo.opened(world.files, change.image) as image:
            redo.unblock(image, world.files)
    for step in pending.plan.made:
        if step.staged.exists() and not os.path.lexists(step.overlay):
            world.files.publish(step.staged, step.overlay)  # somebody removed the final name
    _drop_staged(pending.plan.made, world)
    aftermath.bring_about(pending.plan, domain, world)


def finish_files(pending: Pending, world: World) -> None:
    """After the commit of a plan of files only: their final names alone stay. No domain is asked.

    A final name that somebody has removed since stays removed: nothing needs it.
    """
    _drop_staged(pending.plan.made, world)


def go_back(pending: Pending, domain: str | None, world: World) -> None:
    """Before the pivot: everything as it was. `domain` is None if the store lost it meanwhile.

    What gives space back comes first: on a full disk the metadata could not be written else.
    """
    if domain is not None and not pending.plan.files_only:
        world.store.settle(domain)
    _drop_redo(pending.plan, world)
    _unpublish(pending, world, _named(pending.plan, domain, world))
    changes = blocked_images(pending)
    staged = {} if pending.staged is None else {each.image: each for each in pending.staged.changes}
    for change in changes:
        redo.restore(change, staged[change.image], world.files)
    _drop_staged(pending.plan.made, world)
    if domain is not None:
        for record in reversed(pending.plan.records):
            _take_back(record, pending.plan.txid, domain, world)
    else:
        _take_back_lost(pending.plan, world)
    # Only when all are whole again may QEMU have any. Those that are free already are synced: the
    # process that freed them may have died before that reached the disk.
    for change in pending.plan.changes if staged else ():
        with redo.opened(world.files, change.image) as image:
            redo.unblock(image, world.files)
    rewrite.mend(pending.plan, world)


def blocked_images(pending: Pending) -> tuple[ChangeInPlace, ...]:
    """The images that this transaction has blocked and not released yet.

    One that is not blocked is whole, and its owner may have used it since: it is left alone.
    Raises PendingError for an image that is gone, or is a copy: its old bytes are still with us.
    """
    if pending.staged is None:
        return ()
    return tuple(change for change in pending.plan.changes if _is_blocked(change))


def images_to_seize(
    pending: Pending, world: World, *, forward: bool
) -> tuple[tuple[str, Path], ...]:
    """Disk and path of each image that ending the transaction will write or remove."""
    blocked = tuple((change.target, change.image) for change in blocked_images(pending))
    if forward:
        more = pending.plan.aftermath.images
    else:
        made = ((step.target, step.overlay) for step in _published(pending.plan, world))
        more = (*rewrite.images(pending.plan), *made)
    return (*blocked, *((target, path) for target, path in more if path.exists()))


def _is_blocked(change: ChangeInPlace) -> bool:
    try:
        descriptor = os.open(change.image, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError as error:
        raise PendingError(
            f"{change.target}: {change.image} is gone in the middle of a transaction",
            remedy="put it back where it was, then run `imgtool recover`",
        ) from error
    try:
        if not qcow2.is_corrupt(descriptor):
            return False
        # Device numbers change at boot, so only the inode tells.
        if not change.block_device and os.fstat(descriptor).st_ino != change.identity.inode:
            raise PendingError(
                f"{change.target}: {change.image} is another file than the one that was changed",
                remedy="put the original file back, then run `imgtool recover`",
            )
        return True
    finally:
        os.close(descriptor)


def _take_back(record: RecordStep, txid: str, domain: str, world: World) -> None:
    if isinstance(record, SetCurrent):
        if world.store.current(domain) == record.name:
            world.store.set_current(domain, record.previous)
        return
    for document in world.store.snapshots(domain):
        snapshot = parse_snapshot(document, where=record.name)
        if snapshot.name == record.name and snapshot.transaction == txid:
            _restore_record(record, domain, world)


def _take_back_lost(plan: Plan, world: World) -> None:
    """Of a domain that somebody removed meanwhile, new records only: no other can be read."""
    marks = [step.previous for step in plan.records if isinstance(step, SetCurrent)]
    for record in plan.records:
        if isinstance(record, PutRecord) and record.previous is None:
            current = marks[0] if marks else None
            world.store.forget_lost(plan.uuid, record.name, current=current)


def _restore_record(record: PutRecord, domain: str, world: World) -> None:
    if record.previous is None:
        world.store.forget(domain, record.name)
    else:
        world.store.record(domain, record.name, record.previous.encode(), current=False)


def _named(plan: Plan, domain: str | None, world: World) -> tuple[Path, ...]:
    """Images that the domain names. Files of a plan without a pivot may be among them by now."""
    if domain is None or not plan.files_only:
        return ()
    disks = world.store.head(domain).domain.disks
    return tuple(disk.source for disk in disks if disk.source is not None)


def _unpublish(pending: Pending, world: World, named: tuple[Path, ...]) -> None:
    """Remove final names that are ours; an overlay that somebody has used since stays."""
    facts = (
        {} if pending.staged is None else {each.staged: each for each in pending.staged.overlays}
    )
    for step in _published(pending.plan, world):
        used = any(world.files.same(step.overlay, path) for path in named)
        if used or not _pristine(facts.get(step.staged), step.overlay, world):
            word = "is in use" if used else "was written to"
            world.say(f"{step.overlay}: {word} meanwhile and is left where it is")
            continue
        world.files.unlink(step.overlay)
    _sync_folders(pending.plan.made, world)


def _published(plan: Plan, world: World) -> Iterator[Made]:
    """What is there under its final name, and ours: no other file has the staged name, too."""
    return (step for step in plan.made if world.files.same(step.staged, step.overlay))


def _pristine(fact: StagedOverlay | None, overlay: Path, world: World) -> bool:
    now = world.files.identity(overlay)
    then = None if fact is None else fact.identity
    return then is not None and (now.size, now.mtime_ns) == (then.size, then.mtime_ns)


def _drop_redo(plan: Plan, world: World) -> None:
    """The way back needs the undo files only. Not synced: whatever comes back is dropped again."""
    if plan.changes:
        world.files.unlink(redo.template(plan.workspace))
    for change in plan.changes:
        world.files.unlink(change.redo)


def _drop_staged(overlays: Iterable[Made], world: World) -> None:
    for step in overlays:
        world.files.unlink(step.staged)
    _sync_folders(overlays, world)


def _sync_folders(overlays: Iterable[Made], world: World) -> None:
    """Even where nothing was removed: who removed it may have died before the sync."""
    for folder in sorted({step.staged.parent for step in overlays}):
        if folder.is_dir():
            world.files.sync_dir(folder)
