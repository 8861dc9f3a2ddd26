"""Real failures of real storage: full, read-only, forbidden, broken, gone. Nothing changes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imgtool import api
from imgtool.host.files import Files
from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import ImgtoolError
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing import Outcome, capture, make_three_disks

from .command import NOBODY, assert_refused, imgtool, imgtool_as_nobody
from .conftest import CrashPoints
from .disks import MIB, Filling, empty, fill, read_only, small_disk
from .dying import DyingFiles, DyingQemu
from .scenario import KINDS, Scenario, digest, make_scenario
from .strace import changing_calls, run_into, spread

EXTERNAL, INTERNAL, NO = SnapshotMode.EXTERNAL, SnapshotMode.INTERNAL, SnapshotMode.NO


def make_second(kind: str, parent: Path) -> Scenario:
    """The same, of a domain that has a current snapshot already: there is more to put back."""
    folder = parent / "earlier"
    folder.mkdir()
    make_three_disks(folder)
    request = SnapshotRequest(name="s0", disks=(SnapshotDisk(name="vdc", mode=NO),))
    with api.open_world(f"dir:{folder}") as world:
        api.take_snapshot(world, "vm", request, api.SnapshotOptions())
    template = parent / "earlier-template"
    shutil.copytree(folder, template, symlinks=True)
    first = Scenario(
        kind=kind,
        folder=folder,
        template=template,
        before=(before := capture(f"dir:{folder}", "vm", [folder])),
        new=before,
    )
    with first.world() as world:
        first.take(world)
    scenario = replace(first, new=first.state())
    scenario.fresh()
    return scenario


def sentence(error: ImgtoolError) -> str:
    """What a user would read, having looked at its form."""
    assert error.exit_code == 1, repr(error)
    assert error.remedy, repr(error)
    assert "\n" not in error.message
    assert ": :" not in error.message, repr(error)
    return error.message


Make = Callable[[str, Path], Scenario]
FIRST_OR_SECOND = pytest.mark.parametrize(
    "make", [make_scenario, make_second], ids=["first", "second"]
)


@FIRST_OR_SECOND
@pytest.mark.parametrize("kind", KINDS)
def test_full_from_some_steps_on(
    kind: str, make: Make, place: Path, crash_points: CrashPoints
) -> None:
    _fill_at_every_step("tmpfs", make, kind, place, crash_points, step=9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disk", ["ext4", "xfs"])
def test_a_real_disk_is_full_from_some_steps_on(
    disk: str, kind: str, place: Path, crash_points: CrashPoints
) -> None:
    _fill_at_every_step(disk, make_second, kind, place, crash_points, step=13)


@FIRST_OR_SECOND
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("disk", ["tmpfs", "ext4", "xfs"])
@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_full_from_every_step_on(
    disk: str, kind: str, make: Make, place: Path, crash_points: CrashPoints
) -> None:
    _fill_at_every_step(disk, make, kind, place, crash_points, step=1)


def _fill_at_every_step(
    disk: str,
    make: Make,
    kind: str,
    place: Path,
    crash_points: CrashPoints,
    *,
    step: int,
) -> None:
    with small_disk(disk, place) as folder:
        scenario = make(kind, folder)
        counted = Filling(disk=folder)
        with scenario.world(DyingFiles(counted), DyingQemu(counted)) as world:
            scenario.take(world)
        seen = dict.fromkeys(Outcome, 0)
        pivot = 1 + next(i for i, name in enumerate(counted.trace) if _is_pivot(name))
        points = sorted({*range(1, counted.calls + 1, step), pivot, counted.calls})
        for at in points:
            empty(folder)
            scenario.fresh()
            seen[_run_into_full_disk(scenario, Filling(at=at, disk=folder))] += 1
    assert all(seen.values()), seen
    crash_points(f"{disk} full, {kind}, {make.__name__}", len(points))


def _is_pivot(call: str) -> bool:
    return call.startswith("write_atomically(") and "/vm.xml" in call.partition(",")[0]


def _run_into_full_disk(scenario: Scenario, doom: Filling) -> Outcome:
    ended: ImgtoolError | None = None
    try:
        with scenario.world(DyingFiles(doom), DyingQemu(doom)) as world:
            scenario.take(world)
    except ImgtoolError as error:
        ended = error
    about = f"full at call {doom.at}: {doom.trace[doom.at - 1]}; {ended!r}"
    try:
        outcome = scenario.outcome()  # without recovery, and while the disk is still full
    except AssertionError as error:
        raise AssertionError(about) from error
    assert (ended is None) is (outcome is Outcome.NEW), about
    if ended is not None:
        message = sentence(ended)
        assert "No space left" in message or "bytes are needed" in message, about
    return outcome


class Optimist(Files):
    """Believes that there is room for everything."""

    def free_bytes(self, folder: Path) -> int:
        return 1 << 60


@pytest.mark.parametrize(
    "stride", [2, pytest.param(1, marks=pytest.mark.long)], ids=["some", "all"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_so_many_bytes_are_left(
    kind: str, stride: int, place: Path, crash_points: CrashPoints
) -> None:
    """It runs out in the middle of qemu-img and of our own writes, not only between them."""
    with small_disk("tmpfs", place) as folder:
        scenario = make_second(kind, folder)
        amounts = [*range(0, 8 * 4096, 4096), *range(64 << 10, 3 * MIB, 256 << 10), 8 * MIB]
        seen = []
        for leave in amounts[::stride]:
            empty(folder)
            scenario.fresh()
            fill(folder, leave=leave)
            ended: ImgtoolError | None = None
            try:
                with scenario.world(Optimist()) as world:
                    scenario.take(world)
            except ImgtoolError as error:
                ended = error
            outcome = scenario.outcome()
            assert ended is None or "No space left" in sentence(ended)
            assert (ended is None) is (outcome is Outcome.NEW), f"{leave} left: {ended!r}"
            seen.append(outcome)
    assert seen == sorted(seen, reverse=True), "more room is never worse"
    assert set(seen) == set(Outcome)
    crash_points(f"bytes left, {kind}", len(seen))


@pytest.mark.parametrize("kind", KINDS)
def test_too_little_space_is_seen_before_anything_is_written(kind: str, place: Path) -> None:
    with small_disk("tmpfs", place) as folder:
        scenario = make_scenario(kind, folder)
        fill(folder, leave=16 << 10)
        done = imgtool(*scenario.arguments)
        assert_refused(done, 1, "vd", "bytes are needed")
        assert scenario.outcome() is Outcome.OLD


def make_apart(place: Path) -> Path:
    """Three disks, of which vdb has a folder of its own."""
    store = place / "store"
    (store / "b").mkdir(parents=True)
    made = make_three_disks(store)
    image = made.image("vdb")
    image.rename(store / "b" / image.name)
    made.xml.write_text(made.xml.read_text().replace(str(image), str(store / "b" / image.name)))
    return store


ASKED = {
    "external": ["--disk-only"],
    "internal": ["--diskspec", "vdc,snapshot=no"],
    "mixed": ["--diskspec", "vdc,snapshot=external"],
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_three_disks_is_read_only(kind: str, place: Path) -> None:
    store = make_apart(place)
    before = digest(store)
    with read_only(store / "b"):
        done = imgtool("-c", f"dir:{store}", "snapshot-create-as", "vm", "s1", *ASKED[kind])
    assert_refused(done, 1, "vdb", str(store / "b"), "Read-only file system")
    assert digest(store) == before


def test_the_store_is_read_only(place: Path) -> None:
    store = make_apart(place)
    before = digest(store)
    with read_only(store):
        done = imgtool("-c", f"dir:{store}", "snapshot-create-as", "vm", "s1")
    assert_refused(done, 1, ".imgtool", "Read-only file system")
    assert digest(store) == before


@pytest.mark.parametrize("kind", KINDS)
def test_one_of_three_disks_is_forbidden(kind: str, place: Path) -> None:
    store = make_apart(place)
    place.chmod(0o711)
    for path in (store, *store.iterdir()):
        if path.name != "b":
            os.chown(path, NOBODY, NOBODY)
    before = digest(store)
    words = ["-c", f"dir:{store}", "snapshot-create-as", "vm", "s1", *ASKED[kind]]
    assert_refused(imgtool_as_nobody(*words), 1, "vdb", str(store / "b"), "Permission denied")
    assert digest(store) == before
    (store / "b" / "vm-vdb.qcow2").chmod(0o600)
    done = imgtool_as_nobody(*words)
    assert_refused(done, 2, "vdb", "Permission denied")  # such a chain cannot be trusted


def test_the_store_is_forbidden(place: Path) -> None:
    store = make_apart(place)
    place.chmod(0o711)
    before = digest(store)
    done = imgtool_as_nobody("-c", f"dir:{store}", "snapshot-create-as", "vm", "s1")
    assert_refused(done, 1, ".imgtool", "Permission denied")
    assert digest(store) == before


@pytest.mark.strace
@pytest.mark.parametrize("fault", ["error=EDQUOT", "error=EIO", "error=EROFS"])
def test_calls_fail_with_a_sentence(fault: str, place: Path, crash_points: CrashPoints) -> None:
    scenario = make_scenario("mixed", place)
    points = changing_calls(scenario.arguments, scenario.folder, place / "log")
    chosen = list(spread([each for each in points if each.syscall in SPOKEN_OF], 8, 1))
    for point in chosen:
        scenario.fresh()
        done = run_into(point, fault, scenario.arguments)
        assert done.returncode in (0, 1, 4), (point, done.stderr)
        if done.returncode == 1:
            assert_refused(done, 1, str(scenario.folder))
            assert scenario.outcome() is Outcome.OLD, point
        elif done.returncode == 4:
            assert_refused(done, 4)
            scenario.recover()
        scenario.outcome()
    crash_points(f"one failing call, {fault}", len(chosen))


SPOKEN_OF = ("openat", "write", "pwrite64", "ftruncate", "linkat", "link", "rename", "mkdir")


class Vanishing(Files):
    """Between plan and stage, somebody removes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def free_bytes(self, folder: Path) -> int:
        if self.folder.is_dir():
            self.folder.rmdir()
        return super().free_bytes(folder)


def test_a_folder_vanishes(place: Path) -> None:
    store = make_apart(place)
    before = digest(store)
    out = place / "out"
    out.mkdir()
    disk = SnapshotDisk(name="vdb", mode=EXTERNAL, source=str(out / "new.qcow2"))
    request = SnapshotRequest(name="s1", disks=(disk,))
    with api.open_world(f"dir:{store}", files=Vanishing(out)) as world:
        with pytest.raises(ImgtoolError) as caught:
            api.take_snapshot(world, "vm", request, api.SnapshotOptions(disk_only=True))
    assert sentence(caught.value).startswith(f"vdb: {out}")
    assert digest(store) == before


@pytest.mark.parametrize(
    ("name", "file", "code"),
    [
        ("n" * 256, "", 2),
        ("s1", "{store}/" + "n" * 256, (1, 2)),
        ("s1", "{store}/" + "n/" * 3000, 2),
        ("n" * 250, "", 2),  # vm-vdb.nnn... is too long then
    ],
    ids=["name", "file", "path", "overlay"],
)
def test_a_name_is_too_long(name: str, file: str, code: int | tuple[int, ...], place: Path) -> None:
    store = make_apart(place)
    before = digest(store)
    spec = f"vdb,snapshot=external,file={file.format(store=store)}" if file else "vdb"
    done = imgtool(
        *("-c", f"dir:{store}", "snapshot-create-as", "vm", name, "--disk-only"),
        *("--diskspec", spec),
    )
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), done.stderr
    assert_refused(done, done.returncode)
    assert digest(store) == before
