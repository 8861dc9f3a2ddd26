"""A snapshot in libvirt to be killed again and again, from the same beginning."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from imgtool.stores.base import DomainStore
from imgtool.stores.open import open_store
from imgtool.testing import Outcome, State, assert_old_or_new, capture, differences
from tests.crash.scenario import digest

from .command import start
from .machine import Machine, defined
from .moments import EXTERNAL, INTERNAL, MIXED

KINDS = {"external": EXTERNAL, "internal": INTERNAL, "mixed": MIXED}
FIRST = "s0"  # a snapshot that is there before


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Snapshots of three disks of a domain that has one snapshot already, which is current."""

    machine: Machine
    store: DomainStore
    template: Path  # a copy of the images as they were before
    xml: bytes
    record: bytes  # of FIRST
    before: State
    new: dict[str, State] = field(default_factory=dict)  # after an undisturbed run, by kind
    seconds: dict[str, float] = field(default_factory=dict)  # that it took, from its first trace

    def words(self, kind: str) -> list[str]:
        return self.machine.words(*KINDS[kind])

    def learn(self, kind: str) -> None:
        """Find out what an undisturbed run makes of it, and how long that takes."""
        with start(*self.words(kind)) as process:
            self.wait(process, self.begun)
            begun = time.monotonic()
            assert process.wait() == 0
            self.seconds[kind] = time.monotonic() - begun
        self.new[kind] = self._state()
        self.fresh()
        assert differences(self.before, self._state()) == []

    def fresh(self) -> None:
        """Put everything back as it was before."""
        for name in self.machine.virsh("snapshot-list", "vm", "--name").split():
            if name != FIRST:
                self.store.forget("vm", name)
        if self.store.snapshots("vm") != (self.record,) or self.store.current("vm") != FIRST:
            self.store.record("vm", FIRST, self.record, current=True)
        if self.store.head("vm").xml != self.xml:
            self.store.define(self.xml)
        shutil.rmtree(self.machine.folder)
        shutil.copytree(self.template, self.machine.folder, symlinks=True)

    def begun(self) -> bool:
        """Whether it has got as far as the domain's lock: before that there is nothing to kill."""
        return self.machine.state_dir.exists()

    def pivoted(self) -> bool:
        return self.store.head("vm").xml != self.xml

    def wait(self, process: subprocess.Popen[bytes], until: Callable[[], bool]) -> None:
        """Until that is so, or the process has ended."""
        while process.poll() is None and not until():
            time.sleep(0.002)

    def outcome(self, kind: str) -> Outcome:
        """Old or new, or AssertionError."""
        if self._untouched():
            return Outcome.OLD  # to the last byte; `capture` would only say so more slowly
        return assert_old_or_new(self.before, self.new[kind], self._state())

    def _untouched(self) -> bool:
        return (
            digest(self.machine.folder) == digest(self.template)
            and self.store.head("vm").xml == self.xml
            and self.store.snapshots("vm") == (self.record,)
            and self.store.current("vm") == FIRST
        )

    def _state(self) -> State:
        return capture(self.store, "vm", [self.machine.folder])


@contextmanager
def made(uri: str, place: Path) -> Iterator[Scenario]:
    """The domain, in libvirt and below `place`."""
    folder, template = place / "machine", place / "template"
    folder.mkdir()
    with defined(uri, folder) as machine:
        store = open_store(uri)
        try:
            machine.done("snapshot-create-as", "vm", FIRST, "--diskspec", "vdc,snapshot=no")
            shutil.copytree(folder, template, symlinks=True)
            (record,) = store.snapshots("vm")
            scenario = Scenario(
                machine=machine,
                store=store,
                template=template,
                xml=store.head("vm").xml,
                record=record,
                before=capture(store, "vm", [folder]),
            )
            for kind in KINDS:
                scenario.learn(kind)
            yield scenario
        finally:
            store.close()
