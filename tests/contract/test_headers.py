"""Our own reading of image headers against the real qemu-img, and against hostile bytes."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from imgtool.engine import redo
from imgtool.host.extents import allocated
from imgtool.host.files import Files
from imgtool.host.headers import parse_info, read_image, read_inode
from imgtool.host.qcow2 import is_corrupt
from imgtool.host.qemu_img import QemuImg
from imgtool.model.errors import ChainError, QemuImgError, UnsupportedError
from imgtool.model.image import Format, Image, Qcow2Features
from imgtool.testing.images import KIB, MIB, make_image, qemu_io, write_pattern
from imgtool.testing.strategies import ImageDraft, images, names

LIVELY = settings(max_examples=60, deadline=None)


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def info(path: Path, fmt: Format) -> dict[str, Any]:
    facts = json.loads(QemuImg().info_json(path, fmt))
    assert isinstance(facts, dict)
    return facts


def assert_as_qemu_says(image: Image, facts: dict[str, Any]) -> None:
    data = facts.get("format-specific", {}).get("data", {})
    assert image.format == facts["format"]
    assert image.virtual_size == facts["virtual-size"]
    assert image.allocation == facts["actual-size"]
    assert image.backing == facts.get("backing-filename")
    assert image.backing_format == facts.get("backing-filename-format")
    assert image.dirty == facts["dirty-flag"]
    assert image.encrypted == facts.get("encrypted", False)
    assert [(one.id, one.tag, one.created, one.vm_state_size) for one in image.snapshots] == [
        (one["id"], one["name"], one["date-sec"], one["vm-state-size"])
        for one in facts.get("snapshots", [])
    ]
    if image.format is not Format.QCOW2:
        assert image.features is None
        return
    assert image.corrupt == data.get("corrupt", False)
    assert image.data_file == ("data-file" in data)
    assert list(image.bitmaps) == [bitmap["name"] for bitmap in data.get("bitmaps", [])]
    assert image.features == Qcow2Features(
        cluster_size=facts["cluster-size"],
        compat=data["compat"],
        extended_l2=data.get("extended-l2", False),
        lazy_refcounts=data.get("lazy-refcounts", False),
        refcount_bits=data["refcount-bits"],
    )


def tags() -> st.SearchStrategy[str]:
    return names().filter(lambda tag: all(map(is_printed_whole, tag)))


def is_printed_whole(letter: str) -> bool:
    """qemu-img prints U+FFFD for what is no UTF-8, and for noncharacters."""
    point = ord(letter)
    broken = 0xD800 <= point <= 0xDFFF
    return not (broken or point & 0xFFFE == 0xFFFE or 0xFDD0 <= point <= 0xFDEF)


@LIVELY
@given(
    spec=images(),
    name=names(),
    snapshots=st.lists(tags(), max_size=2),
    bitmaps=st.lists(tags(), max_size=2, unique=True),
    prealloc=st.sampled_from(("", "preallocation=metadata")),
)
@example(
    spec=ImageDraft(format=Format.RAW, size=512), name="\n", snapshots=[], bitmaps=[], prealloc=""
)
def test_an_image_is_read_as_qemu_reads_it(
    spec: ImageDraft, name: str, snapshots: list[str], bitmaps: list[str], prealloc: str
) -> None:
    features = spec.features
    extended = features is not None and features.extended_l2
    options = prealloc if features and not extended else ""
    with folder() as parent:
        path = parent / name
        make_image(path, spec.format, spec.size, features=features, options=options)
        if spec.format is Format.QCOW2 and features and features.refcount_bits > 1:
            for tag in snapshots:
                QemuImg().run("snapshot", "-c", tag, path)
        if features and features.compat == "1.1":
            for bitmap in bitmaps:
                QemuImg().run("bitmap", "--add", "-f", "qcow2", "--", path, bitmap)
        facts = info(path, spec.format)
        if spec.format is Format.VMDK:
            image = parse_info(json.dumps(facts).encode(), path, read_inode(path))
        else:
            image = read_image(path, spec.format)
        assert_as_qemu_says(image, facts)


@LIVELY
@given(
    spec=images(),
    base_name=tags(),
    relative=st.booleans(),
    fmt=st.sampled_from((Format.QCOW2, Format.QED)),
)
def test_a_backing_file_is_recorded_as_qemu_recorded_it(
    spec: ImageDraft, base_name: str, relative: bool, fmt: Format
) -> None:
    with folder() as parent:
        base = make_image(parent / base_name, spec.format, spec.size, features=spec.features)
        backing = f"./{base_name}" if relative else str(base)
        overlay = parent / "overlay of"
        make_image(overlay, fmt, 64 * KIB, backing=backing, backing_format=spec.format)
        image = read_image(overlay, fmt)
        assert image.backing == backing
        # qed records only whether its base is raw
        recorded = spec.format if fmt is Format.QCOW2 or spec.format is Format.RAW else None
        assert image.backing_format == recorded
        assert_as_qemu_says(image, info(overlay, fmt))


def test_a_raw_file_that_ends_inside_a_sector_is_rounded_up_as_by_qemu(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 1000)
    assert read_image(path, Format.RAW).virtual_size == info(path, Format.RAW)["virtual-size"]


@pytest.mark.parametrize(
    "options", ["compression_type=zstd", "preallocation=full", "data_file={folder}/data"]
)
def test_a_feature_is_read_as_qemu_reads_it(tmp_path: Path, options: str) -> None:
    path = make_image(tmp_path / "q", options=options.format(folder=tmp_path))
    assert_as_qemu_says(read_image(path, Format.QCOW2), info(path, Format.QCOW2))


def test_an_encrypted_image_is_told(tmp_path: Path) -> None:
    secret, options = "secret,id=s,data=12345678", "encrypt.format=aes,encrypt.key-secret=s"
    path = tmp_path / "aes"
    QemuImg().run("create", "-q", "-f", "qcow2", "--object", secret, "-o", options, path, "1M")
    image = read_image(path, Format.QCOW2)
    assert image.encrypted
    assert_as_qemu_says(image, info(path, Format.QCOW2))
    # LUKS takes a benchmark to create, which fails on a busy machine: its number will do.
    assert read_image(patched(path, 32, b"\0\0\0\2"), Format.QCOW2).encrypted


def test_vmdk_in_two_files_has_a_data_file(tmp_path: Path) -> None:
    path = make_image(tmp_path / "v", Format.VMDK, options="subformat=twoGbMaxExtentSparse")
    with pytest.raises(UnsupportedError):
        read_image(path, Format.VMDK)
    image = parse_info(QemuImg().info_json(path, Format.VMDK), path, read_inode(path))
    assert image.data_file
    assert image.virtual_size == 8 * MIB


@pytest.mark.parametrize(
    "info_bytes",
    [b"", b"[]", b"{}", b"[" * 100_000, b'{"format":"vmdk","virtual-size":-1}', b"\xff"],
)
def test_strange_info_is_a_chain_error(tmp_path: Path, info_bytes: bytes) -> None:
    path = make_image(tmp_path / "v", Format.VMDK)
    with pytest.raises(ChainError):
        parse_info(info_bytes, path, read_inode(path))


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_link(path: Path) -> None:
    path.symlink_to(make_image(path.with_name("aim")))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [Path.mkdir, make_fifo, make_socket, make_link, lambda path: None])
@pytest.mark.parametrize("fmt", [Format.RAW, Format.QCOW2, Format.QED])
def test_what_is_no_image_file_is_refused_at_once(
    tmp_path: Path, make: Callable[[Path], None], fmt: Format
) -> None:
    make(tmp_path / "it")
    with pytest.raises(ChainError, match=r"it: (is neither|cannot be opened)"):
        read_image(tmp_path / "it", fmt)


def test_a_character_device_is_refused() -> None:
    with pytest.raises(ChainError, match="is neither"):
        read_image(Path("/dev/zero"), Format.RAW)


@pytest.mark.parametrize("fmt", [Format.QCOW2, Format.QED])
def test_another_format_is_refused(tmp_path: Path, fmt: Format) -> None:
    path = make_image(tmp_path / "raw", Format.RAW)
    with pytest.raises(ChainError, match=f"raw: is not a {fmt} image") as caught:
        read_image(path, fmt)
    assert caught.value.remedy


def test_a_relative_path_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="not absolute"):
        read_image(Path("disk.qcow2"), Format.QCOW2)


def patched(path: Path, offset: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return path


@pytest.mark.parametrize(
    ("offset", "data", "said"),
    [
        (4, b"\0\0\0\4", "version 4"),
        (8, b"\0\0\0\1\0\0\0\0", "backing file name lies outside"),
        (20, b"\0\0\0\x08", "cluster_bits is 8"),
        (20, b"\0\0\0\x16", "cluster_bits is 22"),
        (24, b"\x7f" + b"\xff" * 7, "virtual size"),
        (24, b"\x00\xff" + b"\0" * 6, "L1 table is too small"),
        (32, b"\0\0\0\3", "encryption method 3"),
        (36, b"\x01\0\0\0", "16777216 entries is too large"),
        (36, b"\0\x10\0\0", "L1 table lies outside"),
        (40, b"\0\0\0\0\0\1\0\1", "not aligned"),
        (40, b"\0\0\1\0\0\0\0\0", "L1 table lies outside"),
        (60, b"\0\1\0\1", "65537 snapshots"),
        (60, b"\0\0\0\1\0\0\0\1\0\0\0\0", "snapshot table lies outside"),
        (72, b"\0\0\0\0\0\0\0\x20", "unknown incompatible features 0x20"),
        (72, b"\x80\0\0\0\0\0\0\0", "unknown incompatible features 0x8000000000000000"),
        (96, b"\0\0\0\7", "refcount_order is 7"),
        (100, b"\0\0\0\x48", "72 bytes long"),
        (100, b"\0\1\0\1", "65537 bytes long"),
        (116, b"\0\1\0\0", "is too long"),  # length of the first header extension
    ],
)
def test_a_header_that_lies_is_refused_with_the_reason(
    tmp_path: Path, offset: int, data: bytes, said: str
) -> None:
    path = patched(make_image(tmp_path / "q"), offset, data)
    with pytest.raises(ChainError, match=said):
        read_image(path, Format.QCOW2)


def test_a_nul_in_a_backing_name_cannot_hide_what_follows(tmp_path: Path) -> None:
    make_image(tmp_path / "base", Format.RAW)
    path = make_image(tmp_path / "q", backing=tmp_path / "base", backing_format=Format.RAW)
    at = path.read_bytes().index(bytes(tmp_path / "base"))
    with pytest.raises(ChainError, match="NUL"):
        read_image(patched(path, at + 3, b"\0"), Format.QCOW2)


@pytest.mark.parametrize("name", ["data", "with,comma"])
def test_the_corrupt_bit_is_set_and_cleared_and_nothing_else(tmp_path: Path, name: str) -> None:
    path = make_image(tmp_path / name, features=Qcow2Features(extended_l2=True))
    before = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for _ in range(2):
            redo.mark(file.fileno(), Files())
        assert is_corrupt(file.fileno())
        assert info(path, Format.QCOW2)["format-specific"]["data"]["corrupt"] is True
        assert read_image(path, Format.QCOW2).corrupt
        with pytest.raises(AssertionError, match="corrupt"):
            write_pattern(path, Format.QCOW2, 0, 512, 1)
        for _ in range(2):
            redo.unblock(file.fileno(), Files())
        assert not is_corrupt(file.fileno())
    assert path.read_bytes() == before


def test_the_corrupt_bit_is_looked_for_only_where_there_can_be_one(tmp_path: Path) -> None:
    old = make_image(tmp_path / "old", features=Qcow2Features(compat="0.10"))
    raw = make_image(tmp_path / "raw", Format.RAW)
    with old.open("r+b") as file:
        assert not is_corrupt(file.fileno())
    with raw.open("r+b") as file, pytest.raises(ChainError, match="not a qcow2"):
        is_corrupt(file.fileno())


@st.composite
def writes(draw: st.DrawFn, size: int) -> list[str]:
    def one() -> str:
        offset = draw(st.integers(0, size // 512 - 1))
        length = draw(st.integers(1, min(size // 512 - offset, 600)))
        command = draw(
            st.sampled_from(("write -q -P 65", "write -q -z", "write -q -zu", "discard -q"))
        )
        return f"{command} {offset * 512} {length * 512}"

    return [one() for _ in range(draw(st.integers(0, 12)))]


def mapped(path: Path) -> list[tuple[int, int, int | None]]:
    """(offset, length, host offset of data) of what this layer decides, merged."""
    ranges: list[tuple[int, int, int | None]] = []
    for entry in json.loads(QemuImg().run("map", "--output=json", "-f", "qcow2", path)):
        if entry["depth"] or not entry["present"]:
            continue
        start, length = entry["start"], entry["length"]
        host = entry["offset"] if entry["data"] else None
        if ranges and sum(ranges[-1][:2]) == start:
            before = ranges[-1]
            if host == (None if before[2] is None else before[2] + before[1]):
                ranges[-1] = (before[0], before[1] + length, before[2])
                continue
        ranges.append((start, length, host))
    return ranges


@LIVELY
@given(
    data=st.data(),
    sectors=st.integers(1, 3000),
    bits=st.integers(9, 21),
    subclusters=st.booleans(),
    base=st.none() | st.integers(1, 3000),
)
def test_allocated_is_what_qemu_maps(
    data: st.DataObject, sectors: int, bits: int, subclusters: bool, base: int | None
) -> None:
    with folder() as parent:
        below = None
        if base:
            below = make_image(parent / "base", Format.RAW, base * 512)
            write_pattern(below, Format.RAW, 0, base * 512, 9)
        path = make_image(
            parent / "scratch",
            size=sectors * 512,
            features=Qcow2Features(cluster_size=1 << bits, extended_l2=subclusters and bits >= 14),
            backing=below,
            backing_format=Format.RAW,
        )
        for command in data.draw(writes(sectors * 512)):
            qemu_io(path, Format.QCOW2, command)
        with path.open("rb") as file:
            ours = allocated(file.fileno())
        assert [(one.offset, one.length, one.host) for one in ours] == mapped(path)


def test_allocated_of_a_large_image_holds_little(tmp_path: Path) -> None:
    size = 8 * KIB * MIB
    path = make_image(tmp_path / "large", size=size, options="preallocation=metadata")
    with path.open("rb") as file:
        tracemalloc.start()
        extents = allocated(file.fileno())
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert sum(extent.length for extent in extents) == size
    assert [(one.offset, one.length, one.host) for one in extents] == mapped(path)
    assert peak < 4 * MIB


def test_allocated_is_only_for_scratch_images(tmp_path: Path) -> None:
    path = make_image(tmp_path / "q", features=Qcow2Features(compat="0.10"))
    with path.open("rb") as file, pytest.raises(ChainError, match="scratch"):
        allocated(file.fileno())


def test_allocated_refuses_compressed_clusters(tmp_path: Path) -> None:
    path = make_image(tmp_path / "q")
    qemu_io(path, Format.QCOW2, "write -q -c -P 65 0 64k")
    with path.open("rb") as file, pytest.raises(ChainError, match="offset 0"):
        allocated(file.fileno())


@pytest.fixture(scope="module")
def seeds() -> dict[str, tuple[Format, bytes]]:
    """Small real images with something in every table that we read."""
    made = {}
    with folder() as parent:
        make_image(parent / "base", Format.RAW, MIB)
        for name, features in (
            ("v3", Qcow2Features(cluster_size=512)),
            ("wide", Qcow2Features(cluster_size=16384, extended_l2=True)),
            ("v2", Qcow2Features(cluster_size=512, compat="0.10")),
        ):
            path = make_image(
                parent / name, size=MIB, features=features, backing="base",
                backing_format=Format.RAW,
            )  # fmt: skip
            write_pattern(path, Format.QCOW2, 0, 4096, 7)
            QemuImg().run("snapshot", "-c", "tag", path)
            if features.compat != "0.10":
                QemuImg().run("bitmap", "--add", "-f", "qcow2", path, "map")
            made[name] = (Format.QCOW2, path.read_bytes())
        path = make_image(
            parent / "qed", Format.QED, MIB, backing="base", backing_format=Format.RAW,
            options="cluster_size=4096,table_size=1",
        )  # fmt: skip
        made["qed"] = (Format.QED, path.read_bytes())
    return made


NUMBERS = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\xff" * 8, b"\0" * 8, b"\0\0\0\1", b"\0\1")


@st.composite
def damage(draw: st.DrawFn, original: bytes) -> bytes:
    data = bytearray(original)
    for _ in range(draw(st.integers(0, 6))):
        limit = draw(st.sampled_from((112, 512, len(data))))
        offset = draw(st.integers(0, limit - 1))
        number = draw(st.sampled_from(NUMBERS) | st.binary(min_size=1, max_size=8))
        data[offset : offset + len(number)] = number
    end = draw(st.just(len(data)) | st.integers(0, len(data)))
    return bytes(data[:end])


def survey(path: Path, fmt: Format) -> Image | None:
    """What we make of it: the image, or None where it is refused."""
    try:
        image = read_image(path, fmt)
        if fmt is Format.QCOW2:
            with path.open("rb") as file:
                is_corrupt(file.fileno())
                allocated(file.fileno())
    except ChainError:
        return None
    return image


@settings(max_examples=1500, deadline=None)
@given(data=st.data(), name=st.sampled_from(("v3", "wide", "v2", "qed")))
def test_damage_is_refused_soon_and_in_little_memory(
    seeds: dict[str, tuple[Format, bytes]], data: st.DataObject, name: str
) -> None:
    fmt, original = seeds[name]
    with folder() as parent:
        path = parent / "it"
        path.write_bytes(data.draw(damage(original)))
        tracemalloc.start()
        began = time.thread_time()
        survey(path, fmt)
        took = time.thread_time() - began
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert took < 2
        assert peak < 8 * MIB


@settings(max_examples=150, deadline=None)
@given(data=st.data(), name=st.sampled_from(("v3", "wide", "v2", "qed")))
def test_what_we_believe_of_a_damaged_image_qemu_believes_too(
    seeds: dict[str, tuple[Format, bytes]], data: st.DataObject, name: str
) -> None:
    fmt, original = seeds[name]
    with folder() as parent:
        path = parent / "it"
        path.write_bytes(data.draw(damage(original)))
        try:
            image, facts = read_image(path, fmt), info(path, fmt)
        except (ChainError, QemuImgError):
            return
        words = [image.backing or "", image.backing_format or "", *image.bitmaps]
        words += [word for one in image.snapshots for word in (one.id, one.tag)]
        assume(all(is_printed_whole(letter) for word in words for letter in word))
        assert_as_qemu_says(image, facts)


def test_the_largest_snapshot_table_is_read_in_bounded_time_and_memory(tmp_path: Path) -> None:
    path = make_image(tmp_path / "q")
    entry = struct.pack(">QIHHIIQII", 0, 0, 1, 15, 1, 0, 0, 0, 16) + b"\0" * 16 + b"x" * 16
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(entry * 65536)
    patched(path, 60, struct.pack(">IQ", 65536, MIB))
    assert len(read_image(path, Format.QCOW2).snapshots) == 65536
    huge = struct.pack(">QIHHIIQII", 0, 0, 65535, 65535, 1, 0, 0, 0, 0) + b"x" * 131072
    with path.open("r+b") as file:
        file.seek(MIB)
        file.write(huge * 130)
    with pytest.raises(ChainError, match="snapshot table is too large"):
        read_image(path, Format.QCOW2)


def test_reading_leaves_no_descriptor_open(tmp_path: Path) -> None:
    path = make_image(tmp_path / "q")
    missing = tmp_path / "missing"
    before = sorted(Path("/proc/self/fd").iterdir())
    for _ in range(50):
        read_image(path, Format.QCOW2)
        for other, fmt in ((path, Format.QED), (tmp_path, Format.RAW), (missing, Format.RAW)):
            with pytest.raises(ChainError):
                read_image(other, fmt)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
