"""Domains on the command line, where virsh has no word of its own: JSON, UUIDs, broken XML."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from imgtool.cli.main import main
from imgtool.model.domain import Disk
from imgtool.testing.domains import MadeDomain, make_domain

UUID = str(uuid.UUID(int=7))


@pytest.fixture
def made(tmp_path: Path) -> MadeDomain:
    disks = [
        Disk(target="sda", device="cdrom"),
        Disk(target="vda", source=Path("/images/a\x7f\u202eb"), format_name="qcow2"),
    ]
    return make_domain(tmp_path, "vm", disks, domain_uuid=UUID)


def run(capsys: pytest.CaptureFixture[str], made: MadeDomain, *argv: str) -> tuple[int, str, str]:
    code = main(["-c", made.uri, *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def facts(capsys: pytest.CaptureFixture[str], made: MadeDomain, *argv: str) -> dict[str, Any]:
    code, text, _ = run(capsys, made, "--json", *argv)
    answer = json.loads(text)
    assert isinstance(answer, dict)
    assert bool(code) == ("error" in answer)
    return answer


def record(made: MadeDomain, name: str, parent: str = "") -> None:
    folder = made.folder / ".imgtool" / UUID / "snapshots"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.xml").write_text(
        f"<domainsnapshot><name>{name}</name><state>shutoff</state>"
        + (f"<parent><name>{parent}</name></parent>" if parent else "")
        + "<creationTime>1</creationTime><disks><disk name='vda' snapshot='internal'/></disks>"
        "<domain type='kvm'><devices><graphics type='vnc' passwd='secret'/></devices></domain>"
        "</domainsnapshot>"
    )


def test_list_in_json(made: MadeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert facts(capsys, made, "list") == {
        "domains": [{"name": "vm", "state": "shutoff", "uuid": UUID}]
    }


def test_a_domain_that_cannot_be_read_does_not_hide_the_others(
    made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    (made.folder / "broken.xml").write_text("<domain>")
    code, text, errors = run(capsys, made, "list")
    assert code == 0
    assert [line.split()[1:] for line in text.splitlines()[2:4]] == [
        ["broken", "unreadable"],
        ["vm", "shut", "off"],
    ]
    assert "not well-formed" in errors
    assert facts(capsys, made, "list")["domains"][0] == {
        "name": "broken",
        "state": "unreadable",
        "uuid": None,
    }
    assert run(capsys, made, "list", "--without-snapshot", "--name")[1] == "vm\n\n"


def test_list_filters_by_snapshots(made: MadeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, made, "list", "--with-snapshot", "--name")[1] == "\n"
    record(made, "s1")
    assert run(capsys, made, "list", "--with-snapshot", "--name")[1] == "vm\n\n"
    assert run(capsys, made, "list", "--without-snapshot", "--name")[1] == "\n"
    assert run(capsys, made, "list", "--state-running", "--name")[1] == "\n"


def test_domblklist_in_json_and_safe_to_show(
    made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    disks = facts(capsys, made, "domblklist", "vm")["disks"]
    fixed = ("target", "device", "source", "format")
    assert [[disk[key] for key in fixed] for disk in disks] == [
        ["sda", "cdrom", None, "raw"],
        ["vda", "disk", "/images/a\x7f\u202eb", "qcow2"],
    ]
    assert "/images/a\\x7f\\xe2\\x80\\xaeb" in run(capsys, made, "domblklist", "vm")[1]


@pytest.mark.parametrize("domain", [UUID, UUID.upper(), "PATH"])
def test_a_domain_may_be_a_uuid_or_a_path(
    domain: str, made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it was called on the command line, the answer has its name."""
    record(made, "s1")
    record(made, "s2", "s1")
    domain = str(made.xml) if domain == "PATH" else domain
    for command in (
        ["domblklist"],
        ["dumpxml"],
        ["chain"],
        ["snapshot-list"],
        ["snapshot-info", "s1"],
        ["snapshot-dumpxml", "s1"],
        ["snapshot-parent", "s2"],
        ["snapshot-current", "s1"],
        ["snapshot-current", "--name"],
        ["undefine", "--snapshots-metadata"],
    ):
        answer = facts(capsys, made, command[0], domain, *command[1:])
        assert answer.get("domain") == "vm", command
    assert list(made.folder.iterdir()) == []


def test_snapshot_list_in_json(made: MadeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    record(made, "s1")
    record(made, "s2", "s1")
    run(capsys, made, "snapshot-current", "vm", "s2")
    answer = facts(capsys, made, "snapshot-list", "vm", "--tree")
    keys = ("name", "parent", "current", "created", "state", "location")
    assert [[each[key] for key in keys] for each in answer["snapshots"]] == [
        ["s1", None, False, 1, "shutoff", "internal"],
        ["s2", "s1", True, 1, "shutoff", "internal"],
    ]


def test_the_tree_shows_where_we_are(made: MadeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    record(made, "s1")
    record(made, "s2", "s1")
    record(made, "s3", "s1")
    run(capsys, made, "snapshot-current", "vm", "s2")
    _, drawn, _ = run(capsys, made, "snapshot-list", "vm", "--tree")
    assert [line.strip(" |+-") for line in drawn.splitlines() if "s" in line] == [
        "s1",
        "s2 (current)",
        "s3",
    ]


def test_dumps_in_json_keep_passwords_back(
    made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    record(made, "s1")
    answer = facts(capsys, made, "snapshot-dumpxml", "vm", "s1")
    assert (answer["domain"], answer["snapshot"]) == ("vm", "s1")
    assert "<graphics type='vnc'/>" in answer["xml"]
    told = facts(capsys, made, "snapshot-dumpxml", "vm", "s1", "--security-info")
    assert "passwd='secret'" in told["xml"]
    assert facts(capsys, made, "dumpxml", "vm")["xml"] == made.xml.read_text()


def test_dumpxml_is_the_file_byte_by_byte(
    made: MadeDomain, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    made.xml.write_bytes(made.xml.read_bytes().replace(b"\n", b"\r\n") + b"<!-- \xc2\x9b -->")
    assert main(["-c", made.uri, "dumpxml", "vm"]) == 0
    assert capfdbinary.readouterr().out == made.xml.read_bytes()


def test_define_and_undefine(
    made: MadeDomain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "new"
    file.write_text(made.xml.read_text().replace("vm<", "new<").replace(UUID, str(uuid.uuid4())))
    before = sorted(tmp_path.iterdir())
    for command in (["define", str(file)], ["undefine", "vm"]):
        code, text, _ = run(capsys, made, "--dry-run", *command)
        assert (code, "would be" in text) == (0, True)
    assert sorted(tmp_path.iterdir()) == before
    assert facts(capsys, made, "define", "--file", str(file)) == {"domain": "new"}
    assert (tmp_path / "new.xml").read_bytes() == file.read_bytes()
    assert facts(capsys, made, "undefine", "--domain=new") == {"domain": "new"}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("option", ["remove-all-storage", "managed-save", "nvram", "tpm"])
def test_undefine_removes_nothing_but_the_domain(
    option: str, made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, errors = run(capsys, made, "undefine", "vm", f"--{option}")
    assert (code, f"--{option}: " in errors) == (2, True)
    assert made.xml.exists()


@pytest.mark.parametrize("name", ["missing", "folder", "fifo", "empty"])
def test_what_is_no_file_of_xml_is_said(
    name: str, made: MadeDomain, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    code, _, errors = run(capsys, made, "define", str(tmp_path / name))
    assert code == 2
    assert errors.startswith("error: ")
    assert "\nremedy: " in errors


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["snapshot-list"], "--domain is missing"),
        (["snapshot-list", "vm", "a", "b"], "unexpected argument 'b'"),
        (["snapshot-list", "vm", "--nam"], "unrecognized arguments: --nam"),
        (["snapshot-list", "nobody"], "no domain 'nobody'"),
        (["snapshot-info", "vm", "a\x1b[2J"], "no domain snapshot with matching name 'a\\x1b[2J'"),
        (["snapshot-list", "vm", "--from=", "--current"], "--from and --current are mutually"),
        (["snapshot-list", "vm", "--from=", "--roots"], "--roots and --from are mutually"),
        (["snapshots", "vm"], "unknown command 'snapshots'"),
        ([], "no command is given"),
    ],
)
def test_usage_errors_are_sentences(
    argv: list[str], message: str, made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, errors = run(capsys, made, *argv)
    assert (code, text) == (2, "")
    assert message in errors
    told = facts(capsys, made, *argv)["error"]
    assert set(told) == {"type", "message", "remedy"}


def test_an_option_s_value_may_be_spelled_like_a_command(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_domain(tmp_path, "list", [])
    monkeypatch.chdir(tmp_path)
    assert main(["-c", "dir:.", "--state-dir", "recover", "domblklist", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["domain"] == "list"
