"""Run a plan: all of it or none of it. Recovery is re-entry: the same functions, another process.

The domain XML is the commit record. Whatever the journal says, a transaction whose id the XML
carries goes forward, any other goes back. Only a plan of files that no domain names yet is
committed by its journal.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from imgtool.engine import making, redo, rewrite, undo
from imgtool.engine.journal import Pending, Staged
from imgtool.engine.layers import LayerCopies
from imgtool.engine.redo import Redo
from imgtool.engine.room import Room
from imgtool.engine.world import World, failed, naming
from imgtool.host.locks import PinnedImages, check_unchanged
from imgtool.model.domain import Head
from imgtool.model.errors import (
    DomainChangedError,
    FailedError,
    ImageChangedError,
    ImgtoolError,
    NotFoundError,
    PendingError,
)
from imgtool.model.plan import (
    ChangeInPlace,
    Commit,
    CopyImage,
    CopyLayer,
    CreateOverlay,
    FlattenImage,
    Made,
    Plan,
    PutRecord,
    SetCurrent,
    Space,
    Step,
)


class Direction(Enum):
    """Which way a transaction ends."""

    FORWARD = auto()
    BACK = auto()


def decide(pending: Pending, head: Head | None) -> Direction:
    """Which way a pending transaction ends. The domain XML is the commit record."""
    plan = pending.plan
    carried = head is not None and head.domain.transaction == plan.txid
    committed = pending.done if plan.files_only else carried
    return Direction.FORWARD if committed else Direction.BACK


def run(plan: Plan, commit: Commit, room: Room, world: World) -> None:
    """Do all that the plan says, or nothing.

    Raises the first step's error with nothing changed, Interrupted after a signal (saying which
    way it went), or PendingError if it could be neither finished nor undone. A crash inside is
    ended by `conclude`, before or after the pivot.
    """
    with PinnedImages() as pinned, world.interrupt.deferred(world.qemu.cancel):
        pinned.pin(commit.pins)
        require_space(commit.space, world)
        world.interrupt.check()
        try:
            _perform(plan, commit, room, world)
        except BaseException as error:
            if _insist(room, world) is not Direction.FORWARD:
                world.interrupt.check()
                raise _plain(error, plan) from error
            if not isinstance(error, Exception):
                raise  # KeyboardInterrupt of a caller without our signal handlers
        else:
            _insist(room, world)
        world.interrupt.outcome = f"came too late: {plan.summary} is done"
        world.interrupt.check()


def _insist(room: Room, world: World) -> Direction | None:
    """Conclude, even if a KeyboardInterrupt comes in the middle: it is raised afterwards."""
    try:
        return conclude(room, world, pinned=True)
    except Exception:
        raise
    except BaseException:
        conclude(room, world, pinned=True)
        raise


def conclude(room: Room, world: World, *, pinned: bool = False) -> Direction | None:
    """End the domain's pending transaction, whoever began it; None if there is none.

    Idempotent, and safe to kill. `pinned`: this process holds the locks of the images already.
    Raises PendingError if it cannot be ended now; then everything needed for it is still there.
    """
    try:
        pending = room.journal.pending()
        if pending is None:
            _forget_journal(room)
            return None
        head = _head(pending, world, crashed=not pinned)
        direction = decide(pending, head)
        with PinnedImages() as images, world.interrupt.shielded():
            world.qemu.resume()
            if not pinned:
                forward = direction is Direction.FORWARD
                images.seize(undo.images_to_seize(pending, world, forward=forward))
                if forward:
                    drops = pending.plan.aftermath.drops
                    images.seize(
                        ((drop.target, drop.path) for drop in drops if drop.path.exists()),
                        written=False,
                    )
            if direction is Direction.FORWARD and pending.plan.files_only:
                room.journal.settle()
                undo.finish_files(pending, world)
            elif direction is Direction.FORWARD and head is not None:
                undo.finish(pending, head.domain.name, world)
            else:
                undo.go_back(pending, None if head is None else head.domain.name, world)
        room.clear(pending.plan.workspace)
        room.journal.remove()
        return direction
    except PendingError:
        raise
    except (OSError, ImgtoolError) as error:
        raise PendingError(
            f"a transaction is pending ({room.journal.path}): {error}",
            remedy="mend the cause, then run `imgtool recover`",
        ) from error


def _forget_journal(room: Room) -> None:
    if room.journal.path.exists():  # torn in its first line: nothing had been done yet
        room.journal.remove()


def _head(pending: Pending, world: World, *, crashed: bool) -> Head | None:
    plan = pending.plan
    if plan.store != world.store.uri:
        raise PendingError(
            f"a transaction of {plan.store} is pending: {plan.summary}",
            remedy=f"run `imgtool -c {plan.store} recover {plan.domain}`",
        )
    try:
        head = world.store.head(plan.uuid)
        if crashed and not plan.files_only and decide(pending, head) is Direction.BACK:
            world.store.quiesce(head.domain.name)
            head = world.store.head(plan.uuid)
        return head
    except NotFoundError:
        return None


def require_space(wanted: Sequence[Space], world: World) -> None:
    """Raises FailedError if that many bytes are not free."""
    needed: dict[int, int] = {}
    for space in wanted:
        with naming(space.target, space.folder):
            device = space.folder.stat().st_dev
            needed[device] = needed.get(device, 0) + space.size
            free = world.files.free_bytes(space.folder)
        if needed[device] > free:
            raise FailedError(
                f"{space.target}: {space.folder}: {needed[device]} bytes are needed, {free} free",
                remedy="free some space there",
            )


def _perform(plan: Plan, commit: Commit, room: Room, world: World) -> None:
    room.journal.begin(plan)
    redos = _stage(plan, world)
    staged = Staged(
        overlays=world.each(lambda step: making.sync(step, world), plan.made),
        changes=tuple(each.staged for each in redos),
    )
    if plan.changes:
        world.files.sync_dir(plan.workspace)
    world.interrupt.check()
    check_unchanged(commit.pins)
    room.journal.staged(staged)
    _publish(plan, redos, world)
    if plan.files_only:
        _commit_files(plan, commit, room, world)
        return
    rewrite.perform(plan, world)
    _record(plan, commit, world)
    world.interrupt.check()
    written = [step.image for step in plan.changes]
    written += [path for _target, path in rewrite.images(plan)]
    check_unchanged(commit.pins, except_for=written)
    _require_ours(plan, world)
    world.store.pivot(plan.domain, expected=commit.expected, xml=commit.xml)


def _commit_files(plan: Plan, commit: Commit, room: Room, world: World) -> None:
    """The commit point of files that no domain names yet, made for the domain as it was seen."""
    world.interrupt.check()
    _require_ours(plan, world)
    if world.store.head(plan.domain).digest != commit.expected:
        raise DomainChangedError(
            f"{plan.domain}: was redefined meanwhile", remedy="look at it, then try again"
        )
    room.journal.done()


def _stage(plan: Plan, world: World) -> tuple[Redo, ...]:
    template = redo.template(plan.workspace)
    if plan.changes:
        with naming(plan.changes[0].target, plan.workspace):
            world.files.make_dirs(plan.workspace)
            redo.create_template(plan.changes, template, world.qemu)

    copies = LayerCopies(plan, world)

    def stage(step: Step) -> Redo | None:
        world.interrupt.check()
        if isinstance(step, CreateOverlay):
            making.create_overlay(step, world)
        elif isinstance(step, CopyImage):
            making.copy_image(step, world)
        elif isinstance(step, CopyLayer | FlattenImage):
            copies.make(step)
        elif isinstance(step, ChangeInPlace):
            with naming(step.target, step.image):
                return redo.stage(step, template, world.files, world.qemu)
        return None

    return tuple(each for each in world.each(stage, plan.steps) if each is not None)


def _publish(plan: Plan, redos: Sequence[Redo], world: World) -> None:
    def block(step: ChangeInPlace) -> None:
        with naming(step.target, step.image):
            redo.block(step, world.files)

    def publish(step: Made | Redo) -> None:
        if isinstance(step, Redo):
            with naming(step.change.target, step.change.image):
                step.apply(world.files)
        else:
            with naming(step.target, step.overlay):
                world.files.publish(step.staged, step.overlay)

    world.each(block, plan.changes)  # all of them before the first byte of redo
    world.interrupt.check()
    todo: tuple[Made | Redo, ...] = (*plan.made, *redos)
    world.each(publish, todo)


def _require_ours(plan: Plan, world: World) -> None:
    """What the new XML will name is what was made, and nobody has put another file there."""
    for step in plan.made:
        if not world.files.same(step.staged, step.overlay):
            raise ImageChangedError(
                f"{step.target}: {step.overlay} was replaced meanwhile",
                remedy="make sure that nobody else uses that name, then try again",
            )
    for change in plan.changes:
        with naming(change.target, change.image):
            with redo.opened(world.files, change.image) as image:
                redo.require_ours(image, change)


def _record(plan: Plan, commit: Commit, world: World) -> None:
    documents = iter(commit.records)
    for step in plan.records:
        if isinstance(step, PutRecord):
            world.store.record(plan.domain, step.name, next(documents), current=False)
        elif isinstance(step, SetCurrent):
            world.store.set_current(plan.domain, step.name)


def _plain(error: BaseException, plan: Plan) -> BaseException:
    """What a caller sees: our errors and Ctrl-C as they are, OSError as a sentence."""
    if isinstance(error, NotFoundError):
        return DomainChangedError(
            f"{plan.domain}: was undefined meanwhile: {error.message}",
            remedy="nothing needs to be done, if that was meant",
        )
    if isinstance(error, OSError):
        return failed(plan.domain, error, plan.workspace.parent)
    return error
