"""A running guest moves by virsh, onto files that imgtool has made and layers that it copies."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from imgtool.model.image import Format
from imgtool.testing import KIB, read_pattern
from tests.effects.asking import chain, info

from .machine import Machine

pytestmark = [
    pytest.mark.libvirtd,
    pytest.mark.qemu,
    pytest.mark.long,
    pytest.mark.xdist_group("libvirtd"),
]

SECONDS = 120.0  # that a small copy may take on a busy machine
OTHERS = ["--diskspec", "vdb,snapshot=no", "--diskspec", "vdc,snapshot=no"]


def test_a_running_guest_moves_with_its_relative_chain(machine: Machine, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    common = machine.image("vda")
    old = machine.images / "old.qcow2"
    migrate, new = machine.images / "old.migrate", there / "new.qcow2"
    first = ["--diskspec", f"vda,file={old}", *OTHERS, "--relative", "--no-metadata"]
    machine.done("snapshot-create-as", "vm", "s0", "--disk-only", *first)
    with machine.running():
        machine.guest_writes("vda", "write -q -P 0x51 64k 64k")
        spec = f"vda,file={migrate},mirror={new}"
        machine.done("mirror-create", "vm", "--diskspec", spec)
        assert {info(path)["backing-filename"] for path in (migrate, new)} == {old.name}
        words = ["--disk-only", "--reuse-external", "--no-metadata", *OTHERS]
        machine.virsh("snapshot-create-as", "vm", "s1", *words, "--diskspec", f"vda,file={migrate}")
        machine.guest_writes("vda", "write -q -P 0x52 128k 64k")
        # Before the job: libvirt 9.0 looks at the whole chain of the mirror when it begins one.
        machine.done("chain-copy", "vm", "--disk", "vda", "--to", there)
        machine.virsh(
            *("blockcopy", "vm", "vda", new, "--reuse-external", "--shallow", "--transient-job")
        )
        machine.guest_writes("vda", "write -q -P 0x53 192k 64k")
        _wait_until_ready(machine)
        machine.virsh("blockjob", "vm", "vda", "--pivot")
        machine.guest_writes("vda", "write -q -P 0x54 256k 64k")
        assert machine.sources()["vda"] == str(new)
        opened = {path for path in machine.open_files() if path.is_relative_to(there)}
        assert opened == {new, there / old.name, there / common.name}
        assert not {migrate, old, common} & machine.open_files()

    moved = there.rename(tmp_path / "moved")
    layers = [moved / path.name for path in (new, old, common)]
    assert [Path(os.path.realpath(name)) for name in chain(layers[0])] == layers
    assert [info(path).get("backing-filename") for path in layers] == [old.name, common.name, None]
    for number, byte in enumerate((0x51, 0x52, 0x53, 0x54), start=1):
        assert read_pattern(layers[0], Format.QCOW2, number * 64 * KIB, KIB) == bytes([byte]) * KIB
    assert not machine.state_dir.exists()


def _wait_until_ready(machine: Machine) -> None:
    end = time.monotonic() + SECONDS
    command = json.dumps({"execute": "query-block-jobs"})
    while True:
        jobs = json.loads(machine.virsh("qemu-monitor-command", "vm", command))["return"]
        if jobs and jobs[0]["ready"]:
            return
        assert time.monotonic() < end, jobs
        time.sleep(0.05)
