"""Where libvirt's snapshot-delete destroys data, ours loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.cli.main import main
from imgtool.model.image import Format
from imgtool.testing import MadeDomain, capture, guest_bytes_digest, make_three_disks, write_pattern
from tests.effects.asking import named
from tests.effects.breaking import findings, snapshot

TARGETS = ("vda", "vdb", "vdc")


@pytest.fixture
def machine(tmp_path: Path) -> MadeDomain:
    return make_three_disks(tmp_path)


def imgtool(made: MadeDomain, *words: str) -> None:
    assert main(["-c", made.uri, "-q", *words]) == 0, words


def write(made: MadeDomain, byte: int) -> dict[str, str]:
    """What a guest does between two snapshots; returns what it reads then."""
    for number, target in enumerate(TARGETS):
        disk = named(made, target)
        assert disk.source is not None
        assert disk.format is not None
        write_pattern(disk.source, disk.format, number * 65536, 4096, byte)
    return shown(made)


def shown(made: MadeDomain) -> dict[str, str]:
    """What a guest reads."""
    state = capture(made.uri, made.name, [made.folder])
    assert [layer.check for disk in state.disks for layer in disk.layers if layer.check] == []
    return {disk.target: disk.top.guest for disk in state.disks}


@pytest.mark.parametrize("lost", [False, True], ids=["chosen", "lost in a crash"])
def test_a_leaf_that_is_not_current_has_overlays_all_the_same(
    machine: MadeDomain, lost: bool
) -> None:
    """libvirt unlinks what the leaf was taken of: the live backing files."""
    snapshot(machine, "x")
    at_y = write(machine, 0x22)
    snapshot(machine, "y")
    latest = write(machine, 0x33)
    imgtool(machine, "snapshot-current", "vm", "x")
    if lost:
        (mark,) = machine.folder.glob(".imgtool/*/current")
        mark.unlink()
    imgtool(machine, "snapshot-delete", "vm", "y")
    assert shown(machine) == latest != at_y
    at_x = {
        target: guest_bytes_digest(machine.image(target), _format(target)) for target in TARGETS
    }
    imgtool(machine, "snapshot-revert", "vm", "x", "--keep-as", "later")
    assert shown(machine) == at_x
    imgtool(machine, "snapshot-revert", "vm", "later", "--keep")
    assert shown(machine) == latest
    assert [each.kind for each in findings(machine) if each.severity == "error"] == []


def test_an_internal_snapshot_inside_an_overlay_survives_its_deletion(machine: MadeDomain) -> None:
    """libvirt commits the overlay into its base, and unlinks it with what is inside."""
    snapshot(machine, "e")
    at_i = write(machine, 0x22)
    snapshot(machine, "i", disk_only=False)
    latest = write(machine, 0x33)
    imgtool(machine, "snapshot-delete", "vm", "e")
    assert shown(machine) == latest
    imgtool(machine, "snapshot-revert", "vm", "i", "--keep-as", "later")
    assert shown(machine) == at_i
    imgtool(machine, "snapshot-revert", "vm", "later", "--keep")
    assert shown(machine) == latest


def test_an_internal_snapshot_below_an_overlay_survives_its_deletion(tmp_path: Path) -> None:
    """libvirt before 11.0 removes the image that the internal one is in; later, it leaks it."""
    machine = make_three_disks(tmp_path)
    text = machine.xml.read_text()
    at = text.rindex("<disk ")
    machine.xml.write_text(text[:at] + text[text.index("</disk>", at) + len("</disk>") :])
    at_i = shown(machine)
    snapshot(machine, "i", disk_only=False)
    between = write_two(machine, 0x22)
    snapshot(machine, "e")
    latest = write_two(machine, 0x33)
    imgtool(machine, "snapshot-delete", "vm", "e")
    assert shown(machine) == latest != between
    imgtool(machine, "snapshot-revert", "vm", "i", "--keep-as", "later")
    assert shown(machine) == at_i
    imgtool(machine, "snapshot-revert", "vm", "later", "--keep")
    assert shown(machine) == latest


def write_two(made: MadeDomain, byte: int) -> dict[str, str]:
    for target in ("vda", "vdb"):
        source = named(made, target).source
        assert source is not None
        write_pattern(source, Format.QCOW2, 0, 4096, byte)
    return shown(made)


def _format(target: str) -> Format:
    return Format.RAW if target == "vdc" else Format.QCOW2
