"""Disks of type='volume', found through a storage pool of libvirt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.testing import differences

from .command import assert_refused
from .machine import Machine

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd")]


@pytest.fixture
def pooled(machine: Machine, tmp_path: Path) -> Iterator[Machine]:
    """The machine, with all its disks as volumes of a directory pool, which is active."""
    xml = machine.xml().replace("<disk type='file'", "<disk type='volume'")
    for target in ("vda", "vdb", "vdc"):
        image = machine.image(target)
        xml = xml.replace(f"file='{image}'", f"pool='images' volume='{image.name}'")
    file = tmp_path / "pooled.xml"
    file.write_text(xml)
    machine.virsh("define", file)
    machine.virsh("pool-define-as", "images", "dir", "--target", machine.images)
    machine.virsh("pool-start", "images")
    yield machine
    if "images" in machine.virsh("pool-list", "--name").split():
        machine.virsh("pool-destroy", "images")
    machine.virsh("pool-undefine", "images")


def specs(machine: Machine) -> list[str]:
    words = ["--disk-only"]
    for target in ("vda", "vdb", "vdc"):
        words += ["--diskspec", f"{target},file={machine.images}/{target}.s1"]
    return words


@pytest.mark.qemu
def test_an_external_snapshot(pooled: Machine) -> None:
    generated = pooled.imgtool("snapshot-create-as", "vm", "s1", "--disk-only")
    assert_refused(generated, 2, "vda: the source is not a regular file")
    pooled.done("snapshot-create-as", "vm", "s1", *specs(pooled))
    overlays = {target: f"{pooled.images}/{target}.s1" for target in ("vda", "vdb", "vdc")}
    assert pooled.sources() == overlays
    assert "type='volume'" not in pooled.xml()
    record = pooled.virsh("snapshot-dumpxml", "vm", "s1")
    assert "<source pool='images' volume='vm-vda.qcow2'/>" in record
    with pooled.running():
        bases = {pooled.image(target) for target in overlays}
        assert pooled.open_files() == bases | set(map(Path, overlays.values()))
    pooled.done("snapshot-create-as", "vm", "s2", "--diskspec", "vdc,snapshot=external")
    assert pooled.virsh("snapshot-parent", "vm", "s2") == "s1"


@pytest.mark.qemu
def test_an_internal_snapshot(pooled: Machine) -> None:
    pooled.done("snapshot-create-as", "vm", "s1", "--diskspec", "vdc,snapshot=no")
    assert pooled.xml().count("<disk type='volume'") == 3
    for target in ("vda", "vdb"):
        shown = pooled.json("chain", "vm", "--disk", target)["disks"][0]["chain"]
        assert [each["snapshots"] for each in shown] != [[]]
    with pooled.running():
        assert pooled.image("vdc") in pooled.open_files()


@pytest.mark.parametrize("kind", ["external", "internal"])
def test_a_pool_that_is_not_active(pooled: Machine, kind: str) -> None:
    pooled.virsh("pool-destroy", "images")
    before = pooled.captured()
    words = specs(pooled) if kind == "external" else ["--diskspec", "vdc,snapshot=no"]
    ended = pooled.imgtool("snapshot-create-as", "vm", "s1", *words)
    assert_refused(ended, 1, "storage pool images is not active")
    assert differences(before, pooled.captured()) == []
    assert "remedy: virsh pool-start images" in ended.stderr
    pooled.virsh("pool-start", "images")
    pooled.done("snapshot-create-as", "vm", "s1", *words)


@pytest.mark.qemu
def test_a_move(pooled: Machine) -> None:
    new = pooled.folder / "new"
    new.mkdir()
    pooled.done("snapshot-create-as", "vm", "s1", "--diskspec", "vdc,snapshot=no")
    pooled.done("migrate", "vm", "--to", new, "--delete-source")
    moved = {target: str(new / pooled.image(target).name) for target in ("vda", "vdb", "vdc")}
    assert pooled.sources() == moved
    assert "volume" not in pooled.virsh("snapshot-dumpxml", "vm", "s1")
    assert list(pooled.images.iterdir()) == []
    with pooled.running():
        assert pooled.open_files() == set(map(Path, moved.values()))
