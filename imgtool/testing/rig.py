"""A domain with a model of it, and one way to ask imgtool for something: in trouble."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool import api
from imgtool.engine.recovery import Recovery
from imgtool.engine.world import World
from imgtool.model.errors import ImgtoolError, PendingError
from imgtool.testing.domains import MadeDomain
from imgtool.testing.dying import (
    DeadError,
    Doom,
    DyingFiles,
    DyingQemu,
    Meddling,
    close_descriptors,
)
from imgtool.testing.inspection import complaints
from imgtool.testing.learning import learned
from imgtool.testing.moments import Expected
from imgtool.testing.reading import GuestReader
from imgtool.testing.trouble import (
    GuestWrite,
    Kind,
    Meddler,
    Trouble,
    domain_now,
    guest_write,
    put_title,
)

NO_TROUBLE = Trouble(Kind.NONE, 0)
TIDYING = ("lock(", "unlock(", "remove_empty(")  # a failure there may leave what means nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """Something to ask imgtool for, and what the domain must be like when it is done."""

    name: str
    work: Callable[[World], object]
    change: Callable[[Expected], Expected] = lambda expected: expected
    pivots: bool | None = True  # it commits by the domain XML; None: if there is anything to do
    recovers: bool = True  # it ends first what a crash has left open
    refusal: type[ImgtoolError] | None = None  # it must be refused so, with nothing changed
    may_refuse: tuple[type[ImgtoolError], ...] = ()  # it may be refused so
    learns: bool = False  # it chooses where things are: see `learned`


class Rig:
    """A domain in a directory store, and what it must be like: the acts keep `expected` true.

    Subclass it and override `world` to hand imgtool other tools, broken ones for instance.
    """

    def __init__(self, made: MadeDomain, expected: Expected, scratch: Path) -> None:
        self.made = made
        self.expected = expected
        self.disturbed = False
        """A crash has been: until something recovers the domain, images may be in between."""
        self.events: Counter[str] = Counter()
        """What has happened so far, and how often."""
        self.unlearned = False
        """Where things are is to be found out, as soon as nothing is disturbed."""
        self._reader = GuestReader(scratch)
        self._transaction = domain_now(made).transaction

    @contextmanager
    def world(self, doom: Doom) -> Iterator[World]:
        """The store and the tools, one disk at a time so that effects come in a fixed order."""
        with api.open_world(self.made.uri, files=DyingFiles(doom), jobs=1) as world:
            yield replace(world, qemu=DyingQemu(doom))

    def perform(self, operation: Operation, trouble: Trouble = NO_TROUBLE) -> None:
        """Ask for it, in trouble. Raises AssertionError if it ends as it must not."""
        meddler = Meddler(self.made, self.expected.edits, self._transaction)
        doom = meddler.doom(trouble)
        ended = self._run(operation, doom)
        self._count(operation, trouble, doom, ended)
        now = domain_now(self.made).transaction
        try:
            self._judge(operation, ended, doom, moved=now != self._transaction)
            if isinstance(doom, Meddling):
                meddler.judge(ended, _refusals(operation), doom)
        except AssertionError as error:
            error.add_note(f"{operation.name} in trouble ({trouble}) ended with {ended!r}")
            error.add_note(f"its last effects: {[call[:80] for call in doom.trace[-5:]]}")
            raise error from ended
        self._follow(operation, meddler, done=ended is None or now != self._transaction)
        self._transaction = now
        if _struck(doom) and _tidying(doom) and not self.disturbed:
            self.perform(recovery())

    def write(self, write: GuestWrite) -> None:
        """What a guest does; QEMU may refuse it only while the image is in between."""
        refusal = guest_write(self.made, write)
        self.events[f"guest write{refusal and f': {refusal}'}"] += 1
        if not refusal:
            self._write(write)
        elif not self.disturbed or refusal == "lock":
            raise AssertionError(f"{write.target}: QEMU refuses to open it: {refusal}")

    def edit(self) -> None:
        """Somebody edits the domain XML."""
        self.events["edit"] += 1
        self.expected = replace(self.expected, edits=self.expected.edits + 1)
        put_title(self.made, self.expected.edits)

    def verify(self) -> None:
        """Raises AssertionError unless all is as expected. After a crash, the XML alone counts."""
        if self.disturbed:
            domain_now(self.made)
            return
        with api.open_world(self.made.uri) as world:
            if self.unlearned:
                self.expected = learned(self.expected, world, self.made.name, self._reader)
                self.unlearned = False
            found = complaints(self.expected, world, self.made.name, self._reader)
        assert not found, "\n  ".join(["the domain is not as it must be", *found])

    def _run(self, operation: Operation, doom: Doom) -> BaseException | None:
        try:
            with self.world(doom) as world:
                operation.work(world)
        except (ImgtoolError, DeadError) as error:
            return error
        finally:
            close_descriptors(self.made.folder)
        return None

    def _judge(
        self, operation: Operation, ended: BaseException | None, doom: Doom, *, moved: bool
    ) -> None:
        """How it may end, and whether the domain is disturbed then."""
        refused = isinstance(ended, _refusals(operation))
        if isinstance(ended, DeadError | PendingError):
            assert _struck(doom), "nothing was the matter, and yet something is pending"
            self.disturbed = True
            self.events[f"crash {'after' if moved else 'before'} the pivot"] += 1
        elif ended is None:
            assert operation.refusal is None, "was not refused"
            assert operation.pivots in (None, moved), "the id of the transaction is not in the XML"
            self.disturbed = self.disturbed and not operation.recovers
        else:
            assert refused or _struck(doom), "nothing was the matter, and yet it failed"
            assert not moved, "an error, and yet it is done"
            self.disturbed = self.disturbed and not refused

    def _follow(self, operation: Operation, meddler: Meddler, *, done: bool) -> None:
        if not meddler.edited_late:
            self.expected = replace(self.expected, edits=meddler.edits)
        for write in meddler.early:
            self._write(write)
        if done:
            self.expected = operation.change(self.expected)
            self.unlearned = self.unlearned or operation.learns
        if meddler.edited_late:
            self.expected = replace(self.expected, edits=meddler.edits)
        for write in meddler.late:
            self._write(write)

    def _write(self, write: GuestWrite) -> None:
        data = bytes([write.byte]) * write.length
        self.expected = self.expected.written(write.target, write.offset, data)

    def _count(
        self, operation: Operation, trouble: Trouble, doom: Doom, ended: BaseException | None
    ) -> None:
        self.events[f"{operation.name}: {type(ended).__name__ if ended else 'done'}"] += 1
        if _struck(doom):
            self.events[str(trouble.kind)] += 1


def recovery() -> Operation:
    """`imgtool recover`, which must leave nothing open."""
    return Operation(
        name="recover",
        work=lambda world: _require_nothing_pending(api.recover(world)),
        pivots=False,
    )


def _require_nothing_pending(recovered: Recovery) -> None:
    """Raises the problem there was, as the command line would end with it."""
    if recovered.problems:
        raise recovered.problems[0]
    assert not recovered.pending, f"of another store: {recovered.pending}"


def _tidying(doom: Doom) -> bool:
    """Removing an empty folder ends with a sync of the one above."""
    struck, before = doom.trace[doom.at - 1], doom.trace[max(0, doom.at - 2)]
    return struck.startswith(TIDYING) or before.startswith("remove_empty(")


def _refusals(operation: Operation) -> tuple[type[ImgtoolError], ...]:
    must = () if operation.refusal is None else (operation.refusal,)
    return (*must, *operation.may_refuse)


def _struck(doom: Doom) -> bool:
    return 0 < doom.at <= doom.calls
