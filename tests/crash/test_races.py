"""Somebody else does something at the same time: one of the two wins whole."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.model.errors import FailedError, ImgtoolError, RefusedError
from imgtool.model.image import Format
from imgtool.testing import Outcome, make_image, qemu_io, write_pattern

from .command import assert_refused, imgtool, start
from .conftest import CrashPoints
from .disks import small_disk
from .dying import DeadError, Doom, DyingFiles, DyingQemu
from .scenario import KINDS, NAME, Scenario, digest, make_scenario

# Moments: before the first call that begins so; "a then b": the first b after an a.
BEGUN = "append("  # the images are pinned
STAGING = "qemu-img "
BLOCKING = "open_image("
REDOING = "open_image( then copy_range("
PUBLISHING = "publish("
RECORDING = "write_atomically("


@dataclass(slots=True)
class Meddler(Doom):
    """Does something of its own just before the first call that begins with `moment`."""

    moment: str = ""
    act: Callable[[], object] = field(default=lambda: None)
    then_die: bool = False
    acted: bool = False

    def call(self, name: str, work: Callable[[], Any], error: Exception) -> Any:
        if self.dead:
            raise DeadError
        self.trace.append(name)
        waited_for, _, later = self.moment.partition(" then ")
        if not self.acted and later and name.startswith(waited_for):
            self.moment = later
        elif not self.acted and name.startswith(self.moment):
            self.acted = True
            self.act()
            if self.then_die:
                self.dead = True
                raise DeadError
        return work()


def run_with(scenario: Scenario, meddler: Meddler) -> ImgtoolError | None:
    """Take the snapshot while somebody meddles; returns how it ended."""
    try:
        with scenario.world(DyingFiles(meddler), DyingQemu(meddler)) as world:
            scenario.take(world)
    except ImgtoolError as error:
        return error
    finally:
        assert meddler.acted, "the moment never came"
    return None


def kill_at(scenario: Scenario, moment: str, after: Callable[[], object] = lambda: None) -> None:
    """The process is gone at this moment, and its locks with it."""
    opened = _descriptors()
    meddler = Meddler(moment=moment, then_die=True)
    with pytest.raises(DeadError):
        with scenario.world(DyingFiles(meddler), DyingQemu(meddler)) as world:
            scenario.take(world)
    for left in _descriptors() - opened:
        os.close(left)
    after()


def moments(kind: str) -> tuple[str, ...]:
    """From the first write, all images being pinned, to the last moment before the pivot."""
    own = {
        "external": (PUBLISHING,),
        "internal": (BLOCKING, REDOING),
        "mixed": (BLOCKING, REDOING, PUBLISHING),
    }
    return (BEGUN, STAGING, *own[kind], RECORDING)


CASES = [(kind, moment) for kind in KINDS for moment in moments(kind)]
AT_EVERY_MOMENT = pytest.mark.parametrize(
    ("kind", "moment"), CASES, ids=[f"{kind}-{moment.strip('( ')}" for kind, moment in CASES]
)


@AT_EVERY_MOMENT
def test_the_xml_is_edited(kind: str, moment: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    xml = scenario.folder / "vm.xml"
    old = xml.read_bytes()
    new = old.replace(b"a comment, which stays", b"somebody else's comment")
    error = run_with(scenario, Meddler(moment=moment, act=lambda: xml.write_bytes(new)))
    assert isinstance(error, RefusedError), repr(error)
    assert xml.read_bytes() == new
    xml.write_bytes(old)
    assert scenario.outcome() is Outcome.OLD


@AT_EVERY_MOMENT
def test_the_domain_is_removed(kind: str, moment: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    xml = scenario.folder / "vm.xml"
    old, mode = xml.read_bytes(), xml.stat().st_mode
    error = run_with(scenario, Meddler(moment=moment, act=xml.unlink))
    assert isinstance(error, ImgtoolError), repr(error)
    assert error.exit_code == 3, repr(error)
    assert not xml.exists()
    xml.write_bytes(old)
    xml.chmod(mode)
    assert scenario.outcome() is Outcome.OLD


@pytest.mark.parametrize("moment", [BEGUN, STAGING, PUBLISHING, RECORDING])
@pytest.mark.parametrize("how", ["touched", "replaced"])
def test_an_image_changes(how: str, moment: str, place: Path) -> None:
    scenario = make_scenario("external", place)
    image = scenario.folder / "vm-vdb.qcow2"
    theirs = place / "theirs"
    shutil.copy2(image, theirs)
    inode = theirs.stat().st_ino
    act = {"touched": lambda: os.utime(image), "replaced": lambda: _rename(theirs, image)}[how]
    error = run_with(scenario, Meddler(moment=moment, act=act))
    assert isinstance(error, RefusedError), repr(error)
    assert error.message.startswith("vdb: "), error
    assert how == "touched" or image.stat().st_ino == inode
    assert scenario.outcome() is Outcome.OLD


@pytest.mark.parametrize("moment", [BEGUN, STAGING, BLOCKING, REDOING, "truncate(", RECORDING])
def test_an_image_that_changes_in_place_is_replaced(moment: str, place: Path) -> None:
    """Not a byte of the other file is written, whatever our plan was."""
    scenario = make_scenario("internal", place)
    image, theirs = scenario.folder / "vm-vdb.qcow2", place / "theirs"
    shutil.copy2(image, theirs)
    inode = theirs.stat().st_ino
    error = run_with(scenario, Meddler(moment=moment, act=lambda: _rename(theirs, image)))
    assert isinstance(error, RefusedError), repr(error)
    assert error.message.startswith("vdb: "), error
    assert image.stat().st_ino == inode
    assert scenario.outcome() is Outcome.OLD


@pytest.mark.parametrize("moment", ["make_dirs(", STAGING, PUBLISHING])
def test_the_name_of_an_overlay_is_taken(moment: str, place: Path) -> None:
    scenario = make_scenario("external", place)
    overlay = scenario.folder / f"vm-vdb.{NAME}"
    error = run_with(
        scenario, Meddler(moment=moment, act=lambda: overlay.write_bytes(b"of somebody else"))
    )
    assert isinstance(error, FailedError) or (error and error.exit_code == 2), repr(error)
    assert "vdb" in error.message
    assert error.remedy
    assert overlay.read_bytes() == b"of somebody else"
    overlay.unlink()
    assert scenario.outcome() is Outcome.OLD


def test_a_published_overlay_is_replaced(place: Path) -> None:
    scenario = make_scenario("external", place)
    overlay, theirs = scenario.folder / f"vm-vdb.{NAME}", place / "theirs"
    theirs.write_bytes(b"of somebody else")
    error = run_with(scenario, Meddler(moment=RECORDING, act=lambda: _rename(theirs, overlay)))
    assert isinstance(error, RefusedError), repr(error)
    assert overlay.read_bytes() == b"of somebody else"
    overlay.unlink()
    assert scenario.outcome() is Outcome.OLD


@contextmanager
def machine(image: Path, fmt: Format = Format.QCOW2) -> Iterator[subprocess.Popen[str]]:
    """Stands for QEMU: takes its locks on an image, and holds them."""
    process = subprocess.Popen(
        ["stdbuf", "-oL", "qemu-io", "-f", fmt, "-c", "read 0 512", "-c", "sleep 600000", image],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("read 512/512"), line
        yield process
    finally:
        process.kill()
        process.communicate()


def start_refused(image: Path, fmt: Format = Format.QCOW2) -> str:
    """What QEMU says when it is not allowed to write an image."""
    with pytest.raises(AssertionError) as caught:
        qemu_io(image, fmt, "write 0 512")
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["vda", "vdb"])
def test_a_machine_runs_already(kind: str, target: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    with machine(scenario.folder / f"vm-{target}.qcow2"):
        done = imgtool(*scenario.arguments)
    assert_refused(done, 3, target, "in use")
    assert scenario.outcome() is Outcome.OLD


@pytest.mark.parametrize("kind", ["external", "mixed"])
def test_a_machine_runs_already_on_a_raw_disk(kind: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    with machine(scenario.folder / "vm-vdc.raw", Format.RAW):
        done = imgtool(*scenario.arguments)
    assert_refused(done, 3, "vdc", "in use")
    assert scenario.outcome() is Outcome.OLD


@AT_EVERY_MOMENT
def test_a_machine_is_started_meanwhile(kind: str, moment: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    images = [(scenario.folder / f"vm-vd{each}.qcow2", Format.QCOW2) for each in "ab"]
    if kind != "internal":
        images.append((scenario.folder / "vm-vdc.raw", Format.RAW))
    said: list[str] = []

    def begin() -> None:
        said.extend(start_refused(image, fmt) for image, fmt in images)

    assert run_with(scenario, Meddler(moment=moment, act=begin)) is None
    assert len(said) == len(images)
    for line in said:
        assert 'Failed to get "write" lock' in line or "Image is corrupt" in line, line
    assert scenario.outcome() is Outcome.NEW


@pytest.mark.parametrize("moment", [REDOING, RECORDING])
@pytest.mark.parametrize("kind", ["internal", "mixed"])
def test_blocked_until_recovery(kind: str, moment: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    kill_at(scenario, moment)
    for each in "ab":
        said = start_refused(scenario.folder / f"vm-vd{each}.qcow2")
        assert "Image is corrupt; cannot be opened read/write" in said
    done = imgtool("-c", f"dir:{scenario.folder}", "recover")
    assert done.returncode == 0, done.stderr
    assert scenario.outcome() is Outcome.OLD
    for each in "ab":
        with machine(scenario.folder / f"vm-vd{each}.qcow2"):
            pass


@pytest.mark.qemu
def test_a_real_qemu(place: Path) -> None:
    scenario = make_scenario("internal", place)
    image = scenario.folder / "vm-vda.qcow2"
    command = ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-display", "none"]
    command += ["-monitor", "stdio", "-drive", f"if=none,id=d,format=qcow2,file={image}"]

    def ended() -> str:
        return subprocess.run(
            command, input="quit\n", capture_output=True, text=True, timeout=60, check=False
        ).stderr

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert "QEMU" in running.stdout.readline()
        assert_refused(imgtool(*scenario.arguments), 3, "vda", "in use")
        running.communicate("quit\n")
    said: list[str] = []
    assert run_with(scenario, Meddler(moment=BEGUN, act=lambda: said.append(ended()))) is None
    assert 'Failed to get "write" lock' in said[0]
    scenario.fresh()
    kill_at(scenario, REDOING)
    assert "Image is corrupt; cannot be opened read/write" in ended()
    scenario.recover()
    assert ended() == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_snapshot_twice_at_once(kind: str, place: Path, crash_points: CrashPoints) -> None:
    scenario = make_scenario(kind, place)
    for _ in range(4):
        scenario.fresh()
        both = [start(*scenario.arguments) for _ in range(2)]
        said = [process.communicate(timeout=120)[1] for process in both]
        codes = sorted(process.returncode for process in both)
        assert codes in ([0, 2], [0, 3]), (codes, said)
        assert scenario.outcome() is Outcome.NEW
    crash_points(f"the same snapshot twice at once, {kind}", 4)


def test_two_snapshots_at_once(place: Path, crash_points: CrashPoints) -> None:
    scenario = make_scenario("external", place)
    uri = f"dir:{scenario.folder}"
    for _ in range(4):
        scenario.fresh()
        words = ("-c", uri, "snapshot-create-as", "vm")
        both = {name: start(*words, name, "--disk-only") for name in ("one", "two")}
        said = {name: process.communicate(timeout=120)[1] for name, process in both.items()}
        won = {name for name, process in both.items() if process.returncode == 0}
        assert won, said
        for name in set(both) - won:
            assert both[name].returncode == 3, said
        state = scenario.state()
        assert {record.name for record in state.records} == won
        assert [len(disk.layers) for disk in state.disks] == [1 + len(won)] * 3
        assert not list(scenario.folder.glob(".imgtool-*"))
        assert not list(scenario.folder.glob(".imgtool/*/lock"))
    crash_points("two snapshots at once", 4)


def make_twin(scenario: Scenario) -> None:
    """Another domain on the same active images."""
    xml = (scenario.folder / "vm.xml").read_text()
    uuid = xml.partition("<uuid>")[2].partition("</uuid>")[0]
    twin = xml.replace("<name>vm<", "<name>twin<").replace(uuid, f"{uuid[:-4]}0001")
    (scenario.folder / "twin.xml").write_text(twin)


@pytest.mark.parametrize("kind", ["internal", "mixed"])
@pytest.mark.parametrize("moment", [BEGUN, REDOING, RECORDING])
def test_two_domains_on_one_image(kind: str, moment: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    make_twin(scenario)
    words = ("-c", f"dir:{scenario.folder}", "snapshot-create-as", "twin", "s2")
    said: list[str] = []

    def take_another() -> None:
        done = imgtool(*words, "--diskspec", "vdc,snapshot=no")
        assert_refused(done, 3 if moment == BEGUN else done.returncode, "vd")
        assert done.returncode in (2, 3), done.stderr  # 2: it is blocked, which looks damaged
        said.append(done.stderr)

    assert run_with(scenario, Meddler(moment=moment, act=take_another)) is None
    assert said
    (scenario.folder / "twin.xml").unlink()
    assert scenario.outcome() is Outcome.NEW


def test_two_overlays_of_one_base_at_once(place: Path) -> None:
    """External snapshots only need that the base stays as it is: both may have it."""
    scenario = make_scenario("external", place)
    base = scenario.folder / "vm-vda.qcow2"
    folder = place / "other"
    folder.mkdir()
    for name in ("a", "b"):
        top = make_image(folder / f"{name}.qcow2", backing=base, backing_format=Format.QCOW2)
        write_pattern(top, Format.QCOW2, 0, 4096, 7)
        xml = (scenario.folder / "vm.xml").read_text()
        head, _, rest = xml.partition("    <disk")
        head = head.replace("<name>vm<", f"<name>{name}<")
        uuid = head.partition("<uuid>")[2].partition("</uuid>")[0]
        disk = "    <disk" + rest.partition("</disk>")[0].replace(str(base), str(top)) + "</disk>\n"
        text = head.replace(uuid, f"{uuid[:-1]}{name}") + disk + "  </devices>\n</domain>\n"
        (folder / f"{name}.xml").write_text(text)
    both = [
        start("-c", f"dir:{folder}", "snapshot-create-as", name, "s1", "--disk-only")
        for name in ("a", "b")
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(path.name for path in folder.iterdir()) == [
        *(".imgtool", "a.qcow2", "a.s1", "a.xml", "b.qcow2", "b.s1", "b.xml"),
    ]


def test_images_are_moved_away_while_pending(place: Path) -> None:
    scenario = make_scenario("internal", place)
    image, away = scenario.folder / "vm-vda.qcow2", place / "away"
    kill_at(scenario, RECORDING, lambda: image.rename(away))
    recover = ("-c", f"dir:{scenario.folder}", "recover")
    for _ in range(2):
        done = imgtool(*recover)
        assert done.returncode == 4, done.stderr
        assert "vda" in done.stderr
        assert str(image) in done.stderr
        assert "put it back" in done.stderr
    assert imgtool(*scenario.arguments).returncode == 4
    away.rename(image)
    assert imgtool(*recover).returncode == 0
    assert scenario.outcome() is Outcome.OLD


def _kill_past_the_pivot(scenario: Scenario) -> bytes:
    """The new XML is there, nothing is tidied up; returns the old XML."""
    old = (scenario.folder / "vm.xml").read_bytes()
    kill_at(scenario, "sync_file(" + repr(scenario.folder / "vm.xml"))
    assert (scenario.folder / "vm.xml").read_bytes() != old
    return old


def test_an_overlay_that_was_written_is_never_removed(place: Path) -> None:
    scenario = make_scenario("external", place)
    old = _kill_past_the_pivot(scenario)
    overlay = scenario.folder / f"vm-vda.{NAME}"
    write_pattern(overlay, Format.QCOW2, 0, 4096, 0x77)  # the machine was started
    (scenario.folder / "vm.xml").write_bytes(old)
    done = imgtool("-c", f"dir:{scenario.folder}", "recover")
    assert done.returncode == 0, done.stderr
    assert f"{overlay}: was written to meanwhile and is left where it is" in done.stderr
    qemu_io(overlay, Format.QCOW2, "read -P 0x77 0 4096")
    overlay.unlink()
    assert scenario.outcome() is Outcome.OLD


def test_an_overlay_that_is_open_is_not_removed(place: Path) -> None:
    scenario = make_scenario("external", place)
    old = _kill_past_the_pivot(scenario)
    overlay = scenario.folder / f"vm-vda.{NAME}"
    with machine(overlay):
        (scenario.folder / "vm.xml").write_bytes(old)
        done = imgtool("-c", f"dir:{scenario.folder}", "recover")
        assert done.returncode == 4, done.stderr
        assert f"{overlay} is in use" in done.stderr
        assert overlay.exists()
    assert imgtool("-c", f"dir:{scenario.folder}", "recover").returncode == 0
    assert scenario.outcome() is Outcome.OLD


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("new", [False, True], ids=["back", "forward"])
def test_the_domain_is_renamed_while_pending(kind: str, new: bool, place: Path) -> None:
    scenario = make_scenario(kind, place)
    if new:
        _kill_past_the_pivot(scenario)
    else:
        kill_at(scenario, RECORDING)
    xml, renamed = scenario.folder / "vm.xml", scenario.folder / "other.xml"
    text = xml.read_text()
    xml.write_text(text.replace("<name>vm<", "<name>other<"))
    xml.rename(renamed)
    done = imgtool("-c", f"dir:{scenario.folder}", "recover")
    assert done.returncode == 0, done.stderr
    renamed.rename(xml)
    xml.write_text(text)
    assert scenario.outcome() is (Outcome.NEW if new else Outcome.OLD)


@pytest.mark.parametrize("kind", KINDS)
def test_the_domain_is_undefined_while_pending(kind: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    kill_at(scenario, RECORDING)
    xml, away = scenario.folder / "vm.xml", place / "away.xml"
    xml.rename(away)
    done = imgtool("-c", f"dir:{scenario.folder}", "recover", "vm")
    assert done.returncode == 0, done.stderr
    away.rename(xml)
    assert scenario.outcome() is Outcome.OLD


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_on_another_file_system(kind: str, place: Path) -> None:
    scenario = make_scenario(kind, place)
    with small_disk("tmpfs", place) as disk:
        state = disk / "state"
        words = ["--state-dir", str(state), *scenario.arguments]
        for delay in (0.3, 0.5, 0.8):
            scenario.fresh()
            process = start(*words)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(delay * 0.1)
            process.kill()
            process.communicate()
            done = imgtool(*words)
            assert done.returncode in (0, 2), done.stderr
            assert scenario.outcome() is Outcome.NEW
            assert not state.exists()


def test_two_stores_share_a_state_folder(place: Path) -> None:
    scenario = make_scenario("internal", place)
    state = place / "state"
    other = place / "other"
    shutil.copytree(scenario.folder, other)
    opened = _descriptors()
    meddler = Meddler(moment=RECORDING, then_die=True)
    with pytest.raises(DeadError):
        with api.open_world(
            f"dir:{scenario.folder}", state_dir=state, files=DyingFiles(meddler), jobs=1
        ) as world:
            scenario.take(world)
    for left in _descriptors() - opened:
        os.close(left)
    uri, words = f"dir:{scenario.folder}", ("--state-dir", state, "-c", f"dir:{other}")
    before = digest(other)
    done = imgtool(*words, "snapshot-create-as", "vm", NAME, "--diskspec", "vdc,snapshot=no")
    assert_refused(done, 4, uri)
    assert f"imgtool -c {uri} recover" in done.stderr
    assert imgtool(*words, "recover").returncode == 4
    assert digest(other) == before
    done = imgtool("--state-dir", state, "-c", uri, "recover")
    assert done.returncode == 0, done.stderr
    assert scenario.outcome() is Outcome.OLD
    assert not state.exists()


def _rename(source: Path, target: Path) -> None:
    source.replace(target)


def _descriptors() -> set[int]:
    with os.scandir("/proc/self/fd") as entries:
        found = {int(entry.name) for entry in entries}
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}
