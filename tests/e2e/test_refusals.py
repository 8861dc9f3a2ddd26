"""What imgtool refuses with exit code 3, and that its remedy works; domains edited meanwhile."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imgtool.testing import differences

from .command import assert_refused
from .held import Moment, held, killed
from .machine import Machine
from .moments import EXTERNAL, INTERNAL, MADE_CURRENT, MIXED, PIVOTED, published

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd")]


def refused(machine: Machine, *words: str) -> list[str]:
    """Run it; returns the words of the (first) virsh command in its remedy."""
    before = machine.xml()
    ended = machine.imgtool(*words)
    assert_refused(ended, 3, "vm")
    assert machine.xml() == before
    assert not machine.state_dir.exists()
    commands = re.findall(r"virsh (.+?)(?=,|;| first| and |$)", ended.stderr, re.MULTILINE)
    assert commands, ended.stderr
    return str(commands[0]).split()


@pytest.mark.qemu
def test_a_domain_that_runs_is_paused_or_saved(machine: Machine) -> None:
    machine.virsh("start", "vm")
    refused(machine, *INTERNAL)
    machine.virsh(*refused(machine, *EXTERNAL))  # virsh takes the external one
    (theirs,) = machine.json("snapshot-list", "vm")["snapshots"]
    assert theirs["location"] == "external"
    machine.virsh("suspend", "vm")
    refused(machine, *EXTERNAL)
    machine.virsh("managedsave", "vm")
    machine.virsh(*refused(machine, *EXTERNAL))
    machine.done(*EXTERNAL)
    assert machine.virsh("snapshot-parent", "vm", "s1") == theirs["name"]


@pytest.mark.qemu
def test_a_domain_without_a_definition(machine: Machine, tmp_path: Path) -> None:
    machine.virsh("start", "vm")
    machine.virsh("undefine", "vm")
    remedy = refused(machine, *EXTERNAL)
    assert remedy[:2] == ["dumpxml", "vm"]
    file = tmp_path / "FILE"
    file.write_text(machine.virsh("dumpxml", "vm"))
    machine.virsh("define", file)
    machine.virsh("destroy", "vm")
    machine.done(*EXTERNAL)


@pytest.mark.strace
def test_a_domain_that_is_edited_meanwhile(machine: Machine, tmp_path: Path) -> None:
    before = machine.captured()
    edited = tmp_path / "edited.xml"
    description = "<description>somebody was here</description>\n  <memory "
    edited.write_text(machine.xml().replace("<memory ", description, 1))
    with held(machine.words(*MIXED), MADE_CURRENT, tmp_path / "log") as command:
        machine.virsh("define", edited)
        code, stderr = command.go_on()
    assert code == 3, stderr
    assert "was changed by somebody else" in stderr
    now = machine.captured()
    assert all(line.startswith("xml:") for line in differences(before, now))
    assert "somebody was here" in now.xml
    assert "imgtool" not in now.xml
    machine.done(*MIXED)


@pytest.mark.strace
@pytest.mark.parametrize(
    ("moment", "direction"),
    [(MADE_CURRENT, "back"), (PIVOTED, "forward")],
    ids=["recorded", "pivoted"],
)
def test_a_domain_that_is_renamed_before_recovery(
    machine: Machine, tmp_path: Path, moment: Moment, direction: str
) -> None:
    before = machine.captured()
    killed(machine.words(*MIXED), moment, tmp_path / "log")
    machine.virsh("domrename", "vm", "other")
    (ended,) = machine.json("recover", "other")["recovered"]
    assert ended["direction"] == direction
    assert not machine.state_dir.exists()
    recorded = machine.virsh("snapshot-list", "other", "--name").split()
    assert recorded == (["s1"] if direction == "forward" else [])
    machine.virsh("domrename", "other", "vm")
    if direction == "back":
        assert differences(before, machine.captured()) == []
    else:
        assert machine.sources()["vdc"] == str(machine.image("vdc").with_suffix(".s1"))


@pytest.mark.strace
def test_a_domain_that_is_undefined_before_recovery(machine: Machine, tmp_path: Path) -> None:
    xml = tmp_path / "vm.xml"
    xml.write_text(machine.xml())
    before = machine.captured()
    killed(machine.words(*MIXED), published(machine, "vdc"), tmp_path / "log")
    machine.virsh("undefine", "vm")
    (ended,) = machine.json("recover")["recovered"]
    assert ended["direction"] == "back"
    machine.virsh("define", xml)
    assert differences(before, machine.captured()) == []


@pytest.mark.strace
def test_two_at_the_same_time(machine: Machine, tmp_path: Path) -> None:
    with held(machine.words(*MIXED), published(machine, "vdc"), tmp_path / "log") as command:
        second = machine.imgtool(*MIXED)
        assert_refused(second, 3, "another imgtool is working on this domain")
        assert command.go_on() == (0, "")
    assert machine.virsh("snapshot-list", "vm", "--name") == "s1"
