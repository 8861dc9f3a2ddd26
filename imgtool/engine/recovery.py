"""Find the transactions that were left open, and end them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from imgtool.engine import jobs
from imgtool.engine.journal import Journal
from imgtool.engine.room import entered, tidy, uuids
from imgtool.engine.transaction import Direction, conclude, decide
from imgtool.engine.world import World
from imgtool.model.errors import ImgtoolError, Interrupted, NotFoundError, PendingError
from imgtool.model.job import CopyJob
from imgtool.model.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A transaction that is open, and which way it will end (None: its store is another one)."""

    plan: Plan
    direction: Direction | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A transaction that recovery has ended."""

    domain: str
    txid: str
    summary: str
    direction: Direction


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """What `recover` did, and what it had to leave."""

    ended: tuple[Ended, ...]
    pending: tuple[Waiting, ...]
    problems: tuple[ImgtoolError, ...]
    jobs: tuple[CopyJob, ...] = ()  # copy jobs that are open: they wait for their owner


def waiting(world: World, uuid: str) -> Waiting | None:
    """The open transaction of one domain, read without its lock."""
    journal = Journal(world.state_dir / uuid / "journal", world.files)
    try:
        pending = journal.pending()
    except OSError as error:
        raise PendingError(
            f"{journal.path}: cannot be read: {error.strerror}",
            remedy="mend the cause, then run `imgtool recover`",
        ) from error
    if pending is None:
        return None
    if pending.plan.store != world.store.uri:
        return Waiting(plan=pending.plan, direction=None)
    try:
        head = world.store.head(uuid)
    except NotFoundError:
        head = None
    return Waiting(plan=pending.plan, direction=decide(pending, head))


def all_waiting(world: World) -> tuple[Waiting, ...]:
    """All open transactions in the state folder."""
    found = (waiting(world, uuid) for uuid in uuids(world.state_dir))
    return tuple(each for each in found if each is not None)


def recover(world: World, only: str | None = None) -> Recovery:
    """End every open transaction of this store, or the one of the domain with UUID `only`.

    Idempotent, safe to kill, safe at boot. What cannot be ended is reported, never raised, so
    that one domain's trouble does not keep the others from being mended.
    """
    ended: list[Ended] = []
    pending: list[Waiting] = []
    problems: list[ImgtoolError] = []
    for uuid in uuids(world.state_dir) if only is None else (only,):
        before = None
        try:
            before = waiting(world, uuid)
            if before is not None and before.direction is None:
                pending.append(before)
                continue
            done = _enter_and_conclude(world, uuid)
        except Interrupted:
            raise
        except ImgtoolError as error:
            problems.append(error)
            if before is not None:
                pending.append(before)
            continue
        if done is not None and before is not None:
            plan = before.plan
            ended.append(
                Ended(domain=plan.domain, txid=plan.txid, summary=plan.summary, direction=done)
            )
    if not uuids(world.state_dir):
        tidy(world.state_dir, "none", world.files)  # somebody died before making more than this
    return Recovery(
        ended=tuple(ended),
        pending=tuple(pending),
        problems=tuple(problems),
        jobs=_open_jobs(world, only),
    )


def _open_jobs(world: World, only: str | None) -> tuple[CopyJob, ...]:
    found: list[CopyJob] = []
    for uuid in uuids(world.state_dir) if only is None else (only,):
        with suppress(PendingError):  # it is among the problems
            found += jobs.open_jobs(world, uuid)
    return tuple(found)


def _enter_and_conclude(world: World, uuid: str) -> Direction | None:
    with (
        world.interrupt.deferred(lambda: None),
        entered(world.state_dir, uuid, world.files) as room,
    ):
        direction = conclude(room, world)
        if direction is None:
            _settle(world, uuid)
        jobs.settle(room, world, uuid)
        world.interrupt.outcome = "recovery has stopped early; run it again"
        return direction


def _settle(world: World, uuid: str) -> None:
    """What has no journal, such as `define`, may have died in an atomic write of the store's."""
    with suppress(NotFoundError):
        world.store.settle(world.store.head(uuid).domain.name)
