"""Stopped stays stopped: QEMU cannot have the images of a transaction, nor imgtool QEMU's."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.testing import differences

from .held import held, killed
from .machine import Machine
from .moments import EXTERNAL, INTERNAL, MIXED, blocked, half_written, published, surveyed

pytestmark = [pytest.mark.libvirtd, pytest.mark.qemu, pytest.mark.xdist_group("libvirtd")]

LOCKED = 'Failed to get "write" lock'
BLOCKED = "Image is corrupt"


@pytest.mark.strace
def test_it_does_not_start_while_an_overlay_is_being_published(
    machine: Machine, tmp_path: Path
) -> None:
    with held(machine.words(*EXTERNAL), published(machine, "vda"), tmp_path / "log") as command:
        assert LOCKED in machine.does_not_start()
        code, stderr = command.go_on()
    assert (code, stderr) == (0, "")
    with machine.running():
        assert machine.image("vdc").with_suffix(".s1") in machine.open_files()


@pytest.mark.strace
def test_it_does_not_start_while_images_change_in_place(machine: Machine, tmp_path: Path) -> None:
    with held(machine.words(*INTERNAL), blocked(machine), tmp_path / "log") as command:
        refused = machine.does_not_start()
        assert LOCKED in refused or BLOCKED in refused
        code, stderr = command.go_on()
    assert (code, stderr) == (0, "")
    with machine.running():
        assert machine.image("vda") in machine.open_files()


@pytest.mark.strace
def test_it_starts_neither_half_written_nor_before_recovery(
    machine: Machine, tmp_path: Path
) -> None:
    before = machine.captured()
    killed(machine.words(*MIXED), half_written(machine), tmp_path / "log")
    assert BLOCKED in machine.does_not_start()
    (waiting,) = machine.json("recover", "--list")["pending"]
    assert (waiting["domain"], waiting["direction"]) == ("vm", "back")
    (ended,) = machine.json("recover")["recovered"]
    assert (ended["domain"], ended["direction"]) == ("vm", "back")
    assert differences(before, machine.captured()) == []
    with machine.running():
        assert machine.image("vda") in machine.open_files()


@pytest.mark.strace
def test_the_next_command_recovers_first(machine: Machine, tmp_path: Path) -> None:
    killed(machine.words(*MIXED), half_written(machine), tmp_path / "log")
    ended = machine.imgtool(*MIXED)
    assert ended.returncode == 0, ended.stderr
    assert "snapshot s1 of vm was interrupted; it is undone now" in ended.stderr
    assert machine.virsh("snapshot-list", "vm", "--name") == "s1"
    now = machine.captured()
    assert [[tag.tag for tag in disk.top.tags] for disk in now.disks] == [["s1"], ["s1"], []]
    assert not machine.state_dir.exists()


@pytest.mark.strace
@pytest.mark.parametrize("words", [EXTERNAL, INTERNAL], ids=["external", "internal"])
def test_who_starts_it_between_survey_and_pivot_wins(
    machine: Machine, tmp_path: Path, words: tuple[str, ...]
) -> None:
    before = machine.captured()
    with held(machine.words(*words), surveyed(machine, "vda"), tmp_path / "log") as command:
        with machine.running():
            code, stderr = command.go_on()
    assert code == 3
    assert "is in use: a virtual machine or another program has it open" in stderr
    assert machine.sources()["vda"] == str(machine.image("vda"))
    assert differences(before, machine.captured()) == []


@pytest.mark.strace
def test_an_image_that_a_guest_has_used_meanwhile_is_refused(
    machine: Machine, tmp_path: Path
) -> None:
    """Started, written to and stopped again before imgtool could lock it."""
    with held(machine.words(*EXTERNAL), surveyed(machine, "vdb"), tmp_path / "log") as command:
        with machine.running():
            machine.guest_writes("vda", "write -P 9 0 64k")
        before = machine.captured()
        code, stderr = command.go_on()
    assert code == 3, stderr
    assert "was changed while the work was being planned" in stderr
    assert "state" not in {path.name for path in machine.folder.iterdir()}
    assert machine.captured().records == before.records == ()
    assert machine.sources()["vda"] == str(machine.image("vda"))
