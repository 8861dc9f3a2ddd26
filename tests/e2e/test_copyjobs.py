"""A copy job of a domain in a real libvirtd: ready, run meanwhile, copied anew, pivoted."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.model.image import Format
from imgtool.testing import KIB, read_pattern

from .machine import PASSWORD, Machine

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd")]


@pytest.mark.qemu
@pytest.mark.long
def test_a_guest_that_runs_between_ready_and_pivot_loses_nothing(machine: Machine) -> None:
    to = machine.folder / "to"
    to.mkdir()
    words = ["blockcopy", "vm", *_disk("vda", to / "a"), *_disk("vdc", to / "c", "qcow2")]
    assert machine.done(*words) == "Now in mirroring phase\n"
    xml = machine.xml()
    with machine.running():  # a job that is ready keeps nobody from starting
        machine.guest_writes("vda", f"write -P 0x5a {64 * KIB} {4 * KIB}")
        busy = machine.imgtool("blockjob", "vm", "vda", "--pivot")
        assert (busy.returncode, "running" in busy.stderr) == (3, True)
    old = machine.imgtool("blockjob", "vm", "vdc", "--pivot")
    assert (old.returncode, "the copy is old" in old.stderr) == (3, True), old.stderr
    assert machine.xml() == xml
    assert machine.done(*words, "--pivot") == "Successfully pivoted\n"
    assert machine.sources()["vda"] == str(to / "a")
    assert machine.sources()["vdc"] == str(to / "c")
    assert f"passwd='{PASSWORD}'" in machine.xml()
    assert set(read_pattern(to / "a", Format.QCOW2, 64 * KIB, 4 * KIB)) == {0x5A}
    with machine.running():
        assert {to / "a", to / "c"} <= machine.open_files()
    assert not machine.state_dir.exists()


def test_virsh_and_a_job_know_of_each_other(machine: Machine) -> None:
    """virsh does not know of the job, so that what it does must be found out."""
    copy = machine.folder / "copy"
    machine.done("blockcopy", "vm", "vdb", copy, "--shallow")
    machine.virsh("snapshot-create-as", "vm", "s1", "--disk-only", "--diskspec", "vda,snapshot=no")
    moved = machine.imgtool("blockjob", "vm", "vdb", "--pivot")
    assert (moved.returncode, "the copy is old" in moved.stderr) == (3, True), moved.stderr
    assert machine.done("blockjob", "vm", "vdb", "--abort").startswith("Job ended")
    assert copy.exists()
    assert not machine.state_dir.exists()
    machine.done("blockcopy", "vm", "vdb", machine.folder / "flat", "--finish")
    machine.done("blockcopy", "vm", "vda", machine.folder / "moved")
    machine.virsh("undefine", "vm", "--snapshots-metadata")
    assert machine.imgtool("recover").returncode == 0
    assert not machine.state_dir.exists()
    assert (machine.folder / "moved").exists()


def _disk(target: str, dest: Path, fmt: str = "") -> tuple[str, str]:
    return "--disk", f"{target},dest={dest}" + (f",format={fmt}" if fmt else "")
