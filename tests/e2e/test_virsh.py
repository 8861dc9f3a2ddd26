"""virsh sees and handles what imgtool made, and imgtool what virsh made."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.model.image import Format
from imgtool.testing import KIB, read_pattern, write_pattern

from .machine import PASSWORD, Machine

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd")]

REQUESTS = {
    "external": ["--disk-only"],
    "internal": ["--diskspec", "vdc,snapshot=no"],
    "mixed": ["--diskspec", "vdc,snapshot=external"],
}
OVERLAID = {
    "external": ("vda", "vdb", "vdc"),
    "internal": (),
    "mixed": ("vdc",),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_a_snapshot_is_seen_by_virsh(machine: Machine, kind: str) -> None:
    before = machine.xml()
    out = machine.done("snapshot-create-as", "vm", "s1", "what for", *REQUESTS[kind])
    assert out == "Domain snapshot s1 created\n"
    assert machine.virsh("snapshot-list", "vm", "--name") == "s1"
    assert machine.virsh("snapshot-current", "vm", "--name") == "s1"
    info = dict(line.split(":") for line in machine.virsh("snapshot-info", "vm", "s1").splitlines())
    facts = {key: value.strip() for key, value in info.items()}
    location = "internal" if kind == "internal" else "external"
    assert (facts["State"], facts["Location"], facts["Parent"]) == ("shutoff", location, "-")
    shown = machine.virsh("snapshot-dumpxml", "vm", "s1", "--security-info")
    assert "<description>what for</description>" in shown
    assert machine.done("snapshot-dumpxml", "vm", "s1", "--security-info").strip() == shown
    expected = {
        target: str(machine.image(target).with_suffix(".s1"))
        if target in OVERLAID[kind]
        else str(machine.image(target))
        for target in ("vda", "vdb", "vdc")
    }
    assert machine.sources() == expected
    assert f"passwd='{PASSWORD}'" in before
    assert f"passwd='{PASSWORD}'" in machine.xml()
    assert f"passwd='{PASSWORD}'" in shown
    assert not machine.state_dir.exists()


def test_a_chain_of_snapshots_is_a_tree_to_both(machine: Machine) -> None:
    for number, kind in enumerate(REQUESTS, start=1):
        machine.done("snapshot-create-as", "vm", f"s{number}", *REQUESTS[kind])
    ours = machine.done("snapshot-list", "vm", "--tree")
    assert ours.replace("s3 (current)", "s3").strip() == machine.virsh(
        "snapshot-list", "vm", "--tree"
    )
    assert "s3 (current)" in ours
    assert [machine.virsh("snapshot-parent", "vm", f"s{n}") for n in (2, 3)] == ["s1", "s2"]
    for command in ("snapshot-list", "snapshot-info"):
        words = [command, "vm", *(["s2"] if command == "snapshot-info" else ["--parent"])]
        assert machine.done("-q", *words).strip() == machine.virsh(*words)
    for name in ("s3", "s1"):
        machine.virsh("snapshot-delete", "vm", name, "--metadata")
    (left,) = machine.json("snapshot-list", "vm")["snapshots"]
    assert (left["name"], left["parent"], left["current"]) == ("s2", None, True)
    machine.done("snapshot-create-as", "vm", "s4", *REQUESTS["mixed"])
    assert machine.virsh("snapshot-parent", "vm", "s4") == "s2"


def test_virsh_reverts_to_our_internal_snapshot_and_deletes_it(machine: Machine) -> None:
    machine.done("snapshot-create-as", "vm", "s1", *REQUESTS["internal"])
    taken = machine.captured()
    for target in ("vda", "vdb"):
        write_pattern(machine.image(target), Format.QCOW2, 0, 64 * KIB, 0x77)
    machine.virsh("snapshot-revert", "vm", "s1")
    for number, target in enumerate(("vda", "vdb"), start=1):
        image = machine.image(target)
        assert read_pattern(image, Format.QCOW2, 0, KIB) == bytes([number]) * KIB
    reverted = machine.captured()
    assert [disk.top.guest for disk in reverted.disks] == [d.top.guest for d in taken.disks]
    machine.done("snapshot-create-as", "vm", "s2", *REQUESTS["internal"])
    assert machine.virsh("snapshot-parent", "vm", "s2") == "s1"
    machine.virsh("snapshot-delete", "vm", "s1")
    after = machine.captured()
    assert [[tag.tag for tag in disk.top.tags] for disk in after.disks] == [["s2"], ["s2"], []]
    assert all(not layer.check for disk in after.disks for layer in disk.layers)
    assert machine.json("snapshot-list", "vm")["snapshots"][0]["parent"] is None


def test_snapshots_of_virsh_are_listed_and_ours_follow_them(machine: Machine) -> None:
    machine.virsh("snapshot-create-as", "vm", "v1", "--disk-only")
    machine.done("snapshot-create-as", "vm", "w1", *REQUESTS["mixed"])
    machine.virsh("snapshot-create-as", "vm", "x1", "from virsh", "--disk-only")
    listed = machine.json("snapshot-list", "vm")["snapshots"]
    facts = [(each["name"], each["parent"], each["location"], each["current"]) for each in listed]
    assert facts == [
        ("v1", None, "external", False),
        ("w1", "v1", "external", False),
        ("x1", "w1", "external", True),
    ]
    shown = machine.done("chain", "vm", "--disk", "vdc")
    names = [machine.image("vdc").with_suffix(suffix).name for suffix in (".raw", ".v1", ".w1")]
    assert [name for name in names if name in shown] == names


@pytest.mark.qemu
def test_the_domain_starts_on_what_we_made(machine: Machine) -> None:
    files = {machine.image(target) for target in ("vda", "vdb", "vdc")}
    for number, kind in enumerate(REQUESTS, start=1):
        machine.done("snapshot-create-as", "vm", f"s{number}", *REQUESTS[kind])
        files |= {Path(source) for source in machine.sources().values()}
    assert len(files) == 7  # three bases, three overlays of s1, one of s3
    with machine.running():
        assert machine.open_files() == files
