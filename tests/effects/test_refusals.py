"""Every refusal: its own words, its type and exit code, the disk's name, and nothing written."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    ExistsError,
    FailedError,
    ImageInUseError,
    ImgtoolError,
    NotFoundError,
    UnsupportedError,
    XmlError,
)
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotDisk
from imgtool.testing import MIB, MadeDomain, make_image
from tests.crash.scenario import digest

from .asking import (
    disk,
    domain,
    external,
    internal,
    loop_device,
    mounted,
    qemu_img,
    refused,
    skipped,
    take,
)
from .test_kinds import deep
from .test_ownership import SOMEBODY, THEIR_GROUP, being

ROOT = Path(__file__).parents[2]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_image(tmp_path / "disk.qcow2", size=MIB)


@pytest.fixture
def made(tmp_path: Path, base: Path) -> MadeDomain:
    return domain(tmp_path, disk(base))


def _command(made: MadeDomain, *words: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `snapshot-create-as vm WORDS` and its error, as a script sees them."""
    command = [sys.executable, "-m", "imgtool", "-c", made.uri, "--json", "snapshot-create-as"]
    done = subprocess.run(
        [*command, "vm", *words], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert "Traceback" not in done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["message"] in done.stderr
    assert error["remedy"] in done.stderr
    return done.returncode, error


# Names


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a/b", "can't contain '/'"),
        ("/", "can't contain '/'"),
        (".hidden", "can't start with '.'"),
        ("..", "can't start with '.'"),
        ("-c", "can't start with '-'"),
        ("--help", "can't start with '-'"),
        ("two\nlines", "control characters"),
        ("tab\there", "control characters"),
        ("bell\a", "control characters"),
        ("nul\0", "control characters"),
        ("del\x7f", "control characters"),
        ("next\x85line", "control characters"),
        ("not utf-8 \udcff", "control characters"),
        ("\uffff", "what XML cannot"),
        ("x" * 252, "over 251 bytes"),
        ("é" * 126, "over 251 bytes"),
    ],
    ids=ascii,
)
@pytest.mark.parametrize("how", [{}, {"disk_only": True}, {"no_metadata": True}], ids=str)
def test_a_name(
    name: str, says: str, how: dict[str, bool], made: MadeDomain, tmp_path: Path
) -> None:
    error = refused(tmp_path, BadRequestError, made, name=name, says=["name", says], **how)
    assert error.exit_code == 2


@pytest.mark.parametrize("name", ["x" * 251, "é" * 125, "a b", "1", "a,b", "a-"])
def test_names_that_are_taken(name: str, made: MadeDomain, base: Path) -> None:
    take(made, name=name)
    assert qemu_img("snapshot", "-l", base).count("\n") == 3


def test_a_name_that_is_too_long_for_an_overlay(made: MadeDomain, tmp_path: Path) -> None:
    error = refused(
        *(tmp_path, BadRequestError, made, external()), name="x" * 251, says=["vda", "255 bytes"]
    )
    assert error.exit_code == 2


def test_a_file_name_that_is_too_long(made: MadeDomain, tmp_path: Path) -> None:
    asked = external(file=tmp_path / ("x" * 256))
    error = refused(tmp_path, BadRequestError, made, asked, says=["vda", "File name too long"])
    assert error.exit_code == 2


@pytest.mark.parametrize("name", ["two\nlines", "tab\t", "bell\a", "\udcff", "\uffff"], ids=ascii)
def test_an_overlay_name_that_xml_cannot_hold(name: str, made: MadeDomain, tmp_path: Path) -> None:
    asked = external(file=f"{tmp_path}/{name}")
    refused(tmp_path, BadRequestError, made, asked, says=["vda", "XML cannot hold"])


# What exists already


def test_a_snapshot_s_name(made: MadeDomain, tmp_path: Path) -> None:
    take(made, name="s1")
    error = refused(tmp_path, ExistsError, made, says=["s1", "already exists"])
    assert error.exit_code == 2
    # Its tag is in the image only if it was internal: the record alone is enough.
    qemu_img("snapshot", "-d", "s1", made.image("vda"))
    refused(tmp_path, ExistsError, made, external(), says=["s1", "already exists"])


@pytest.mark.parametrize("asked", [internal(), external()], ids=lambda disk: str(disk.mode))
@pytest.mark.parametrize("name", ["old", "1"], ids=["a tag", "an id"])
def test_an_internal_tag(
    name: str, asked: SnapshotDisk, made: MadeDomain, base: Path, tmp_path: Path
) -> None:
    qemu_img("snapshot", "-c", "old", base)
    refused(tmp_path, ExistsError, made, asked, name=name, says=["vda", repr(name), str(base)])


def test_an_internal_tag_in_a_lower_layer(tmp_path: Path, base: Path) -> None:
    qemu_img("snapshot", "-c", "s1", base)
    top = make_image(tmp_path / "top", size=MIB, backing=base, backing_format=Format.QCOW2)
    made = domain(tmp_path, disk(top))
    refused(tmp_path, ExistsError, made, says=["vda", "'s1'", str(base)])


def _file(path: Path) -> None:
    path.write_bytes(b"somebody's")


def _folder(path: Path) -> None:
    path.mkdir()


def _dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def _link(path: Path) -> None:
    path.symlink_to(path.with_name("disk.qcow2"))


@pytest.mark.parametrize("make", [_file, _folder, _dangling, _link, os.mkfifo])
def test_an_overlay_s_path(make: Callable[[Path], None], made: MadeDomain, tmp_path: Path) -> None:
    make(tmp_path / "disk.s1")
    for asked in (external(), external(file=tmp_path / "disk.s1")):
        words = ["vda", "already exists", str(tmp_path / "disk.s1")]
        refused(tmp_path, ExistsError, made, asked, says=words)


@pytest.mark.parametrize("place", ["same path", "linked folder", "spelled another way"])
def test_two_overlays_of_one_name(place: str, base: Path, tmp_path: Path) -> None:
    other = make_image(tmp_path / "other.qcow2", size=MIB)
    made = domain(tmp_path, disk(base), disk(other, target="vdb"))
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to("a")
    second = {
        "same path": "a/x",
        "linked folder": "b/x",
        "spelled another way": "a/../a/x",
    }[place]
    asked = (external(file=tmp_path / "a/x"), external("vdb", tmp_path / second))
    refused(tmp_path, BadRequestError, made, *asked, says=["vda and vdb would both get"])


@pytest.mark.parametrize("folder", ["gone", "disk.qcow2", "loop", "x" * 300], ids=lambda s: s[:9])
def test_a_folder_that_is_not_there(folder: str, made: MadeDomain, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    asked = external(file=tmp_path / folder / "top")
    words = ["vda", "no such folder", str(tmp_path / folder)]
    refused(tmp_path, BadRequestError, made, asked, says=words)


# Two disks with one file


def _same(file: Path, folder: Path) -> Path:
    return file


def _hard_link(file: Path, folder: Path) -> Path:
    os.link(file, folder / "hard")
    return folder / "hard"


def _symbolic_link(file: Path, folder: Path) -> Path:
    (folder / "soft").symlink_to(file)
    return folder / "soft"


def _upper_layer(file: Path, folder: Path) -> Path:
    return make_image(folder / "upper", size=MIB, backing=file, backing_format=Format.QCOW2)


def _upper_of_a_link(file: Path, folder: Path) -> Path:
    return _upper_layer(_hard_link(file, folder), folder)


@pytest.mark.parametrize(
    "share",
    [_same, _hard_link, _symbolic_link, _upper_layer, _upper_of_a_link],
)
@pytest.mark.parametrize("mode", ["internal", "external", "left out"])
def test_two_disks_with_one_file(
    share: Callable[[Path, Path], Path], mode: str, base: Path, tmp_path: Path
) -> None:
    other = share(base, tmp_path)
    made = domain(tmp_path, disk(base), disk(other, target="vdb"))
    asked = {"internal": (), "external": (external(),), "left out": (skipped("vdb"),)}[mode]
    refused(tmp_path, BadRequestError, made, *asked, says=["vda and vdb use one file", str(base)])


def test_a_shared_file_of_an_unknown_format(base: Path, tmp_path: Path) -> None:
    other = disk(base, target="vdb", format=None, format_name="vpc")
    made = domain(tmp_path, disk(base), other)
    refused(tmp_path, BadRequestError, made, skipped("vdb"), says=["vda and vdb use one file"])


def test_a_shared_file_in_a_chain_that_cannot_be_read(base: Path, tmp_path: Path) -> None:
    """vdb shows a file of vda before its chain ends in an error: there, vda's own is raw."""
    raw = base.with_name("disk.raw")
    base.rename(raw)  # a guest that writes a qcow2 header into its raw disk
    upper = make_image(tmp_path / "upper", size=MIB, backing=raw, backing_format=Format.QCOW2)
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", tmp_path / "gone", raw)
    made = domain(tmp_path, disk(raw, Format.RAW), disk(upper, target="vdb"))
    asked = (external(), skipped("vdb"))
    refused(tmp_path, BadRequestError, made, *asked, says=["vda and vdb use one file"])


def test_a_bind_mount(base: Path, tmp_path: Path) -> None:
    (tmp_path / "bound").touch()
    subprocess.run(["mount", "--bind", base, tmp_path / "bound"], check=True)
    try:
        made = domain(tmp_path, disk(base), disk(tmp_path / "bound", target="vdb"))
        refused(tmp_path, BadRequestError, made, says=["vda and vdb use one file"])
    finally:
        subprocess.run(["umount", tmp_path / "bound"], check=True)


def test_one_block_device_by_two_names(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.write_bytes(bytes(MIB))
    with loop_device(storage) as device:
        (tmp_path / "link").symlink_to(device)
        disks = (disk(device, Format.RAW), disk(tmp_path / "link", Format.RAW, target="vdb"))
        made = domain(tmp_path, *disks)
        asked = (external(file=tmp_path / "a"), external("vdb", tmp_path / "b"))
        refused(tmp_path, BadRequestError, made, *asked, says=["vda and vdb use one file"])


def test_linked_clones_are_no_conflict(base: Path, tmp_path: Path) -> None:
    clones = [
        make_image(tmp_path / name, size=MIB, backing=base, backing_format=Format.QCOW2)
        for name in ("one", "two")
    ]
    take(domain(tmp_path, disk(clones[0]), disk(clones[1], target="vdb")))


# Layers


def _over(folder: Path, lower: str | Path, fmt: str | None = "qcow2") -> MadeDomain:
    top = folder / "top.qcow2"
    recorded = ["-F", fmt] if fmt else []
    qemu_img(
        *("create", "-q", "-u", "-f", "qcow2", "-b", lower, *(recorded or ["-F", "raw"])),
        *(top, str(MIB)),
    )
    if not fmt:
        data = top.read_bytes()
        at = data.index(bytes.fromhex("e2792aca"))  # the extension that holds it
        top.write_bytes(data[:at] + b"none" + data[at + 4 :])
    return domain(folder, disk(top))


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 3))  # like /dev/null


def _nothing(path: Path) -> None:
    assert not path.exists()


def _itself(path: Path) -> None:
    path.symlink_to(path)


def _text(path: Path) -> None:
    path.write_text("no image, but longer than a header would be\n" * 9)


def _loop(path: Path) -> None:
    qemu_img("create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "top.qcow2", path, str(MIB))


NO_IMAGE = "neither a regular file nor a block device"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_nothing, "No such file"),
        (_dangling, "No such file"),
        (_itself, "symbolic links"),
        (os.mkfifo, NO_IMAGE),
        (_socket, NO_IMAGE),
        (_device, NO_IMAGE),
        (_folder, NO_IMAGE),
        (_text, "is not a qcow2 image"),
        (_loop, "the backing chain loops"),
    ],
)
@pytest.mark.parametrize("asked", [internal(), external()], ids=lambda disk: str(disk.mode))
def test_a_lower_layer(
    make: Callable[[Path], None], says: str, asked: SnapshotDisk, tmp_path: Path
) -> None:
    lower = tmp_path / "lower"
    make(lower)
    made = _over(tmp_path, "lower")
    begun = time.monotonic()
    error = refused(tmp_path, ChainError, made, asked, says=["vda", says])
    assert time.monotonic() - begun < 20, "it hung"
    assert error.exit_code == 2
    if make is not _loop:
        assert "lower" in error.message


@pytest.mark.parametrize("make", [_nothing, os.mkfifo, _folder, _device, _text, _itself])
def test_an_active_layer(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "disk.qcow2")
    made = domain(tmp_path, disk(tmp_path / "disk.qcow2"))
    refused(tmp_path, ChainError, made, says=["vda", str(tmp_path / "disk.qcow2")])


@pytest.mark.parametrize("fmt", [Format.QCOW2, Format.QED, Format.VMDK])
def test_a_file_of_another_format(fmt: Format, tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(os.urandom(70000))
    made = domain(tmp_path, disk(tmp_path / "disk", fmt))
    refused(tmp_path, ChainError, made, external(), says=["vda", str(tmp_path / "disk")])


def test_a_format_that_is_recorded_nowhere(base: Path, tmp_path: Path) -> None:
    made = _over(tmp_path, base, None)
    words = ["vda", "top.qcow2", f"the format of its base {base} is not recorded"]
    error = refused(tmp_path, ChainError, made, external(), says=words)
    assert "qemu-img rebase -u" in error.remedy


def test_a_qed_records_no_format(base: Path, tmp_path: Path) -> None:
    top = tmp_path / "top.qed"
    make_image(top, Format.QED, MIB, backing=base, backing_format=Format.QCOW2)
    made = domain(tmp_path, disk(top, Format.QED))
    refused(tmp_path, ChainError, made, external(), says=["vda", "is not recorded"])


def test_an_active_layer_without_driver_type_is_raw(base: Path, tmp_path: Path) -> None:
    """As for libvirt: a qcow2 named so is a raw disk whose guest sees a qcow2 file."""
    made = domain(tmp_path, disk(base))
    made.xml.write_text(
        made.xml.read_text().replace(" type='qcow2'", "").replace(' type="qcow2"', "")
    )
    assert "qcow2'/>" not in made.xml.read_text()
    refused(tmp_path, UnsupportedError, made, says=["vda", "storage type raw"])
    take(made, external())
    assert '"backing-filename-format": "raw"' in qemu_img(
        "info", "--output=json", "-f", "qcow2", tmp_path / "disk.s1"
    )


@pytest.mark.parametrize(
    "name", ["nbd://localhost/x", "json:{}", "file:disk.qcow2", "a:b.qcow2", "ssh://h/x"]
)
def test_a_base_that_is_no_plain_file(name: str, base: Path, tmp_path: Path) -> None:
    made = _over(tmp_path, name)
    words = ["vda", "top.qcow2", repr(name), "not a plain file name"]
    refused(tmp_path, ChainError, made, external(), says=words)


def test_a_base_of_a_format_that_imgtool_does_not_know(base: Path, tmp_path: Path) -> None:
    made = _over(tmp_path, base, "vpc")
    refused(tmp_path, UnsupportedError, made, external(), says=["vda", "its base is a vpc image"])


@pytest.mark.parametrize("depth", [200, 201, 250])
def test_too_deep(depth: int, tmp_path: Path) -> None:
    made = domain(tmp_path, disk(deep(tmp_path, depth)))
    asked = external(file=tmp_path / "top")
    error = refused(tmp_path, ChainError, made, asked, says=["vda", "200 layers deep"])
    assert error.exit_code == 2


def test_201_layers_have_no_internal_snapshot_either(tmp_path: Path) -> None:
    made = domain(tmp_path, disk(deep(tmp_path, 201)))
    refused(tmp_path, ChainError, made, says=["vda", "200 layers deep"])


@pytest.mark.parametrize(("bit", "word"), [(0, "dirty"), (1, "corrupt")])
@pytest.mark.parametrize("where", ["active", "lower"])
@pytest.mark.parametrize("asked", [internal(), external()], ids=lambda disk: str(disk.mode))
def test_a_damaged_image(
    bit: int, word: str, where: str, asked: SnapshotDisk, base: Path, tmp_path: Path
) -> None:
    made = _over(tmp_path, base) if where == "lower" else domain(tmp_path, disk(base))
    with base.open("r+b") as file:
        file.seek(79)
        file.write(bytes([1 << bit]))
    refused(tmp_path, ChainError, made, asked, says=["vda", str(base), f"is marked {word}"])


def test_leaks_and_corruption_that_only_a_check_finds(base: Path, tmp_path: Path) -> None:
    """A reference count that is too low: staging checks, so an internal snapshot is refused."""
    made = domain(tmp_path, disk(base))
    with base.open("r+b") as file:
        file.seek(int.from_bytes(base.read_bytes()[48:56], "big"))
        block = int.from_bytes(file.read(8), "big")
        file.seek(block)
        file.write(bytes(2))  # the header's own
    before = base.read_bytes()
    with pytest.raises(FailedError, match="vda"):
        take(made)
    assert base.read_bytes() == before


def test_a_data_file(tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={path}.data", path, str(MIB))
    made = domain(tmp_path, disk(path))
    for asked in (internal(), external()):
        refused(tmp_path, UnsupportedError, made, asked, says=["vda", str(path), "external file"])


@pytest.mark.parametrize("method", ["luks", "aes"])
def test_an_encrypted_qcow2(method: str, tmp_path: Path) -> None:
    path = tmp_path / "disk.qcow2"
    options = "encrypt.format=aes,encrypt.key-secret=s"
    secret = ("--object", "secret,id=s,data=x")
    qemu_img("create", "-q", *secret, "-f", "qcow2", "-o", options, path, str(MIB))
    if method == "luks":  # whose keys QEMU takes seconds to make: the header's word is enough
        with path.open("r+b") as file:
            file.seek(32)
            file.write(bytes([0, 0, 0, 2]))
    made = domain(tmp_path, disk(path))
    for asked in (internal(), external()):
        refused(tmp_path, UnsupportedError, made, asked, says=["vda", str(path), "is encrypted"])


def test_a_layer_that_may_not_be_read() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        folder = Path(name)
        lower = make_image(folder / "lower", size=MIB)
        made = _over(folder, lower)
        lower.chmod(0)
        for path in (folder, made.folder, made.xml, folder / "top.qcow2"):
            os.chown(path, SOMEBODY, THEIR_GROUP)
        before = digest(folder)
        with being(SOMEBODY, THEIR_GROUP), pytest.raises(ChainError) as raised:
            take(made, external())
        assert digest(folder) == before
        for word in ("vda", str(lower), "Permission denied"):
            assert word in raised.value.message


# Kinds of disks

DRIVER = "<driver name='qemu' type='qcow2'/>"
TARGET = "<target dev='vda'/>"


def _disk(more: str = "", attributes: str = "type='file' device='disk'", source: str = "") -> str:
    source = source or "<source file='{base}'/>"
    return f"<disk {attributes}>{DRIVER}{source}{TARGET}{more}</disk>"


NETWORK = "type='network' device='disk'"
NVME = "<source type='pci' managed='yes' namespace='1'><address domain='0x0000'/></source>"
KINDS = {
    "network": (
        _disk(attributes=NETWORK, source="<source protocol='nbd' name='x'/>"),
        "network (nbd)",
    ),
    "rbd": (_disk(attributes=NETWORK, source="<source protocol='rbd' name='p/x'/>"), "(rbd)"),
    "vhostuser": (
        _disk(
            attributes="type='vhostuser' device='disk'",
            source="<source type='unix' path='/run/x.sock'/>",
        ),
        "vhostuser",
    ),
    "vhostvdpa": (
        _disk(attributes="type='vhostvdpa' device='disk'", source="<source dev='/dev/vhost'/>"),
        "vhostvdpa",
    ),
    "nvme": (_disk(attributes="type='nvme' device='disk'", source=NVME), "nvme"),
    "dir": (_disk(attributes="type='dir' device='disk'", source="<source dir='/tmp'/>"), "dir"),
    "volume": (
        _disk(
            attributes="type='volume' device='disk'", source="<source pool='default' volume='x'/>"
        ),
        "volume x of pool default",
    ),
    "transient": (_disk("<transient/>"), "transient"),
    "shareable": (_disk("<shareable/>"), "shareable"),
    "LUKS": (
        _disk("<encryption format='luks'><secret type='passphrase' uuid='{uuid}'/></encryption>"),
        "encrypted",
    ),
    "LUKS in source": (
        _disk(source="<source file='{base}'><encryption format='luks'/></source>"),
        "encrypted",
    ),
    "sliced": (
        _disk(
            source="<source file='{base}'><slices><slice type='storage' offset='0' size='512'/>"
            "</slices></source>"
        ),
        "slices",
    ),
    "lun": (_disk(attributes="type='file' device='lun'"), "lun"),
    "unknown format": (_disk().replace("qcow2", "vpc"), "format vpc"),
    "manual": (_disk(attributes="type='file' device='disk' snapshot='manual'"), "manual"),
}
ONLY_IF_ASKED = {
    "readonly": (_disk("<readonly/>"), "read-only"),
    "cdrom": (_disk(attributes="type='file' device='cdrom'"), "cannot change"),
    "empty": (_disk(attributes="type='file' device='disk'", source=" "), "empty"),
    "empty cdrom": (_disk(attributes="type='file' device='cdrom'", source=" "), "empty"),
}


def _domain(folder: Path, text: str, base: Path) -> MadeDomain:
    made = domain(folder, disk(make_image(folder / "vdb.qcow2", size=MIB), target="vdb"))
    element = text.format(base=base, uuid="0a8cbcf4-7f1c-5f6e-9c39-3c5f6d1f7b11")
    xml = made.xml.read_text().replace("<devices>", f"<devices>{element}")
    made.xml.write_text(xml)
    return made


@pytest.mark.parametrize(("text", "says"), KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("asked", [None, internal(), external()], ids=["default", "int", "ext"])
def test_a_kind_of_disk(
    text: str, says: str, asked: SnapshotDisk | None, base: Path, tmp_path: Path
) -> None:
    made = _domain(tmp_path, text, base)
    if asked is not None and says == "manual":
        return  # what is asked for counts, not the domain's own default
    error = refused(
        tmp_path, UnsupportedError, made, *([asked] if asked else []), says=["vda", says]
    )
    assert error.exit_code == 2


@pytest.mark.parametrize(("text", "says"), ONLY_IF_ASKED.values(), ids=ONLY_IF_ASKED.keys())
@pytest.mark.parametrize("asked", [internal(), external()], ids=lambda disk: str(disk.mode))
def test_a_kind_of_disk_that_is_left_alone_by_default(
    text: str, says: str, asked: SnapshotDisk, base: Path, tmp_path: Path
) -> None:
    made = _domain(tmp_path, text, base)
    refused(tmp_path, UnsupportedError, made, asked, says=["vda", says])
    take(made)


@pytest.mark.parametrize("kind", [*KINDS, *ONLY_IF_ASKED])
def test_every_kind_of_disk_can_be_left_out(kind: str, base: Path, tmp_path: Path) -> None:
    made = _domain(tmp_path, (KINDS | ONLY_IF_ASKED)[kind][0], base)
    result = take(made, skipped("vda"))
    assert {each.target: each.mode for each in result.disks} == {"vda": "no", "vdb": "internal"}


@pytest.mark.parametrize("fmt", [Format.RAW, Format.QED, Format.VMDK])
def test_internal_snapshots_are_for_qcow2(fmt: Format, tmp_path: Path) -> None:
    made = domain(tmp_path, disk(make_image(tmp_path / "disk", fmt, MIB), fmt))
    error = refused(tmp_path, UnsupportedError, made, says=["vda", f"storage type {fmt}"])
    assert "external" in error.remedy


# Requests


@pytest.mark.parametrize(
    ("asked", "kind", "says"),
    [
        ([external("vdz")], NotFoundError, "no disk named 'vdz'"),
        ([external("/gone.qcow2")], NotFoundError, "no disk named '/gone.qcow2'"),
        ([external(), internal()], BadRequestError, "'vda' specified twice"),
        ([external(file="relative")], UnsupportedError, "vda: disk snapshot image path"),
        ([external(driver="qed")], UnsupportedError, "vda: an overlay of format qed"),
        ([skipped("vda")], BadRequestError, "nothing to snapshot"),
        (
            [SnapshotDisk(name="vda", mode=internal().mode, source="/x")],
            BadRequestError,
            "external",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_request(
    asked: list[SnapshotDisk],
    kind: type[BadRequestError],
    says: str,
    made: MadeDomain,
    tmp_path: Path,
) -> None:
    refused(tmp_path, kind, made, *asked, says=[says])


def test_no_name_is_made_for_a_block_device(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.write_bytes(bytes(MIB))
    with loop_device(storage) as device:
        made = domain(tmp_path, disk(device, Format.RAW))
        refused(tmp_path, UnsupportedError, made, external(), says=["vda", "not a regular file"])
        made = domain(tmp_path, disk(device, Format.RAW, type="file"))
        refused(tmp_path, UnsupportedError, made, external(), says=["vda", "not a regular file"])


BOMB = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 20))
HOSTILE = {
    "doctype": "<!DOCTYPE domain><domain><name>vm</name></domain>",
    "external entity": '<!DOCTYPE domain [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<domain><name>&x;</name></domain>",
    "bomb": f'<!DOCTYPE domain [<!ENTITY a0 "x">{BOMB}]><domain><name>&a19;</name></domain>',
    "deep": f"{'<domain>' * 5000}{'</domain>' * 5000}",
    "utf-16": '<?xml version="1.0" encoding="UTF-16"?><domain/>',
    "latin-1": '<?xml version="1.0" encoding="ISO-8859-1"?><domain><name>vm</name></domain>',
    "not well-formed": "<domain><name>vm</domain>",
    "empty": "",
    "another document": "<network><name>vm</name></network>",
    "no name": "<domain/>",
    "huge": f"<domain><name>vm</name><!--{'x' * (16 << 20)}--></domain>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_domain_xml(kind: str, made: MadeDomain, tmp_path: Path) -> None:
    made.xml.write_text(HOSTILE[kind])
    before = digest(tmp_path)
    begun = time.monotonic()
    with pytest.raises(ImgtoolError) as raised:
        take(made)
    assert time.monotonic() - begun < 20
    assert digest(tmp_path) == before
    assert raised.value.exit_code in (1, 2)
    assert "vm" in raised.value.message


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_snapshot_xml(kind: str, made: MadeDomain, tmp_path: Path) -> None:
    request = tmp_path / "request.xml"
    text = (
        HOSTILE[kind].replace("domain>", "domainsnapshot>").replace("domain [", "domainsnapshot [")
    )
    if kind == "no name":
        text = "<domainsnapshot><disks><disk snapshot='no'/></disks></domainsnapshot>"
    request.write_text(text)
    before = digest(tmp_path)
    command = [sys.executable, "-m", "imgtool", "-c", made.uri, "--json", "snapshot-create", "vm"]
    done = subprocess.run(
        [*command, str(request)], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert digest(tmp_path) == before
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads(done.stdout)["error"]["type"] in (XmlError.__name__, BadRequestError.__name__)


# Space, and other people


@pytest.mark.parametrize("size", ["64k", "256k"])
def test_too_little_space_for_an_overlay(size: str, made: MadeDomain, tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "small", f"size={size}") as small:
        asked = external(file=small / "top")
        words = ["vda", str(small), "bytes are needed"]
        error = refused(tmp_path, FailedError, made, asked, says=words)
        assert error.exit_code == 1
        assert list(small.iterdir()) == []


def test_overlays_share_what_is_free(base: Path, tmp_path: Path) -> None:
    """Each would fit by itself."""
    other = make_image(tmp_path / "other.qcow2", size=MIB)
    made = domain(tmp_path, disk(base), disk(other, target="vdb"))
    with mounted("tmpfs", tmp_path / "small", "size=400k") as small:
        asked = (external(file=small / "a"), external("vdb", small / "b"))
        refused(tmp_path, FailedError, made, *asked, says=["vdb", "bytes are needed"])
        take(made, asked[0], skipped("vdb"))


def test_too_little_space_to_stage(tmp_path: Path) -> None:
    """The state folder lies beside the domain's XML."""
    with mounted("tmpfs", tmp_path / "store", "size=256k"):
        image = make_image(tmp_path / "disk.qcow2", size=64 * MIB, options="preallocation=metadata")
        made = domain(tmp_path, disk(image))
        refused(tmp_path, FailedError, made, says=["vda", "bytes are needed"])


def test_an_image_that_somebody_writes(made: MadeDomain, base: Path, tmp_path: Path) -> None:
    command = ["qemu-io", "-f", "qcow2", str(base)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        assert writer.stdout is not None
        assert writer.stdout.read(8) == b"qemu-io>"
        for asked in (internal(), external()):
            error = refused(tmp_path, ImageInUseError, made, asked, says=["vda", str(base)])
            assert error.exit_code == 3
        writer.stdin.close()
    take(made)


# As a script sees it


@pytest.mark.parametrize(
    ("words", "code", "kind", "says"),
    [
        (["a/b"], 2, "BadRequestError", "can't contain '/'"),
        (["s1", "--diskspec", "vdz"], 2, "NotFoundError", "vdz"),
        (["taken"], 2, "ExistsError", "already exists"),
        (["s1", "--diskspec", "vda,file=/nonexistent/x"], 2, "BadRequestError", "no such folder"),
        (["s1", "--diskspec", "vda,snapshot=bogus"], 2, "XmlError", "bogus"),
        (["s1", "--memspec", "/memory"], 2, "BadRequestError", "no memory to save"),
        (["s1", "--reuse-external", "--disk-only"], 2, "BadRequestError", "missing existing file"),
        (["s1", "--quiesce"], 2, "BadRequestError", "--quiesce"),
        (["s1", "--live"], 2, "BadRequestError", "--live"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_the_command_line(
    words: list[str], code: int, kind: str, says: str, made: MadeDomain, tmp_path: Path
) -> None:
    take(made, name="taken")
    before = digest(tmp_path)
    exit_code, error = _command(made, *words)
    assert digest(tmp_path) == before
    assert (exit_code, error["type"]) == (code, kind), error
    assert says in error["message"]


def test_the_state_folder_of_a_refusal_is_gone(made: MadeDomain) -> None:
    with api.open_world(made.uri) as world:
        state = world.state_dir
    with pytest.raises(NotFoundError):
        take(made, external("vdz"))
    assert not state.exists()
