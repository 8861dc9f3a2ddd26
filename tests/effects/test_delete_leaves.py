"""What a deletion leaves although nothing needs it: it is told, and it is not removed."""

from __future__ import annotations

from pathlib import Path

from imgtool import api
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotRequest
from imgtool.testing import KIB, make_domain, make_image, read_pattern, write_pattern


def test_an_image_stays_when_its_last_tag_goes(tmp_path: Path) -> None:
    """What it shows is not what its tag held: whoever forgot the snapshot of it may want it."""
    path = make_image(tmp_path / "disk.qcow2", size=64 * KIB)
    disk = Disk(target="vda", source=path, format=Format.QCOW2, format_name="qcow2")
    made = make_domain(tmp_path, "vm", [disk])
    said: list[str] = []
    with api.open_world(made.uri, say=said.append) as world:
        api.take_snapshot(world, "vm", SnapshotRequest(name="tag"), api.SnapshotOptions())
        write_pattern(path, Format.QCOW2, 0, 4 * KIB, 0x77)
        options = api.SnapshotOptions(disk_only=True)
        api.take_snapshot(world, "vm", SnapshotRequest(name="over"), options)
        api.revert_to(world, "vm", "tag", api.RevertOptions(force=True))
        api.delete_snapshot(world, "vm", "over", api.DeleteOptions(metadata=True))
        assert said == []
        api.delete_snapshot(world, "vm", "tag", api.DeleteOptions())
    assert said == [f"vda: {path} stays, although nothing needs it any more"]
    assert read_pattern(path, Format.QCOW2, 0, 4 * KIB) == b"\x77" * 4 * KIB


def test_a_layer_below_what_is_dropped_stays(tmp_path: Path) -> None:
    """Somebody may make other disks of it, which are not here."""
    base = make_image(tmp_path / "base.qcow2", size=64 * KIB)
    top = make_image(tmp_path / "top.qcow2", backing=base, backing_format=Format.QCOW2)
    disk = Disk(target="vda", source=top, format=Format.QCOW2, format_name="qcow2")
    made = make_domain(tmp_path, "vm", [disk])
    said: list[str] = []
    with api.open_world(made.uri, say=said.append) as world:
        options = api.SnapshotOptions(disk_only=True)
        api.take_snapshot(world, "vm", SnapshotRequest(name="s1"), options)
        api.block_pull(world, "vm", [], api.PullOptions())
        assert said == []
        api.delete_snapshot(world, "vm", "s1", api.DeleteOptions())
    assert said == [f"vda: {base} stays, although nothing needs it any more"]
    assert (base.exists(), top.exists()) == (True, False)
