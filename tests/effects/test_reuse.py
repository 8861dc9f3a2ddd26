"""--reuse-external: what fits is taken as it is, and what does not is told why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.model.errors import BadRequestError, ChainError, ExistsError, UnsupportedError
from imgtool.model.image import Format
from imgtool.testing import MIB, MadeDomain, make_image, qemu_io, write_pattern

from .asking import (
    chain,
    disk,
    domain,
    external,
    internal,
    loop_device,
    named,
    qemu_img,
    refused,
    take,
)

SIZE = 2 * MIB


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = make_image(tmp_path / "disk.qcow2", size=SIZE)
    write_pattern(path, Format.QCOW2, 0, 4096, 1)
    return path


@pytest.fixture
def made(tmp_path: Path, base: Path) -> MadeDomain:
    return domain(tmp_path, disk(base))


def _prepare(path: Path, base: str | Path, *, size: int = SIZE, fmt: str = "qcow2") -> Path:
    qemu_img(
        *("create", "-q", "-u", "-f", "qcow2", "-b", base, "-F", fmt, path, str(size)),
    )
    return path


@pytest.mark.parametrize("how", ["absolute", "relative", "through a link", "with ./", "with .."])
def test_what_fits(how: str, made: MadeDomain, base: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(base)
    name = {
        "absolute": str(base),
        "relative": "disk.qcow2",
        "through a link": "link",
        "with ./": "./disk.qcow2",
        "with ..": "sub/../disk.qcow2",
    }[how]
    top = _prepare(tmp_path / "top.qcow2", name)
    before = top.read_bytes()
    result = take(made, external(file=top), reuse_external=True)
    assert top.read_bytes() == before
    assert result.disks[0].overlay == top
    now = named(made)
    assert (now.type, now.source, now.format) == ("file", top, Format.QCOW2)
    assert [os.path.realpath(layer) for layer in chain(top)] == [str(top), str(base)]


def test_the_generated_name_is_looked_for_too(made: MadeDomain, base: Path, tmp_path: Path) -> None:
    top = _prepare(tmp_path / "disk.s1", base)
    take(made, external(), reuse_external=True)
    assert named(made).source == top


def test_over_raw(tmp_path: Path) -> None:
    base = tmp_path / "disk.raw"
    base.write_bytes(bytes(1000))
    made = domain(tmp_path, disk(base, Format.RAW))
    top = _prepare(tmp_path / "top.qcow2", base, size=1024, fmt="raw")
    take(made, external(file=top), reuse_external=True)
    assert named(made).source == top


@pytest.mark.parametrize("stype", ["file", "block"])
def test_on_a_block_device(stype: str, made: MadeDomain, base: Path, tmp_path: Path) -> None:
    """libvirt starts a domain on it only if its disk is type='block'."""
    storage = tmp_path / "storage"
    storage.write_bytes(bytes(4 * MIB))
    with loop_device(storage) as device:
        _prepare(device, base)
        take(made, external(file=device, type=stype), reuse_external=True)
        now = named(made)
        assert (now.type, now.source, now.format) == ("block", device, Format.QCOW2)
        (record,) = (made.folder / ".imgtool").glob("*/snapshots/s1.xml")
        assert f"dev='{device}'" in record.read_text().replace('"', "'")
        assert chain(device) == [str(device), str(base)]
        take(made, internal(), name="s2")
        assert "s2" in qemu_img("snapshot", "-l", device)


def test_an_overlay_without_reuse_would_overwrite_a_block_device(
    made: MadeDomain, tmp_path: Path
) -> None:
    storage = tmp_path / "storage"
    storage.write_bytes(bytes(MIB))
    with loop_device(storage) as device:
        asked = external(file=device, type="block")
        refused(tmp_path, BadRequestError, made, asked, says=["vda", "block device"])
        refused(tmp_path, ExistsError, made, external(file=device), says=["vda", str(device)])


def _smaller(top: Path, base: Path) -> None:
    _prepare(top, base, size=SIZE - 512)


def _larger(top: Path, base: Path) -> None:
    _prepare(top, base, size=SIZE + MIB)


def _no_base(top: Path, base: Path) -> None:
    make_image(top, size=SIZE)


def _another_base(top: Path, base: Path) -> None:
    other = shutil.copy(base, base.with_name("other.qcow2"))
    _prepare(top, other)


def _base_of_base(top: Path, base: Path) -> None:
    make_image(top.with_name("lower.qcow2"), size=SIZE)
    _prepare(top, top.with_name("lower.qcow2"))
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", top.with_name("lower.qcow2"), base)


def _missing_base(top: Path, base: Path) -> None:
    _prepare(top, "gone.qcow2")


def _fifo_base(top: Path, base: Path) -> None:
    os.mkfifo(top.with_name("pipe"))
    _prepare(top, "pipe")


def _wrong_format(top: Path, base: Path) -> None:
    _prepare(top, base, fmt="raw")


def _itself(top: Path, base: Path) -> None:
    os.link(base, top)


def _data(top: Path, base: Path) -> None:
    _prepare(top, base)
    write_pattern(top, Format.QCOW2, MIB, 4096, 2)


def _zeros(top: Path, base: Path) -> None:
    _prepare(top, base)
    qemu_io(top, Format.QCOW2, "write -q -z 0 64k")


def _no_format(top: Path, base: Path) -> None:
    _prepare(top, base)
    _forget_format(top)


def _corrupt(top: Path, base: Path) -> None:
    _prepare(top, base)
    _set_feature(top, 1)


def _raw(top: Path, base: Path) -> None:
    top.write_bytes(bytes(SIZE))


def _a_folder(top: Path, base: Path) -> None:
    top.mkdir()


def _a_pipe(top: Path, base: Path) -> None:
    os.mkfifo(top)


def _dangling(top: Path, base: Path) -> None:
    top.symlink_to("nowhere")


def _nothing(top: Path, base: Path) -> None:
    assert not top.exists()


def _protocol(top: Path, base: Path) -> None:
    _prepare(top, "nbd://localhost/x")


def _json_name(top: Path, base: Path) -> None:
    _prepare(top, f'json:{{"file.filename":"{base}"}}')


def _data_file(top: Path, base: Path) -> None:
    qemu_img(
        *("create", "-q", "-f", "qcow2", "-o", f"data_file={top}.data"),
        *("-F", "qcow2", "-b", base, top, str(SIZE)),
    )


def _encrypted(top: Path, base: Path) -> None:
    secret = "secret,id=s,data=x"
    qemu_img(
        *("create", "-q", "-f", "qcow2", "--object", secret),
        *("-o", "encrypt.format=aes,encrypt.key-secret=s"),
        *("-F", "qcow2", "-b", base, top, str(SIZE)),
    )


def _same_tag(top: Path, base: Path) -> None:
    _prepare(top, base)
    qemu_img("snapshot", "-c", "s1", top)


def _set_feature(image: Path, bit: int) -> None:
    with image.open("r+b") as file:
        file.seek(79)
        file.write(bytes([1 << bit]))


@pytest.mark.parametrize(
    ("spoil", "kind", "says"),
    [
        (_smaller, BadRequestError, f"shows {SIZE - 512} bytes, the disk {SIZE}"),
        (_larger, BadRequestError, f"shows {SIZE + MIB} bytes, the disk {SIZE}"),
        (_no_base, BadRequestError, "has no base; it should be"),
        (_another_base, BadRequestError, "not the disk's image"),
        (_base_of_base, BadRequestError, "not the disk's image"),
        (_missing_base, BadRequestError, "has base gone.qcow2, not the disk's image"),
        (_fifo_base, BadRequestError, "has base pipe, not the disk's image"),
        (_wrong_format, BadRequestError, "records format raw of its base, not qcow2"),
        (_no_format, BadRequestError, "records format none of its base, not qcow2"),
        (_itself, BadRequestError, "is the disk's image itself"),
        (_data, BadRequestError, "has data of its own"),
        (_zeros, BadRequestError, "has data of its own"),
        (_corrupt, ChainError, "is marked corrupt"),
        (_raw, ChainError, "is not a qcow2 image"),
        (_a_folder, ChainError, "is neither a regular file nor a block device"),
        (_a_pipe, ChainError, "is neither a regular file nor a block device"),
        (_dangling, ChainError, "No such file"),
        (_nothing, BadRequestError, "missing existing file for disk vda"),
        (_protocol, ChainError, "'nbd://localhost/x' is not a plain file name"),
        (_json_name, ChainError, "is not a plain file name"),
        (_data_file, UnsupportedError, "keeps its data in an external file"),
        (_encrypted, UnsupportedError, "is encrypted"),
        (_same_tag, ExistsError, "has an internal snapshot 's1' already"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else None,
)
def test_what_does_not_fit(
    spoil: Callable[[Path, Path], None],
    kind: type[BadRequestError],
    says: str,
    made: MadeDomain,
    base: Path,
    tmp_path: Path,
) -> None:
    top = tmp_path / "top.qcow2"
    spoil(top, base)
    refused(
        *(tmp_path, kind, made, external(file=top)),
        says=["vda", str(top), says],
        reuse_external=True,
    )


@pytest.mark.parametrize("spoil", [_data, _zeros])
def test_force_accepts_data(
    spoil: Callable[[Path, Path], None], made: MadeDomain, base: Path, tmp_path: Path
) -> None:
    top = tmp_path / "top.qcow2"
    spoil(top, base)
    take(made, external(file=top), reuse_external=True, force=True)
    assert named(made).source == top


@pytest.mark.parametrize(
    ("spoil", "says"),
    [(_smaller, "bytes"), (_another_base, "not the disk's image"), (_wrong_format, "raw")],
)
def test_force_accepts_nothing_else(
    spoil: Callable[[Path, Path], None],
    says: str,
    made: MadeDomain,
    base: Path,
    tmp_path: Path,
) -> None:
    top = tmp_path / "top.qcow2"
    spoil(top, base)
    asked = external(file=top)
    refused(tmp_path, BadRequestError, made, asked, says=[says], reuse_external=True, force=True)


def test_a_base_without_format_is_not_probed(tmp_path: Path) -> None:
    """What a guest wrote at the start of its raw disk must not make QEMU open another file."""
    raw = tmp_path / "disk.raw"
    _prepare(raw, "/nonexistent/secret", fmt="raw")  # whoever takes it for a qcow2 stumbles
    made = domain(tmp_path, disk(raw, Format.RAW))
    top = tmp_path / "top.qcow2"
    _prepare(top, raw, size=raw.stat().st_size)
    _forget_format(top)
    asked = external(file=top)
    refused(tmp_path, BadRequestError, made, asked, says=["format none"], reuse_external=True)


def _forget_format(top: Path) -> None:
    data = top.read_bytes()
    at = data.index(bytes.fromhex("e2792aca"))  # the extension that holds it
    top.write_bytes(data[:at] + b"none" + data[at + 4 :])
