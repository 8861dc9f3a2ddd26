"""A domain of a real libvirtd moves, and virsh finds its snapshots in the new place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from imgtool import api
from imgtool.model.errors import StoreError
from imgtool.model.image import Format
from imgtool.stores.base import DomainStore
from imgtool.testing import KIB, differences, read_pattern, write_pattern
from imgtool.xml.domain import parse_domain

from .machine import PASSWORD, Machine

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd")]

TARGETS = ("vda", "vdb", "vdc")
AT, LENGTH = 1024 * KIB, 4 * KIB


@pytest.mark.qemu
@pytest.mark.parametrize(
    "delete", [pytest.param(False, marks=pytest.mark.long), True], ids=["kept", "deleted"]
)
def test_snapshots_go_along(machine: Machine, delete: bool) -> None:
    write(machine, 1)
    machine.virsh("snapshot-create-as", "vm", "s1", "--disk-only")
    write(machine, 2)
    machine.done("snapshot-create-as", "vm", "s2", "--diskspec", "vdc,snapshot=external")
    write(machine, 3)
    old = set(machine.images.iterdir())
    new = machine.folder / "new"
    new.mkdir()
    words = ["--delete-source"] if delete else []
    done = machine.json("migrate", "vm", "--to", new, *words)
    assert {Path(path) for path in machine.sources().values()} <= set(new.iterdir())
    assert {path.name for path in new.iterdir()} == {path.name for path in old}
    assert set(machine.images.iterdir()) == (set() if delete else old)
    assert set(done["snapshots"]) == {"s1", "s2"}
    assert machine.virsh("snapshot-current", "vm", "--name") == "s2"
    assert machine.virsh("snapshot-parent", "vm", "s2") == "s1"
    for name in ("s1", "s2"):
        xml = machine.virsh("snapshot-dumpxml", "vm", name, "--security-info")
        assert f"{new}/" in xml
        assert f"{machine.images}/" not in xml
        assert f"passwd='{PASSWORD}'" in xml
        embedded = xml[xml.index("<domain ") : xml.index("</domain>") + len("</domain>")]
        assert {disk.target for disk in parse_domain(embedded.encode()).disks} == set(TARGETS)
    assert shown(machine) == [3, 3, 3]
    assert f"passwd='{PASSWORD}'" in machine.xml()
    with machine.running():
        pass  # QEMU opens every chain
    machine.done("snapshot-revert", "vm", "s1", "--keep-as", "three")
    assert shown(machine) == [1, 1, 1]
    machine.done("snapshot-revert", "vm", "three", "--force")
    assert shown(machine) == [3, 3, 3]
    for name in ("s1", "s2", "three"):
        machine.done("snapshot-delete", "vm", name)
    assert shown(machine) == [3, 3, 3]
    assert machine.virsh("snapshot-list", "vm", "--name") == ""
    assert {Path(path).parent for path in machine.sources().values()} == {new}


@pytest.mark.qemu
def test_a_snapshot_of_a_running_domain_goes_along(machine: Machine) -> None:
    """It holds two domains, the one that ran and the one that was to be started next."""
    machine.virsh("detach-disk", "vm", "vdc", "--config")
    with machine.running():
        machine.virsh("snapshot-create-as", "vm", "live")
    new = machine.folder / "new"
    new.mkdir()
    machine.done("migrate", "vm", "--to", new, "--delete-source")
    assert not machine.image("vda").exists()
    xml = machine.virsh("snapshot-dumpxml", "vm", "live")
    assert "<inactiveDomain" in xml
    assert xml.count(f"{new}/") == 4
    assert f"{machine.images}/" not in xml
    machine.virsh("snapshot-revert", "vm", "live")
    assert machine.open_files() == {new / "vm-vda.qcow2", new / "vm-vdb.qcow2"}
    machine.virsh("destroy", "vm")
    assert {Path(path).parent for path in machine.sources().values()} == {new}


@pytest.mark.qemu
def test_a_running_domain_is_not_moved(machine: Machine, tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    with machine.running():
        refused = machine.imgtool("migrate", "vm", "--to", new)
    assert refused.returncode == 3, refused.stderr
    assert "is running" in refused.stderr
    assert list(new.iterdir()) == []


class Unwilling:
    """The store of a libvirt that takes the records, and then not the domain."""

    def __init__(self, store: DomainStore) -> None:
        self._store = store
        self.records = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def pivot(self, domain: str, *, expected: str, xml: bytes) -> None:
        self.records = b"".join(self._store.snapshots(domain)).decode()
        raise StoreError(f"libvirt: {domain}: not today")


def test_records_are_put_back(machine: Machine) -> None:
    for name in ("s1", "s2"):
        machine.virsh("snapshot-create-as", "vm", name, "--disk-only")
    new = machine.folder / "new"
    new.mkdir()
    before = machine.captured()
    with api.open_world(machine.uri, state_dir=machine.state_dir) as world:
        store = Unwilling(world.store)
        with pytest.raises(StoreError, match="not today"):
            api.migrate(
                replace(world, store=cast(DomainStore, store)), "vm", api.MigrateOptions(to=new)
            )
    assert f"{new}/" in store.records, "they had been changed already"
    assert differences(before, machine.captured()) == []


def active(machine: Machine, target: str) -> tuple[Path, Format]:
    (chain,) = (disk["chain"] for disk in machine.json("chain", "vm", "--disk", target)["disks"])
    return Path(chain[-1]["path"]), Format(chain[-1]["format"])


def write(machine: Machine, byte: int) -> None:
    for target in TARGETS:
        write_pattern(*active(machine, target), AT, LENGTH, byte)


def shown(machine: Machine) -> list[int]:
    found: list[int] = []
    for target in TARGETS:
        data = set(read_pattern(*active(machine, target), AT, LENGTH))
        assert len(data) == 1, target
        found += data
    return found
