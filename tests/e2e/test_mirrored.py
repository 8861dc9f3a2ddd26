"""Mirrored snapshots in a real libvirt, which knows no mirrors and keeps them all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.model.image import Format
from imgtool.testing import KIB, read_pattern

from .command import assert_refused
from .machine import Machine

pytestmark = [
    pytest.mark.libvirtd,
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.xdist_group("libvirtd"),
]

TARGETS = ("vda", "vdc")  # qcow2 and raw


def test_a_mirrored_snapshot_from_its_beginning_to_its_pivot(
    machine: Machine, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    there.mkdir()
    specs = ["--diskspec", "vdb,snapshot=no"]
    for target in TARGETS:
        file, mirror = machine.images / f"{target}.migrate", there / f"{target}.new"
        specs += ["--diskspec", f"{target},file={file},mirror={mirror}"]
    machine.done("snapshot-create-as", "vm", "s1", "--disk-only", *specs)
    shown = machine.done("snapshot-dumpxml", "vm", "s1")
    assert [f"<mirror file='{there / target}.new'/>" in shown for target in TARGETS] == [True] * 2
    assert "<mirror" not in machine.virsh("snapshot-dumpxml", "vm", "s1")
    assert machine.virsh("snapshot-current", "vm", "--name") == "s1"
    assert "imgtool:mirror" not in machine.xml()
    assert_refused(machine.imgtool("snapshot-delete", "vm", "s1"), 3, "vda, vdc")

    with machine.running():
        for number, target in enumerate(TARGETS):
            machine.guest_writes(target, f"write -q -P {0x61 + number} 64k 64k")
        refused = machine.imgtool("snapshot-delete", "vm", "s1", "--mirror-pivot")
        assert_refused(refused, 3, "running")
    machine.done("chain-copy", "vm", *("--disk", "vda"), *("--disk", "vdc"), "--to", there)
    machine.done("snapshot-delete", "vm", "s1", "--mirror-pivot")
    assert machine.virsh("snapshot-list", "vm", "--name") == ""
    assert {target: machine.sources()[target] for target in TARGETS} == {
        target: str(there / f"{target}.new") for target in TARGETS
    }
    with machine.running():
        names = {f"{target}.new" for target in TARGETS}
        names |= {machine.image(target).name for target in TARGETS}
        assert {path.name for path in machine.open_files() if path.parent == there} == names
    for number, target in enumerate(TARGETS):
        found = read_pattern(there / f"{target}.new", Format.QCOW2, 64 * KIB, KIB)
        assert found == bytes([0x61 + number]) * KIB
    assert not machine.state_dir.exists()


def test_a_mirrored_snapshot_that_is_given_up(machine: Machine, tmp_path: Path) -> None:
    mirror = tmp_path / "new"
    file = machine.images / "vda.migrate"
    others = ["--diskspec", "vdb,snapshot=no", "--diskspec", "vdc,snapshot=no"]
    spec = ["--diskspec", f"vda,file={file},mirror={mirror}", *others]
    machine.done("snapshot-create-as", "vm", "s1", "--disk-only", *spec)
    machine.done("snapshot-delete", "vm", "s1", "--mirror-abort")
    assert not mirror.exists()
    assert machine.sources()["vda"] == str(file)
    assert machine.virsh("snapshot-list", "vm", "--name") == ""
    with machine.running():
        assert {file, machine.image("vda")} <= machine.open_files()
