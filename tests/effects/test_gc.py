"""gc removes what nobody needs, and nothing else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from imgtool import api
from imgtool.cli.main import main
from imgtool.model.image import Format
from imgtool.testing import MadeDomain, capture, differences, make_three_disks, write_pattern
from tests.crash.scenario import digest
from tests.effects.asking import qemu_img
from tests.effects.breaking import (
    die_in_a_snapshot,
    edit,
    findings,
    overlay,
    record,
    snapshot,
    tag,
)

STAGED = ".imgtool-0123456789abcdef-7"


@pytest.fixture
def machine(tmp_path: Path) -> MadeDomain:
    """Three disks with two external snapshots."""
    made = make_three_disks(tmp_path)
    snapshot(made, "e1")
    snapshot(made, "e2")
    return made


def sweep(made: MadeDomain, *, force: bool = False) -> api.Swept:
    with api.open_world(made.uri) as world:
        (swept,) = api.sweep(world, "vm", force=force)
    return swept


def listed(made: MadeDomain) -> set[str]:
    return {path.name for path in made.folder.iterdir()}


def names(swept: api.Swept) -> tuple[set[str], set[str]]:
    """What went, and what stayed."""
    return {one.path.name for one in swept.removed}, {one.path.name for one in swept.left}


def test_strays_and_staged_files_go_and_nothing_else(machine: MadeDomain) -> None:
    before = capture(machine.uri, "vm", [machine.folder])
    (machine.folder / STAGED).write_bytes(b"half")
    overlay(machine.folder / "x", machine.image("vda"))
    overlay(machine.folder / "on-x", machine.folder / "x")
    (machine.folder / ".imgtool-no-id-of-ours").touch()
    went, stayed = names(sweep(machine))
    assert (went, stayed) == ({STAGED, "x", "on-x"}, set())
    (machine.folder / ".imgtool-no-id-of-ours").unlink()
    assert differences(before, capture(machine.uri, "vm", [machine.folder])) == []
    assert findings(machine) == []


def test_what_holds_data_stays_until_it_is_forced(machine: MadeDomain) -> None:
    stray = overlay(machine.folder / "x", machine.image("vda"))
    write_pattern(stray, Format.QCOW2, 0, 512, 0x11)
    below = overlay(machine.folder / "y", machine.image("vdb"))
    write_pattern(overlay(machine.folder / "on-y", below), Format.QCOW2, 0, 512, 0x11)
    tagged = overlay(machine.folder / "z", machine.image("vda"))
    tag(tagged, "t")
    assert names(sweep(machine)) == (set(), {"x", "y", "on-y", "z"})
    assert names(sweep(machine, force=True)) == ({"x", "y", "on-y", "z"}, set())
    assert findings(machine) == []


def test_what_anybody_names_stays(machine: MadeDomain) -> None:
    """Another domain; a snapshot that is only recorded; a link to it; no overlay of ours."""
    second = overlay(machine.folder / "second", machine.image("vda"))
    xml = machine.xml.read_text().replace("<name>vm<", "<name>vm2<")
    uuid = xml.partition("<uuid>")[2].partition("<")[0]
    xml = xml.replace(uuid, uuid[:-12] + "0" * 12)
    (machine.folder / "vm2.xml").write_text(xml.replace("vm-vda.e2", second.name))
    spare = overlay(machine.folder / "spare", machine.image("vdb"))
    edit(record(machine, "e1"), "vm-vdb.e1", spare.name)
    (machine.folder / "link").symlink_to(machine.folder / "vm-vda.e2")
    alone = machine.folder / "alone.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", alone, "1M")
    assert names(sweep(machine, force=True)) == (set(), set())


def test_what_is_open_stays(machine: MadeDomain) -> None:
    stray = overlay(machine.folder / "x", machine.image("vda"))
    with subprocess.Popen(
        ["qemu-io", "-f", "qcow2", stray], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as user:
        assert user.stdin is not None
        assert user.stdout is not None
        user.stdin.write("length\n")
        user.stdin.flush()
        user.stdout.readline()
        swept = sweep(machine, force=True)
        user.stdin.write("quit\n")
    assert names(swept) == (set(), {"x"})
    assert "in use" in swept.left[0].reason


def test_in_doubt_everything_stays(machine: MadeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    overlay(machine.folder / "x", machine.image("vda"))
    (machine.folder / STAGED).touch()
    (machine.folder / "broken.xml").write_text("<domain")
    assert names(sweep(machine, force=True)) == (set(), {"x", STAGED})
    assert main(["-c", machine.uri, "gc", "--all"]) == 0
    assert "broken cannot be read, and may need it" in capsys.readouterr().out


def test_what_an_open_transaction_has_staged_is_its_own(machine: MadeDomain) -> None:
    """It is ended first; what it had staged goes with that."""
    overlay(machine.folder / "x", machine.image("vda"))
    before = listed(machine)
    die_in_a_snapshot(machine, "s9")
    staged = listed(machine) - before
    assert staged
    with api.open_world(machine.uri) as world:
        (dry,) = api.sweep(world, "vm", dry_run=True)
    assert names(dry) == ({"x"}, set())
    assert names(sweep(machine)) == ({"x"}, set())
    assert not staged & listed(machine)
    assert findings(machine) == []


def test_a_dry_run_says_what_would_go_and_removes_nothing(
    machine: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay(machine.folder / "x", machine.image("vda"))
    before = digest(machine.folder)
    assert main(["-c", machine.uri, "gc", "vm", "--dry-run"]) == 0
    assert capsys.readouterr().out == f"vm: {machine.folder}/x would be removed\n"
    assert digest(machine.folder) == before
    assert main(["-c", machine.uri, "gc", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [each["path"] for each in facts["removed"]] == [str(machine.folder / "x")]
    assert facts["left"] == []


def test_a_folder_that_cannot_be_written_is_told(machine: MadeDomain) -> None:
    stray = overlay(machine.folder / "x", machine.image("vda"))
    subprocess.run(["chattr", "+i", stray], check=True)
    try:
        swept = sweep(machine)
    finally:
        subprocess.run(["chattr", "-i", stray], check=True)
    assert names(swept) == (set(), {"x"})
    assert "not permitted" in swept.left[0].reason
