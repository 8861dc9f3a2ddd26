"""imgtool chain: the picture, its JSON, and disks that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imgtool.cli.chains import size
from imgtool.cli.main import main
from imgtool.cli.visible import width
from imgtool.host.qemu_img import QemuImg
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing.domains import MadeDomain, make_domain
from imgtool.testing.images import MIB, make_image


def qcow2(target: str, source: Path) -> Disk:
    return Disk(target=target, source=source, format=Format.QCOW2, format_name="qcow2")


@pytest.fixture
def made(tmp_path: Path) -> MadeDomain:
    """vda: raw <- mid <- top, the last two in a folder of their own."""
    base = make_image(tmp_path / "base.raw", Format.RAW, 8 * MIB)
    (tmp_path / "overlays").mkdir()
    mid, top = tmp_path / "overlays/mid.qcow2", tmp_path / "overlays/top.qcow2"
    make_image(mid, size=8 * MIB, backing=base, backing_format=Format.RAW)
    make_image(top, size=10 * MIB, backing="mid.qcow2", backing_format=Format.QCOW2)
    for tag in ("one", "two\x1b[31m", "x" * 70):
        QemuImg().run("snapshot", "-c", tag, mid)
    return make_domain(tmp_path, "vm", [qcow2("vda", top)])


def run(capsys: pytest.CaptureFixture[str], made: MadeDomain, *argv: str) -> tuple[int, str, str]:
    code = main(["-c", made.uri, *argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_picture_is_a_ladder_from_the_oldest_layer(
    made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, errors = run(capsys, made, "chain", "vm")
    assert (code, errors) == (0, "")
    on_disk = {
        name: size((made.folder / name).stat().st_blocks * 512)
        for name in ("base.raw", "overlays/mid.qcow2", "overlays/top.qcow2")
    }
    assert text.splitlines() == [
        "vda",
        f"    {made.folder}/base.raw",
        f"    |       raw, 8 MiB, {on_disk['base.raw']} allocated",
        f"    <- {made.folder}/overlays/mid.qcow2",
        f"    |       qcow2, 8 MiB, {on_disk['overlays/mid.qcow2']} allocated",
        "    |       snapshots inside: one, two\\x1b[31m,",
        f"    |         {'x' * 70}",
        "    <- top.qcow2",
        f"            qcow2, 10 MiB, {on_disk['overlays/top.qcow2']} allocated, active layer",
    ]


def test_many_tags_fit_80_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = make_image(tmp_path / "a.qcow2", size=MIB)
    for number in range(12):
        QemuImg().run("snapshot", "-c", f"before update {number}", image)
    made = make_domain(tmp_path, "vm", [qcow2("vda", image)])
    _, text, _ = run(capsys, made, "chain", "vm")
    lines = [line for line in text.splitlines() if str(tmp_path) not in line]
    assert max(map(width, lines)) < 80
    assert "before update 11" in " ".join(text.split())


def test_json_has_bytes_and_whole_paths(
    made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = run(capsys, made, "--json", "chain", "vm", "--disk", "vda")
    facts = json.loads(text)
    assert code == 0
    assert facts["domain"] == "vm"
    ((target, layers),) = ((disk["target"], disk["chain"]) for disk in facts["disks"])
    assert target == "vda"
    folder = made.folder.resolve()
    assert [layer["path"] for layer in layers] == [
        str(folder / name) for name in ("base.raw", "overlays/mid.qcow2", "overlays/top.qcow2")
    ]
    assert [layer["format"] for layer in layers] == ["raw", "qcow2", "qcow2"]
    assert [layer["virtual_size"] for layer in layers] == [8 * MIB, 8 * MIB, 10 * MIB]
    assert [layer["allocation"] for layer in layers] == [
        Path(layer["path"]).stat().st_blocks * 512 for layer in layers
    ]
    tags = [[snapshot["tag"] for snapshot in layer["snapshots"]] for layer in layers]
    assert tags == [[], ["one", "two\x1b[31m", "x" * 70], []]


@pytest.fixture
def broken(tmp_path: Path) -> MadeDomain:
    """vda can be read; of vdb the base is gone, by a name that would clear the screen."""
    good = make_image(tmp_path / "good.qcow2")
    base = make_image(tmp_path / "gone\x1b[2J.raw", Format.RAW)
    top = make_image(tmp_path / "top.qcow2", backing=base, backing_format=Format.RAW)
    base.unlink()
    cdrom = Disk(target="sda", device="cdrom", readonly=True)
    network = Disk(target="vdc", source=tmp_path / "no.raw", format=Format.RAW, format_name="raw")
    return make_domain(tmp_path, "vm", [cdrom, qcow2("vdb", top), qcow2("vda", good), network])


def test_a_disk_that_cannot_be_read_is_told_and_the_others_are_shown(
    broken: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, _ = run(capsys, broken, "chain", "vm")
    assert code == 0
    assert [line for line in text.splitlines() if line and line[0] != " "] == ["vdb", "vda", "vdc"]
    assert text.count("cannot be read: ") == 2
    assert "good.qcow2" in text
    assert "gone\\x1b[2J.raw: No such file" in " ".join(text.split())
    assert "\x1b" not in text


def test_the_same_in_json(broken: MadeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, broken, "chain", "vm", "--json")
    disks = {disk["target"]: disk for disk in json.loads(text)["disks"]}
    assert code == 0
    assert [len(disks[target]["chain"]) for target in ("vda", "vdb", "vdc")] == [1, 0, 0]
    assert "error" not in disks["vda"]
    assert disks["vdb"]["error"]["type"] == "ChainError"
    assert "gone\x1b[2J.raw" in disks["vdb"]["error"]["message"]


@pytest.mark.parametrize(
    ("target", "message"), [("vdb", "No such file or directory"), ("vdz", "no disk named 'vdz'")]
)
def test_a_disk_that_was_named_must_be_readable(
    target: str, message: str, broken: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text, errors = run(capsys, broken, "chain", "vm", "--disk", "vda", "--disk", target)
    assert (code, text) == (2, "")
    assert message in errors
    assert "\x1b" not in errors


def test_disks_are_shown_in_the_order_in_which_they_are_named(
    made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    second = make_image(made.folder / "b.qcow2")
    domain = make_domain(made.folder, "two", [*made.disks, qcow2("vdb", second)])
    _, text, _ = run(capsys, domain, "chain", "two", "vdb", "vda", "--json")
    assert [disk["target"] for disk in json.loads(text)["disks"]] == ["vdb", "vda"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024**3, "10 GiB"),
        (1024**4 - 1, "1024.0 GiB"),
        (1024**7, "1024 EiB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
