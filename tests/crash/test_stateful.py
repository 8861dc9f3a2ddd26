"""Random operations, crashes and meddling against a model; and proof that the machine sees bugs."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from imgtool import api
from imgtool.engine.redo import keep_blocked
from imgtool.engine.world import World
from imgtool.host.locks import PinnedImages
from imgtool.model.image import Format, Qcow2Features
from imgtool.model.plan import Pin
from imgtool.stores.directory import DirectoryStore
from imgtool.testing import KIB
from imgtool.testing.dying import Doom, DyingFiles, DyingQemu
from imgtool.testing.machine import SnapshotMachine
from imgtool.testing.rig import Rig
from imgtool.testing.strategies import ImageDraft
from imgtool.testing.trouble import Kind, Trouble

from .conftest import CrashPoints

STEPS = 25  # of one example, which makes a domain of its own
SHARES = 10  # of the long run, to be spread over processors
OPERATIONS = (
    *("revert", "delete", "forget", "recover", "commit", "inner commit", "pull", "flatten"),
    *("resize", "shrink", "rename bases", "rebase", "mirror", "mirror pivot", "mirror abort"),
)
UNRECORDED = "snapshots and their parents|snapshots that are gone"
COMMON = settings(
    stateful_step_count=STEPS,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],  # explaining takes hours
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


def run(steps: int, number: int | None = None) -> Counter[str]:
    """At least so many steps; returns what has happened.

    `number`: of a run that is always the same, so that only a change can make it fail. A soak has
    none, and finds what nobody has thought of.
    """
    events: Counter[str] = Counter()

    class Counted(SnapshotMachine):
        def teardown(self) -> None:
            events.update(self.rig.events)
            super().teardown()

    while events["steps"] < steps:  # hypothesis ends some examples early
        if number is not None:
            seed(1000 * number + events["steps"])(Counted)
        examples = -(-(steps - events["steps"]) // STEPS)
        run_state_machine_as_test(Counted, settings=settings(COMMON, max_examples=examples))
    return events


@pytest.mark.timeout(900)  # a failure is made smaller for five minutes
def test_every_disk_reads_as_the_model_says(crash_points: CrashPoints) -> None:
    events = run(300, SHARES)
    assert events["steps"] >= 300
    crash_points("state machine, steps", events["steps"])


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("share", range(SHARES))
def test_for_longer(share: int, machine_steps: int, crash_points: CrashPoints) -> None:
    soaking = machine_steps >= 5000 * SHARES
    events = run(-(-machine_steps // SHARES), None if soaking else share)
    assert events["steps"] * SHARES >= machine_steps
    wanted = {"guest write", "snapshot: done"}
    if soaking:  # else there may be too little of it in one share
        wanted |= {"die", "fail before", "fail after", "edit", "write"}
        wanted |= {"crash before the pivot", "crash after the pivot"}
        wanted |= {f"{name}: done" for name in OPERATIONS}
    assert wanted <= events.keys(), "a run that never gets there proves nothing"
    crash_points(f"state machine, share {share}, steps", events["steps"])


class NeverPublishes(DyingFiles):
    def publish(self, staged: Path, final: Path) -> None:
        """As if done."""


class SkipsAnExtent(DyingFiles):
    """Of each redo, the second piece is not written."""

    def __init__(self, doom: Doom) -> None:
        super().__init__(doom)
        self._pieces = itertools.count()

    def copy_range(self, *args: Any) -> None:
        if args[-1] is not keep_blocked or next(self._pieces) != 1:
            super().copy_range(*args)


class NeverUnlinks(DyingFiles):
    def unlink(self, path: Path) -> None:
        """As if done."""


class NeverUnblocks(DyingFiles):
    def write_at(self, descriptor: int, offset: int, data: bytes) -> None:
        if len(data) > 1 or data[0] & 2:
            super().write_at(descriptor, offset, data)


class NeverRecords(DirectoryStore):
    def record(self, domain: str, name: str, xml: bytes, *, current: bool) -> None:
        """As if done."""


class OverwritesEdits(DirectoryStore):
    def pivot(self, domain: str, *, expected: str, xml: bytes) -> None:
        super().pivot(domain, expected=self.head(domain).digest, xml=xml)


class PivotsEarly(DirectoryStore):
    """The XML names the new disks before the snapshot is recorded: only a crash shows it."""

    def __init__(self, path: Path, files: DyingFiles) -> None:
        super().__init__(path, files)
        self._late: list[Callable[[], None]] = []
        self._pivoted = False

    def record(self, domain: str, name: str, xml: bytes, *, current: bool) -> None:
        record = partial(super().record, domain, name, xml, current=current)
        if self._pivoted:
            record()
        else:
            self._late.append(record)

    def set_current(self, domain: str, name: str | None) -> None:
        if self._late:
            self._late.append(partial(super().set_current, domain, name))
        else:
            super().set_current(domain, name)

    def pivot(self, domain: str, *, expected: str, xml: bytes) -> None:
        super().pivot(domain, expected=expected, xml=xml)
        self._pivoted = True
        while self._late:
            self._late.pop(0)()


class NeverMerges(DyingQemu):
    def merge_down(self, *args: Any, **options: Any) -> None:
        """As if done."""


class PullsNothing(DyingQemu):
    def rebase(self, *args: Any, **_options: Any) -> None:
        """Only the name of the base changes."""
        super().rebase(*args, unsafe=True)


def rig_with(
    files: type[DyingFiles] = DyingFiles,
    store: type[DirectoryStore] = DirectoryStore,
    qemu: type[DyingQemu] = DyingQemu,
) -> type[Rig]:
    """A rig with a broken tool."""

    class Broken(Rig):
        @contextmanager
        def world(self, doom: Doom) -> Iterator[World]:
            tools = files(doom)
            with api.open_world(self.made.uri, files=tools, jobs=1) as world:
                broken = store(self.made.folder, tools)
                yield replace(world, store=broken, qemu=qemu(doom))

    return Broken


commit = partial(SnapshotMachine.commit_active, base=0, keep_overlay=False, delete=True)


@pytest.mark.parametrize(
    ("rig", "what"),
    [
        (rig_with(files=NeverPublishes), "is gone|replaced meanwhile"),
        (rig_with(files=SkipsAnExtent), "sectors differ|qemu-img check|internal snapshots"),
        (rig_with(files=NeverUnlinks), "stray file"),
        (rig_with(files=NeverUnblocks), "corrupt"),
        (rig_with(store=NeverRecords), f"{UNRECORDED}|has no snapshot"),
        (rig_with(store=OverwritesEdits), "title"),
        (rig_with(store=PivotsEarly), f"{UNRECORDED}|current snapshot"),
    ],
    ids=["publish", "extent", "unlink", "unblock", "record", "edit", "order"],
)
def test_it_sees_what_is_broken(rig: type[Rig], what: str) -> None:
    class Sabotaged(SnapshotMachine):
        rig_type = rig

    small = settings(
        COMMON,
        max_examples=60,
        phases=[Phase.generate],
        database=None,
        derandomize=True,
        report_multiple_bugs=False,
    )
    with pytest.raises(AssertionError, match=what):
        run_state_machine_as_test(Sabotaged, settings=small)


@pytest.mark.parametrize(
    ("rig", "act"),
    [
        (rig_with(qemu=NeverMerges), commit),
        (rig_with(qemu=PullsNothing), SnapshotMachine.flatten),
    ],
    ids=["merge", "pull"],
)
def test_it_sees_what_a_job_has_lost(rig: type[Rig], act: Callable[..., None]) -> None:
    machine = SnapshotMachine()
    machine.rig_type = rig
    features = Qcow2Features(cluster_size=512)  # else each layer has all of the data
    machine.make([ImageDraft(format=Format.QCOW2, size=128 * KIB, features=features, layers=3)])
    try:
        machine.all_is_as_expected()
        act(machine, disk=0, trouble=Trouble(Kind.NONE, 0))
        with pytest.raises(AssertionError, match="sectors differ"):
            machine.all_is_as_expected()
    finally:
        machine.teardown()


def test_it_sees_that_nobody_looks_at_locks_and_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    def pin(_images: PinnedImages, _pins: Callable[[], Iterator[Pin]]) -> None:
        """As if done."""

    monkeypatch.setattr(PinnedImages, "pin", pin)
    monkeypatch.setattr("imgtool.engine.transaction.check_unchanged", lambda *_a, **_k: None)
    monkeypatch.setattr("imgtool.engine.redo._identity", lambda _image, change: change.identity)
    machine = SnapshotMachine()
    machine.make([ImageDraft(format=Format.QCOW2, size=128 * KIB, features=Qcow2Features())])
    try:
        with pytest.raises(AssertionError, match=r"sectors differ|qemu-img check|stray"):
            write_at_every_effect(machine)
    finally:
        machine.teardown()


def write_at_every_effect(machine: SnapshotMachine) -> None:
    for effect in range(1, 60):
        machine.create_internal("s", Trouble(Kind.WRITE, effect))
        machine.all_is_as_expected()
