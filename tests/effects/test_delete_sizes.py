"""A disk that was made smaller after a snapshot does not grow when that is deleted."""

from __future__ import annotations

import subprocess
from pathlib import Path

from imgtool import api
from imgtool.model.snapshot import SnapshotRequest
from imgtool.testing import MIB, capture, make_three_disks


def test_an_overlay_that_is_smaller_than_its_base_is_not_merged_down(tmp_path: Path) -> None:
    made = make_three_disks(tmp_path)
    with api.open_world(made.uri) as world:
        options = api.SnapshotOptions(disk_only=True)
        api.take_snapshot(world, "vm", SnapshotRequest(name="s1"), options)
        for chain in api.chains(world, "vm").values():
            top = chain.active.path
            words = ["resize", "-q", "--shrink", "-f", "qcow2", str(top), str(2 * MIB)]
            subprocess.run(["qemu-img", *words], check=True)
        before = capture(world.store, "vm", [tmp_path])
        api.delete_snapshot(world, "vm", "s1", api.DeleteOptions())
        after = capture(world.store, "vm", [tmp_path])
    for disk in before.disks:
        now = after.disk(disk.target)
        assert (now.top.virtual_size, now.top.guest) == (2 * MIB, disk.top.guest)
    assert after.records == ()
