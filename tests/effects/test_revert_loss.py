"""What a revert would lose is refused without --force or --keep, also where an image stays."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool import api
from imgtool.model.domain import Disk
from imgtool.model.errors import LossError
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotRequest
from imgtool.testing import KIB, MadeDomain, make_domain, make_image, read_pattern, write_pattern


@pytest.fixture
def tagged(tmp_path: Path) -> MadeDomain:
    """An overlay of the snapshot 'over' is active, and has that of 'tag' inside."""
    path = make_image(tmp_path / "disk.qcow2", size=64 * KIB)
    disk = Disk(target="vda", source=path, format=Format.QCOW2, format_name="qcow2")
    made = make_domain(tmp_path, "vm", [disk])
    with api.open_world(made.uri) as world:
        options = api.SnapshotOptions(disk_only=True)
        api.take_snapshot(world, "vm", SnapshotRequest(name="over"), options)
        write_pattern(tmp_path / "disk.over", Format.QCOW2, 0, 4 * KIB, 0x11)
        api.take_snapshot(world, "vm", SnapshotRequest(name="tag"), api.SnapshotOptions())
    return made


def test_what_was_written_after_a_tag_is_not_left_without_a_name(tagged: MadeDomain) -> None:
    """The image stays, since the tag is in it; but no snapshot would tell of what it shows."""
    overlay = tagged.folder / "disk.over"
    write_pattern(overlay, Format.QCOW2, 0, 4 * KIB, 0x22)
    before = tagged.xml.read_bytes()
    with api.open_world(tagged.uri) as world:
        with pytest.raises(LossError, match=r"vda .*disk\.over"):
            api.revert_to(world, "vm", "over", api.RevertOptions())
        assert tagged.xml.read_bytes() == before
        api.revert_to(world, "vm", "over", api.RevertOptions(keep_as="kept"))
        api.revert_to(world, "vm", "kept", api.RevertOptions())
        active = api.chains(world, "vm")["vda"].active
        assert read_pattern(active.path, Format.QCOW2, 0, 4 * KIB) == b"\x22" * 4 * KIB


def test_what_a_tag_shows_as_well_is_not_lost(tagged: MadeDomain) -> None:
    with api.open_world(tagged.uri) as world:
        api.revert_to(world, "vm", "over", api.RevertOptions())
        assert api.chains(world, "vm")["vda"].active.path != tagged.folder / "disk.over"
