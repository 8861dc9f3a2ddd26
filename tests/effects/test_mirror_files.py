"""mirror-create and overlay-create: what QEMU itself finds in the files, and what is refused."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    ExistsError,
    ImgtoolError,
    NotFoundError,
    UnsupportedError,
)
from imgtool.model.image import Format, Qcow2Features
from imgtool.model.snapshot import SnapshotDisk
from imgtool.testing import MIB, MadeDomain, make_image, write_pattern
from tests.crash.scenario import digest

from .asking import E, chain, disk, domain, info, qemu_img
from .mirrored import typed

SIZE = 3 * MIB
STRANGE = [
    "a,b.qcow2",
    "a:b.qcow2",
    "nbd:b",
    "json:{}",
    "a b",
    "-h",
    "line\nbreak",
    "ä\u0301",
    "c=",
]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """/path1/to/common <- old.qcow2, with all features that an overlay takes over."""
    folder = tmp_path / "path1" / "to"
    folder.mkdir(parents=True)
    (tmp_path / "path2" / "to").mkdir(parents=True)
    make_image(folder / "common", Format.RAW, SIZE)
    features = Qcow2Features(
        cluster_size=131072, lazy_refcounts=True, extended_l2=True, refcount_bits=32
    )
    make_image(
        *(folder / "old.qcow2", Format.QCOW2, SIZE),
        features=features,
        backing="common",
        backing_format=Format.RAW,
    )
    os.chown(folder / "old.qcow2", 1234, 1235)
    (folder / "old.qcow2").chmod(0o660)
    return folder / "old.qcow2"


@pytest.fixture
def made(tmp_path: Path, old: Path) -> MadeDomain:
    return domain(tmp_path, disk(old))


def create(made: MadeDomain, *disks: SnapshotDisk) -> api.MirrorFilesResult:
    with api.open_world(made.uri) as world:
        return api.create_mirror_files(world, made.name, disks)


def wish(file: Path | str = "", mirror: Path | str = "", target: str = "vda") -> SnapshotDisk:
    return SnapshotDisk(name=target, source=str(file), mirror=str(mirror))


def refused(root: Path, kind: type[E], made: MadeDomain, *disks: SnapshotDisk) -> E:
    before = digest(root)
    with pytest.raises(ImgtoolError) as raised:
        create(made, *disks)
    assert digest(root) == before
    assert type(raised.value) is kind, repr(raised.value)
    assert isinstance(raised.value, kind)
    assert raised.value.remedy
    return raised.value


def test_both_files(made: MadeDomain, old: Path, tmp_path: Path) -> None:
    migrate, new = old.with_name("old.migrate"), tmp_path / "path2/to/new.qcow2"
    before, xml = old.read_bytes(), made.xml.read_bytes()
    create(made, wish(migrate, new))
    for path in (migrate, new):
        found = info(path)
        assert found["backing-filename"] == "old.qcow2"
        assert found["backing-filename-format"] == "qcow2"
        assert found["virtual-size"] == SIZE
        assert found["cluster-size"] == 131072
        data = found["format-specific"]["data"]
        assert (data["lazy-refcounts"], data["extended-l2"], data["refcount-bits"]) == (
            True,
            True,
            32,
        )
        facts = path.stat()
        assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o777) == (1234, 1235, 0o660)
    assert [Path(name).name for name in chain(migrate)] == ["old.migrate", "old.qcow2", "common"]
    assert (old.read_bytes(), made.xml.read_bytes()) == (before, xml)
    names = [path.name for path in (*old.parent.iterdir(), *new.parent.iterdir())]
    assert sorted(names) == ["common", "new.qcow2", "old.migrate", "old.qcow2"]
    assert not (made.folder / ".imgtool").exists()


def test_the_new_place_is_complete_once_the_layers_are_copied(
    made: MadeDomain, old: Path, tmp_path: Path
) -> None:
    write_pattern(old, Format.QCOW2, 0, MIB, 7)
    new = tmp_path / "path2/to/new.qcow2"
    create(made, wish(mirror=new))
    assert not old.with_name("old.migrate").exists()
    subprocess.run(["cp", "--", old, old.with_name("common"), new.parent], check=True)
    layers = [new, new.with_name("old.qcow2"), new.with_name("common")]
    assert [Path(os.path.realpath(name)) for name in chain(new)] == layers
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", old, new)


@pytest.mark.parametrize("name", STRANGE)
def test_strange_names(name: str, tmp_path: Path) -> None:
    """As the base, whose name is recorded, and as the files themselves."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    base = tmp_path / "here" / name
    make_image(base, size=SIZE)
    made = domain(tmp_path, disk(base)) if "\n" not in name else None
    top = base.with_name(f"{name},file")
    new = tmp_path / "there" / f"{name},mirror"
    if made is not None:
        create(made, wish(top, new))
    for overlay in (base.with_name(f"{name}.o"), *([new] if made is None else [])):
        options = api.OverlayOptions(format=Format.QCOW2, relative=True)
        with api.open_world(f"dir:{tmp_path}") as world:
            result = api.create_overlay(world, base, overlay, options)
        assert ":" not in result.backing.partition("/")[0]
        assert [os.path.realpath(each) for each in chain(overlay)] == [str(overlay), str(base)]
    if made is not None:
        assert [os.path.realpath(each) for each in chain(top)] == [str(top), str(base)]
        base.rename(new.parent / name)
        assert [os.path.realpath(each) for each in chain(new)] == [str(new), str(new.parent / name)]


def test_names_that_are_no_utf_8(tmp_path: Path) -> None:
    base = Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff"))
    make_image(base, size=SIZE)
    overlay = Path(os.fsdecode(os.fsencode(tmp_path) + b"/o\xfe"))
    with api.open_world(f"dir:{tmp_path}") as world:
        options = api.OverlayOptions(format=Format.QCOW2)
        assert api.create_overlay(world, base, overlay, options).backing == str(base)
    qemu_img("check", "-f", "qcow2", os.fsencode(overlay).decode("utf-8", "surrogateescape"))


def test_over_a_raw_disk(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    raw = tmp_path / "disk.raw"
    raw.write_bytes(bytes(1000))
    made = domain(tmp_path, disk(raw, Format.RAW))
    create(made, wish(tmp_path / "f", tmp_path / "there" / "m"))
    found = info(tmp_path / "there" / "m")
    assert (found["backing-filename-format"], found["virtual-size"]) == ("raw", 1024)


def test_nobody_is_disturbed_who_uses_the_disk(made: MadeDomain, old: Path, tmp_path: Path) -> None:
    """As QEMU does for a running guest: it writes, and lets nobody else write."""
    flock = struct.Struct("hh4xqqi4x")
    with old.open("r+b") as guest:
        for byte in (100, 101, 103, 201, 203):
            wanted = flock.pack(fcntl.F_RDLCK, os.SEEK_SET, byte, 1, 0)
            fcntl.fcntl(guest, fcntl.F_OFD_SETLK, wanted)
        create(made, wish(old.with_name("f"), tmp_path / "path2/to/m"))
    assert info(tmp_path / "path2/to/m")["backing-filename"] == "old.qcow2"


def test_all_disks_or_none(made: MadeDomain, old: Path, tmp_path: Path) -> None:
    other = make_image(tmp_path / "path1/to/b.qcow2", size=SIZE)
    two = domain(tmp_path, disk(old), disk(other, target="vdb"))
    there = tmp_path / "path2/to"
    (there / "taken").touch()
    asked = [wish(mirror=there / "m"), wish(mirror=there / "taken", target="vdb")]
    error = refused(tmp_path, ExistsError, two, *asked)
    assert "vdb" in error.message
    create(two, asked[0], wish(mirror=there / "free", target="vdb"))
    assert info(there / "free")["backing-filename"] == "b.qcow2"


def test_what_is_refused(made: MadeDomain, old: Path, tmp_path: Path) -> None:
    there = tmp_path / "path2/to"
    wrong: list[tuple[type[ImgtoolError], SnapshotDisk]] = [
        (BadRequestError, wish(there / "f")),  # not beside the active layer
        (BadRequestError, wish()),
        (BadRequestError, wish(mirror=there / "none" / "m")),
        (BadRequestError, wish(mirror=there / "old.qcow2")),  # it would be its own base
        (BadRequestError, wish(mirror=there / "common")),
        (BadRequestError, wish(old.with_name("x"), old.with_name("x"))),
        (ExistsError, wish(old.with_name("common"))),
        (NotFoundError, wish(mirror=there / "m", target="vdx")),
        (BadRequestError, SnapshotDisk(name="vda", driver="raw", mirror=str(there / "m"))),
        (BadRequestError, SnapshotDisk(name="vda", type="block", mirror=str(there / "m"))),
    ]
    for kind, asked in wrong:
        refused(tmp_path, kind, made, asked)
    refused(tmp_path, BadRequestError, made)
    twice = wish(mirror=there / "m")
    refused(tmp_path, BadRequestError, made, twice, twice)
    old.with_name("common").unlink()
    refused(tmp_path, ChainError, made, twice)


def test_disks_that_cannot_have_a_mirror(tmp_path: Path, old: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"readonly": True},
        {"shareable": True},
        {"transient": True},
        {"device": "lun"},
    ]
    for facts in wrong:
        made = domain(tmp_path, disk(old, **facts))
        refused(tmp_path, UnsupportedError, made, wish(mirror=tmp_path / "m"))


def test_two_disks_whose_layers_would_get_one_name(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    disks = []
    for target in ("vda", "vdb"):
        (tmp_path / target).mkdir()
        disks.append(disk(make_image(tmp_path / target / "disk", size=SIZE), target=target))
    made = domain(tmp_path, *disks)
    wishes = [wish(mirror=tmp_path / "there" / each, target=each) for each in ("vda", "vdb")]
    error = refused(tmp_path, BadRequestError, made, *wishes)
    assert str(tmp_path / "there" / "disk") in error.message


def test_the_command(
    made: MadeDomain, old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"vda,file={old.with_name('f')},mirror={tmp_path / 'path2/to/m'}"
    before = digest(tmp_path)
    planned = typed(capsys, "-c", made.uri, "--dry-run", "mirror-create", "vm", spec)
    assert planned.returncode == 0, planned.stderr
    assert "create" in planned.stdout
    assert "pivot" not in planned.stdout
    assert digest(tmp_path) == before
    done = typed(capsys, "-c", made.uri, "--json", "mirror-create", "vm", "--diskspec", spec)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [each["backing"] for each in facts["files"]] == ["old.qcow2", "old.qcow2"]
    assert typed(capsys, "-c", made.uri, "mirror-create", "vm", spec).returncode == 2


def test_overlay_create_as_it_is_typed(
    old: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    top = tmp_path / "top"
    before = digest(tmp_path)
    words = ["overlay-create", str(old), str(top)]
    assert typed(capsys, *words).returncode == 2  # without its format
    assert typed(capsys, *words, "--format", "iso").returncode == 2
    assert typed(capsys, "--dry-run", *words, "--format", "qcow2").returncode == 0
    assert digest(tmp_path) == before
    done = typed(capsys, "--json", *words, "--format", "qcow2")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backing"] == str(old)
    assert chain(top)[0] == str(top)
    assert info(top)["cluster-size"] == 131072
    assert typed(capsys, *words, "--format", "qcow2").returncode == 2  # it is there
    assert (
        typed(capsys, "overlay-create", str(old), "/nowhere/x", "--format", "qcow2").returncode == 2
    )
    monkeypatch.chdir(tmp_path)
    words = ["-q", "overlay-create", "path1/to/old.qcow2", "r", "--format", "qcow2", "--relative"]
    assert typed(capsys, *words).returncode == 0
    assert info(tmp_path / "r")["backing-filename"] == "path1/to/old.qcow2"


def test_a_name_with_a_line_break_is_one_line(
    made: MadeDomain, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = f"vda,file={old.with_name('two' + chr(10) + 'lines')}"
    for options, lines in (["--dry-run"], 2), ([], 2):
        words = ("-c", made.uri, "mirror-create", made.name, "--diskspec", spec, *options)
        ended = typed(capsys, *words)
        assert (ended.returncode, len(ended.stdout.splitlines())) == (0, lines), ended
        assert "two\\x0alines" in ended.stdout
    assert old.with_name("two\nlines").exists()
