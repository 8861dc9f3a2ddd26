"""Snapshots made by virsh are reverted and deleted by imgtool, and the other way round."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.model.image import Format
from imgtool.testing import KIB, read_pattern, write_pattern

from .machine import PASSWORD, Machine

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd")]

TARGETS = ("vda", "vdb", "vdc")
AT, LENGTH = 1024 * KIB, 4 * KIB


@pytest.mark.qemu
@pytest.mark.parametrize("maker", ["virsh", "imgtool"])
def test_an_external_snapshot_is_reverted_to_and_deleted(machine: Machine, maker: str) -> None:
    write(machine, 1)
    take(machine, maker, "s1", "--disk-only")
    write(machine, 2)
    take(machine, maker, "s2", "--disk-only")
    write(machine, 3)
    refused = machine.imgtool("snapshot-revert", "vm", "s1")
    assert refused.returncode == 2, refused.stderr
    assert "would be lost" in refused.stderr
    machine.done("snapshot-revert", "vm", "s1", "--keep-as", "three")
    assert shown(machine) == [1, 1, 1]
    assert machine.virsh("snapshot-current", "vm", "--name") == "s1"
    assert machine.virsh("snapshot-parent", "vm", "three") == "s2"
    write(machine, 4)
    machine.done("snapshot-revert", "vm", "three", "--keep-as", "four")
    assert shown(machine) == [3, 3, 3]
    assert f"passwd='{PASSWORD}'" in machine.xml()
    with machine.running():
        pass  # QEMU opens every chain
    for name in ("s2", "s1", "four", "three"):
        machine.done("snapshot-delete", "vm", name)
        assert shown(machine) == [3, 3, 3], name
    assert machine.virsh("snapshot-list", "vm", "--name") == ""
    assert sorted(machine.images.iterdir()) == sorted(layers(machine)), "nothing else is left"
    with machine.running():
        pass


@pytest.mark.parametrize("maker", ["virsh", "imgtool"])
@pytest.mark.parametrize("reverter", ["virsh", "imgtool"])
def test_an_internal_snapshot_goes_both_ways(machine: Machine, maker: str, reverter: str) -> None:
    detach(machine, "vdc")
    write(machine, 1, "vda", "vdb")
    take(machine, maker, "s1")
    write(machine, 2, "vda", "vdb")
    if reverter == "virsh":
        machine.virsh("snapshot-revert", "vm", "s1")
    else:
        assert machine.imgtool("snapshot-revert", "vm", "s1").returncode == 2
        machine.done("snapshot-revert", "vm", "s1", "--force")
    assert shown(machine, "vda", "vdb") == [1, 1]
    if reverter == "virsh":
        machine.virsh("snapshot-delete", "vm", "s1")
    else:
        machine.done("snapshot-delete", "vm", "s1")
    assert machine.virsh("snapshot-list", "vm", "--name") == ""
    for target in ("vda", "vdb"):
        assert (
            machine.json("chain", "vm", "--disk", target)["disks"][0]["chain"][0]["snapshots"] == []
        )


def test_children_take_the_place_of_a_deleted_parent(machine: Machine) -> None:
    for name in ("s1", "s2", "s3"):
        take(machine, "imgtool", name, "--disk-only", "--relative")
    machine.done("snapshot-delete", "vm", "s2")
    assert machine.virsh("snapshot-parent", "vm", "s3") == "s1"
    assert len(layers(machine)) == 3 * len(TARGETS)
    machine.done("snapshot-delete", "vm", "s1", "--children")
    assert machine.sources() == {target: str(machine.image(target)) for target in TARGETS}


def test_live_images_are_not_unlinked_where_libvirt_would(machine: Machine) -> None:
    """libvirt takes a snapshot that is neither current nor has children for one without overlay."""
    write(machine, 1)
    take(machine, "imgtool", "x", "--disk-only")
    take(machine, "imgtool", "y", "--disk-only")
    write(machine, 2)
    machine.virsh("snapshot-current", "vm", "x")
    machine.done("snapshot-delete", "vm", "y")
    assert shown(machine) == [2, 2, 2]
    machine.done("snapshot-revert", "vm", "x", "--keep")
    assert shown(machine) == [1, 1, 1]


def take(machine: Machine, maker: str, name: str, *options: str) -> None:
    words = ["snapshot-create-as", "vm", name, *options]
    if maker == "virsh":
        machine.virsh(*words)
    else:
        machine.done(*words)


def layers(machine: Machine) -> list[Path]:
    """Every image of every chain."""
    disks = machine.json("chain", "vm")["disks"]
    return [Path(layer["path"]) for disk in disks for layer in disk["chain"]]


def active(machine: Machine, target: str) -> tuple[Path, Format]:
    (chain,) = (disk["chain"] for disk in machine.json("chain", "vm", "--disk", target)["disks"])
    return Path(chain[-1]["path"]), Format(chain[-1]["format"])


def write(machine: Machine, byte: int, *targets: str) -> None:
    for target in targets or TARGETS:
        write_pattern(*active(machine, target), AT, LENGTH, byte)


def shown(machine: Machine, *targets: str) -> list[int]:
    found: list[int] = []
    for target in targets or TARGETS:
        data = set(read_pattern(*active(machine, target), AT, LENGTH))
        assert len(data) == 1, target
        found += data
    return found


def detach(machine: Machine, target: str) -> None:
    machine.virsh("detach-disk", "vm", target, "--config")
