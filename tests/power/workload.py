"""Snapshots of three disks on a disk whose power goes: what to do, and what is checked then."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from imgtool import api
from imgtool.engine.recovery import Recovery
from imgtool.host import qcow2
from imgtool.host.files import Files
from imgtool.model.domain import Disk, SnapshotMode
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing import (
    KIB,
    MIB,
    AfterSnapshot,
    Layer,
    MadeDomain,
    Memory,
    Outcome,
    State,
    assert_old_or_new,
    capture,
    make_domain,
    make_image,
    write_pattern,
)
from imgtool.testing.images import file_digest
from tests.crash.dying import DeadError, Doom, DyingFiles, Fate

EXTERNAL, INTERNAL, NO = SnapshotMode.EXTERNAL, SnapshotMode.INTERNAL, SnapshotMode.NO
# a raw image, as vdc is one, has no internal snapshots
KINDS: Mapping[str, Mapping[str, SnapshotMode]] = {
    "external": {"vda": EXTERNAL, "vdb": EXTERNAL, "vdc": EXTERNAL},
    "internal": {"vda": INTERNAL, "vdb": INTERNAL, "vdc": NO},
    "mixed": {"vda": INTERNAL, "vdb": EXTERNAL, "vdc": EXTERNAL},
}
BEFORE, NAME = "s0", "s1"
SMALL = 4 * MIB
New = State | Callable[[State], Sequence[str]]


class Snapshotting:
    """One kind of snapshot, as `prepare`, `act`, `check` and `check_done` of a power test.

    `files` are imgtool's while it takes the snapshot; the recovery after a cut has its own.
    `earlier`: the domain has a mixed snapshot already. `state`: the journal is kept in a folder
    beside the store instead of inside it.
    """

    def __init__(
        self, kind: str, *, files: Files | None = None, earlier: bool = False, state: bool = False
    ) -> None:
        self.modes = KINDS[kind]
        self.files = files or Files()
        self.earlier = earlier
        self.state = state
        self.promised = Outcome.NEW  # what `act` has said, or its recovery
        self.outcomes: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self._before: State | None = None
        self._memory = Memory()
        self._known: dict[str, Outcome | str] = {}  # by fingerprint: what the checker said

    @property
    def before(self) -> State:
        assert self._before is not None, "nothing is prepared"
        return self._before

    def prepare(self, root: Path) -> None:
        """Make the domain, and look at it."""
        (root / "all" / "vms").mkdir(parents=True)
        make_disks(root / "all" / "vms")
        if self.earlier:
            self.take(root, BEFORE, KINDS["mixed"], Files())
        self._before = self.look(root)

    def act(self, root: Path) -> None:
        """Take the snapshot."""
        self.take(root, NAME, self.modes, self.files)

    def check(self, root: Path) -> str | None:
        """Recover; what is wrong then, if anything: it must be old or new."""
        outcome = self._recovered(root)
        return None if isinstance(outcome, Outcome) else outcome

    def check_done(self, root: Path) -> str | None:
        """Recover; what was promised must be there to stay."""
        outcome = self._recovered(root)
        return None if outcome == self.promised else f"not {self.promised}, but {outcome}"

    def take(
        self,
        root: Path,
        name: str,
        modes: Mapping[str, SnapshotMode],
        files: Files,
        jobs: int = 0,
    ) -> None:
        disks = tuple(SnapshotDisk(name=target, mode=mode) for target, mode in modes.items())
        request = SnapshotRequest(name=name, disks=disks)
        options = api.SnapshotOptions(disk_only=INTERNAL not in modes.values())
        with api.open_world(
            uri(root), state_dir=self._state_dir(root), files=files, jobs=jobs
        ) as world:
            api.take_snapshot(world, "vm", request, options)

    def recover(self, root: Path, files: Files | None = None) -> Recovery:
        """As the next process would."""
        with api.open_world(uri(root), state_dir=self._state_dir(root), files=files) as world:
            recovery = api.recover(world)
        assert not recovery.pending, f"still pending: {recovery}"
        assert not recovery.problems, f"problems: {recovery}"
        return recovery

    def die(self, root: Path, doom: Doom) -> None:
        """Take the snapshot, one disk after the other, in a process that ends on the way."""
        with process(), suppress(DeadError):
            self.take(root, NAME, self.modes, DyingFiles(doom), jobs=1)

    def expected(self) -> New:
        """What is new, for `assert_old_or_new`."""
        overlays = {
            target: Path(self.before.disk(target).top.path).with_suffix(f".{NAME}")
            for target, mode in self.modes.items()
            if mode is EXTERNAL
        }
        return AfterSnapshot(
            before=self.before,
            name=NAME,
            overlays=overlays,
            internal=frozenset(t for t, mode in self.modes.items() if mode is INTERNAL),
        )

    def compared(self, now: State) -> Outcome:
        """Raises AssertionError for what is neither old nor new."""
        return assert_old_or_new(self.before, self.expected(), now)

    def spoilt(self, now: State) -> list[str]:
        """What a VM that is started before recovery would find wrong."""
        return _spoilt(self.before, now)

    def look(self, root: Path) -> State:
        """All that can be seen of the domain, and of every file."""
        return capture(uri(root), "vm", [root / "all"], memory=self._memory)

    def seems(self, root: Path) -> Outcome:
        """Which one it is by the one thing that decides: the id in the domain XML."""
        with api.open_world(uri(root)) as world:
            carried = world.store.head("vm").domain.transaction
        return Outcome.OLD if carried == self.before.transaction else Outcome.NEW

    def _recovered(self, root: Path) -> Outcome | str:
        problem = self._unblocked_is_whole(root)
        if problem:
            return f"before recovery: {problem}"
        self.recover(root)
        outcome = self._outcome(root)
        if self.recover(root).ended:
            return "a second recovery found something to do"
        if isinstance(outcome, Outcome):
            self.outcomes[outcome] += 1
        return outcome

    def _outcome(self, root: Path) -> Outcome | str:
        """What the checker says, which is asked once for each content of the disk."""
        key = _fingerprint(root / "all")
        if key not in self._known:
            try:
                self._known[key] = self.compared(self.look(root))
            except AssertionError as error:
                self._known[key] = str(error)
        return self._known[key]

    def _unblocked_is_whole(self, root: Path) -> str:
        """What a VM that is started before recovery would see: an image is blocked, or whole."""
        key = "images " + _fingerprint(root / "all" / "vms", hidden=False)
        if key not in self._known:
            self._known[key] = "; ".join(self.spoilt(self.look(root)))
        return self._known[key]

    def _state_dir(self, root: Path) -> Path | None:
        return root / "all" / "state" if self.state else None


class Killed(Snapshotting):
    """The process that takes the snapshot dies before its call number `at`; then recovery.

    `rebooted`: all is synced before the recovery, which is all that `act` does. Otherwise `act`
    is both, and recovery finds in the page cache what is not on the disk. `again`: the first
    recovery dies before that call of its own, and another follows.
    """

    def __init__(self, kind: str, *, at: int, rebooted: bool, again: int = 0) -> None:
        super().__init__(kind)
        self.doom = Doom(fate=Fate.DIE, at=at)
        self.rebooted = rebooted
        self.again = again

    def prepare(self, root: Path) -> None:
        super().prepare(root)
        if self.rebooted:
            self._die(root)

    def act(self, root: Path) -> None:
        if not self.rebooted:
            self._die(root)
        if self.again:
            doom = Doom(fate=Fate.DIE, at=self.again)
            with process(), suppress(DeadError):
                self.recover(root, DyingFiles(doom))
        self.recover(root)

    def _die(self, root: Path) -> None:
        self.die(root, self.doom)
        self.promised = self.seems(root)


class UnsyncedFiles(Files):
    """Promises all, and waits for nothing."""

    def sync_file(self, path: Path) -> None: ...

    def sync_dir(self, path: Path) -> None: ...

    def sync(self, descriptor: int) -> None: ...


def make_disks(folder: Path) -> MadeDomain:
    """Two qcow2 images, the second on a base, and a raw one; each with data of a guest."""
    paths = {"vda": folder / "a.qcow2", "vdb": folder / "b.qcow2", "vdc": folder / "c.raw"}
    base = make_image(folder / "base.qcow2", size=SMALL)
    write_pattern(base, Format.QCOW2, 2 * MIB, 96 * KIB, 0xBB)
    make_image(paths["vda"], size=SMALL)
    make_image(paths["vdb"], size=SMALL, backing="base.qcow2", backing_format=Format.QCOW2)
    make_image(paths["vdc"], Format.RAW, SMALL)
    disks = []
    for number, (target, path) in enumerate(paths.items(), start=1):
        fmt = Format.RAW if path.suffix == ".raw" else Format.QCOW2
        write_pattern(path, fmt, 0, 256 * KIB, number)
        write_pattern(path, fmt, 3 * MIB + 512, 3 * KIB, 0x10 + number)
        path.chmod(0o660)
        disks.append(Disk(target=target, source=path, format=fmt, format_name=fmt))
    return make_domain(folder, "vm", disks)


def uri(root: Path) -> str:
    """The store of a power test."""
    return f"dir:{root / 'all' / 'vms'}"


def _spoilt(before: State, now: State) -> list[str]:
    """Images that QEMU would open and that are not as they should be."""
    found = []
    for disk in now.disks:
        if any(is_blocked(layer) for layer in disk.layers):
            continue  # QEMU refuses it
        for layer in disk.layers:
            if layer.error or layer.check:
                found.append(f"{layer.path}: {layer.error or layer.check}")
        if disk.top.guest != before.disk(disk.target).top.guest:
            found.append(f"{disk.target}: the guest would read something else")
    return found


def is_blocked(layer: Layer) -> bool:
    """By its header alone: the rest of it may not make sense."""
    if layer.format != Format.QCOW2:
        return False
    with Path(layer.path).open("rb") as image:
        return qcow2.is_corrupt(image.fileno())


def _fingerprint(folder: Path, *, hidden: bool = True) -> str:
    """sha256 of the names, owners, modes, attributes and bytes below a folder, and its own."""
    total = hashlib.sha256()
    for path in (folder, *sorted(folder.rglob("*"))):
        name = path.relative_to(folder.parent)
        if not hidden and any(part.startswith(".") for part in name.parts):
            continue
        facts = path.lstat()
        attributes = [(each, os.getxattr(path, each)) for each in sorted(os.listxattr(path))]
        total.update(repr((name, facts.st_mode, facts.st_uid, facts.st_gid, attributes)).encode())
        if path.is_file():
            total.update(file_digest(path).encode())
    return total.hexdigest()


@contextmanager
def process() -> Iterator[None]:
    """What is opened inside and left open is closed at the end, as the end of a process would."""
    opened = _descriptors()
    try:
        yield
    finally:
        for left in _descriptors() - opened:
            os.close(left)


def _descriptors() -> set[int]:
    with os.scandir("/proc/self/fd") as entries:
        found = {int(entry.name) for entry in entries}
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}
