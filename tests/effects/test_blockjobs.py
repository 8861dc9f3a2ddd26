"""Block jobs on real images: what the guest sees, what QEMU opens, what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import pytest

from imgtool import api
from imgtool.engine import raw
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    FailedError,
    LossError,
    NotFoundError,
    UnsupportedError,
)
from imgtool.model.image import Format, Qcow2Features
from imgtool.model.plan import ResizeRaw
from imgtool.testing import KIB, MIB, guest_bytes_digest, make_image, write_pattern
from imgtool.testing.images import qemu_io, read_pattern
from tests.crash.scenario import digest

from .asking import disk, domain, external, info, mounted, named, qemu_img, skipped, take
from .jobs import SIZE, commit, move_folder, pull, rebase, refuses, resize, trio

RAW_AND_QCOW2 = pytest.mark.parametrize("fmt", [Format.RAW, Format.QCOW2])


@RAW_AND_QCOW2
@pytest.mark.parametrize("delete", [False, True])
def test_commit_the_active_layer_to_the_bottom(fmt: Format, delete: bool, tmp_path: Path) -> None:
    three = trio(tmp_path, fmt)
    commit(three.made, active=True, delete=delete)
    three.assert_same()
    assert three.layers() == [three.base]
    assert named(three.made).format is fmt
    assert three.mid.exists() is three.top.exists() is not delete


def test_commit_shallow(tmp_path: Path) -> None:
    three = trio(tmp_path)
    commit(three.made, active=True, shallow=True, delete=True)
    three.assert_same()
    assert three.layers() == [three.base, three.mid]
    assert not three.top.exists()


@RAW_AND_QCOW2
@pytest.mark.parametrize("relative", [False, True])
def test_commit_an_inner_layer(fmt: Format, relative: bool, tmp_path: Path) -> None:
    three = trio(tmp_path, fmt, relative=relative)
    commit(three.made, top=str(three.mid), delete=True)
    three.assert_same()
    assert three.layers() == [three.base, three.top]
    assert not three.mid.exists()
    named_base = three.base.name if relative else str(three.base)
    assert info(three.top)["backing-filename"] == named_base
    assert info(three.top)["backing-filename-format"] == fmt


def test_commit_can_make_a_name_relative(tmp_path: Path) -> None:
    three = trio(tmp_path)
    commit(three.made, top=str(three.mid), keep_relative=True)
    assert info(three.top)["backing-filename"] == three.base.name
    three.assert_same()


def test_commit_and_stay_on_the_overlay(tmp_path: Path) -> None:
    three = trio(tmp_path)
    commit(three.made, active=True, keep_overlay=True, delete=True)
    three.assert_same()
    assert three.layers() == [three.base, three.mid, three.top]
    assert guest_bytes_digest(three.base, Format.QCOW2) == three.guest


@RAW_AND_QCOW2
@pytest.mark.parametrize("inner", [False, True])
def test_a_base_that_is_too_small_grows(fmt: Format, inner: bool, tmp_path: Path) -> None:
    three = trio(tmp_path, fmt)
    layer = three.mid if inner else three.top
    qemu_img("resize", "-f", "qcow2", three.mid, "6M")
    qemu_img("resize", "-f", "qcow2", three.top, "6M")
    write_pattern(layer, Format.QCOW2, 5 * MIB, 64 * KIB, 0x77)
    guest = guest_bytes_digest(three.top, Format.QCOW2)
    commit(three.made, active=not inner, top=str(three.mid) if inner else "")
    assert info(three.base, fmt)["virtual-size"] == 6 * MIB
    source = named(three.made)
    assert source.source is not None
    assert guest_bytes_digest(source.source, Format(source.format_name)) == guest


def test_a_base_that_is_too_large_is_refused(tmp_path: Path) -> None:
    three = trio(tmp_path)
    qemu_img("resize", "--shrink", "-f", "qcow2", three.top, "2M")
    job = partial(commit, three.made, active=True)
    refuses(tmp_path, UnsupportedError, "base.qcow2", "larger", job=job)


def test_a_short_layer_in_the_middle_hides_what_is_below(tmp_path: Path) -> None:
    three = trio(tmp_path)
    write_pattern(three.base, Format.QCOW2, 3 * MIB, 512 * KIB, 0x55)
    qemu_img("resize", "--shrink", "-f", "qcow2", three.mid, "2M")
    guest = guest_bytes_digest(three.top, Format.QCOW2)
    assert read_pattern(three.top, Format.QCOW2, 3 * MIB, 512) == bytes(512)
    commit(three.made, active=True)
    assert guest_bytes_digest(three.base, Format.QCOW2) == guest


def test_a_short_layer_in_the_middle_hides_what_is_below_a_pull(tmp_path: Path) -> None:
    three = trio(tmp_path)
    write_pattern(three.base, Format.QCOW2, 3 * MIB, 512 * KIB, 0x55)
    qemu_img("resize", "--shrink", "-f", "qcow2", three.mid, "2M")
    guest = guest_bytes_digest(three.top, Format.QCOW2)
    pull(three.made, base=str(three.base))
    assert guest_bytes_digest(three.top, Format.QCOW2) == guest


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, ["active layer requires active flag"]),
        ({"active": True, "top": "mid"}, ["active commit requested but", "mid.qcow2"]),
        ({"active": True, "base": "top"}, ["base", "is not below"]),
        ({"top": "base"}, ["has no backing file"]),
        ({"active": True, "base": "base", "shallow": True}, ["is not immediately below"]),
        ({"active": True, "base": "elsewhere"}, ["could not find image", "in chain"]),
        ({"top": "vda[1]"}, ["no numbers"]),
    ],
)
def test_layers_that_make_no_commit(
    how: dict[str, str | bool], words: list[str], tmp_path: Path
) -> None:
    three = trio(tmp_path)
    names = {"base": three.base, "mid": three.mid, "top": three.top}
    places = {
        key: str(names[value]) if isinstance(value, str) and value in names else value
        for key, value in how.items()
    }
    kind = NotFoundError if "elsewhere" in how.values() else BadRequestError
    refuses(tmp_path, kind, *words, job=partial(commit, three.made), **places)


def test_a_commit_names_the_snapshot_that_it_would_change(tmp_path: Path) -> None:
    three = trio(tmp_path)
    take(three.made, external(), name="s1")
    job = partial(commit, three.made, active=True)
    refuses(tmp_path, UnsupportedError, "snapshot s1", "would change", job=job)
    commit(three.made, top=str(three.top))  # what s1 shows is the same
    assert guest_bytes_digest(three.top, Format.QCOW2) == three.guest
    three.assert_same()


def test_what_a_snapshot_shows_is_not_deleted(tmp_path: Path) -> None:
    three = trio(tmp_path)
    take(three.made, external(), name="s1")
    said: list[str] = []
    commit(three.made, top=str(three.top), delete=True, said=said)
    assert three.top.exists()
    assert "snapshot s1 needs it" in said[0]
    assert guest_bytes_digest(three.top, Format.QCOW2) == three.guest


def test_a_commit_names_a_stray_overlay(tmp_path: Path) -> None:
    three = trio(tmp_path)
    stray = make_image(
        three.base.parent / "stray", backing=three.base, backing_format=Format.QCOW2, size=SIZE
    )
    job = partial(commit, three.made, active=True)
    refuses(tmp_path, UnsupportedError, str(stray), job=job)


def test_a_commit_names_another_domain(tmp_path: Path) -> None:
    three = trio(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = make_image(
        elsewhere / "o.qcow2", backing=three.mid, backing_format=Format.QCOW2, size=SIZE
    )
    text = three.made.xml.read_text().replace(str(three.top), str(other))
    text = text.replace("<name>vm<", "<name>neighbour<").replace("<uuid>", "<uuid>", 1)
    uuid = text.partition("<uuid>")[2].partition("<")[0]
    text = text.replace(uuid, "11111111-2222-4333-8444-555555555555")
    (three.made.folder / "neighbour.xml").write_text(text)
    job = partial(commit, three.made, active=True)
    refuses(tmp_path, UnsupportedError, "domain neighbour", job=job)


def test_a_commit_names_another_disk(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base", size=SIZE)
    tops = [
        make_image(tmp_path / name, backing=base, backing_format=Format.QCOW2, size=SIZE)
        for name in ("a", "b")
    ]
    made = domain(tmp_path, disk(tops[0]), disk(tops[1], target="vdb"))
    job = partial(commit, made, active=True)
    refuses(tmp_path, UnsupportedError, "disk vdb", job=job)


def test_layers_with_internal_snapshots_take_no_part(tmp_path: Path) -> None:
    three = trio(tmp_path)
    qemu_img("snapshot", "-c", "inside", three.mid)
    job = partial(commit, three.made, active=True)
    refuses(tmp_path, UnsupportedError, "mid.qcow2", "internal snapshots", "inside", job=job)


def test_a_tag_in_the_base_stays_whole(tmp_path: Path) -> None:
    three = trio(tmp_path)
    qemu_img("snapshot", "-c", "inside", three.base)
    before = guest_bytes_digest(three.base, Format.QCOW2)
    commit(three.made, active=True, delete=True)
    three.assert_same()
    assert guest_bytes_digest(three.base, Format.QCOW2, snapshot_id="1") == before


def test_a_base_that_may_not_be_written(tmp_path: Path) -> None:
    three = trio(tmp_path)
    three.base.chmod(0o444)
    job = partial(commit, three.made, active=True)
    refuses(tmp_path, UnsupportedError, "base.qcow2", "cannot be written", job=job)


def test_a_base_that_takes_no_commit(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base.qed", Format.QED, SIZE)
    top = make_image(tmp_path / "top", backing=base, backing_format=Format.QED, size=SIZE)
    made = domain(tmp_path, disk(top))
    refuses(tmp_path, UnsupportedError, "qed", job=partial(commit, made, active=True))


def bitmaps(path: Path) -> set[str]:
    data = info(path)["format-specific"]["data"]
    return {each["name"] for each in data.get("bitmaps", ())}


def test_bitmaps_go_down_with_the_data(tmp_path: Path) -> None:
    three = trio(tmp_path)
    qemu_img("bitmap", "--add", three.base, "both")
    qemu_img("bitmap", "--add", three.top, "both")
    qemu_img("bitmap", "--add", three.mid, "inner")
    qemu_io(three.top, Format.QCOW2, "write -q -P 3 3M 64k")
    three_guest = guest_bytes_digest(three.top, Format.QCOW2)
    said: list[str] = []
    commit(three.made, active=True, delete=True, said=said)
    assert said == []
    assert guest_bytes_digest(three.base, Format.QCOW2) == three_guest
    assert bitmaps(three.base) == {"both", "inner"}
    assert 3 * MIB in dirty(three.base, "both")


def dirty(path: Path, bitmap: str) -> set[int]:
    """Offsets of the 64 KiB pieces that a bitmap has marked."""
    with tempfile.TemporaryDirectory() as folder:
        socket = f"{folder}/s"
        server = subprocess.Popen(
            ["qemu-nbd", "-f", "qcow2", "-r", "-B", bitmap, "-k", socket, str(path)]
        )
        try:
            while not Path(socket).exists():
                assert server.poll() is None
            uri = f"driver=nbd,server.type=unix,server.path={socket}"
            uri += f",x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
            found = json.loads(qemu_img("map", "--output=json", "--image-opts", uri))
        finally:
            server.terminate()
            server.wait()
    return {
        offset
        for each in found
        if not each["data"]
        for offset in range(each["start"], each["start"] + each["length"], 64 * KIB)
    }


def test_bitmaps_that_a_raw_base_cannot_keep_are_named_before(tmp_path: Path) -> None:
    three = trio(tmp_path, Format.RAW)
    qemu_img("bitmap", "--add", three.top, "daily")
    said: list[str] = []
    commit(three.made, active=True, said=said, dry_run=True)
    assert "cannot keep" in said[0]
    assert "daily" in said[0]


def test_commit_all_disks(tmp_path: Path) -> None:
    made = domain(
        tmp_path,
        *(disk(make_image(tmp_path / f"{t}.qcow2", size=SIZE), target=t) for t in ("vda", "vdb")),
        disk(make_image(tmp_path / "vdc.raw", Format.RAW, SIZE), Format.RAW, target="vdc"),
    )
    take(made, external("vda"), external("vdb"), skipped("vdc"), no_metadata=True)
    for target in ("vda", "vdb"):
        write_pattern(tmp_path / f"{target}.s1", Format.QCOW2, MIB, MIB, 7)
    guest = [guest_bytes_digest(tmp_path / f"{t}.s1", Format.QCOW2) for t in ("vda", "vdb")]
    with api.open_world(made.uri) as world:
        options = api.CommitOptions(active=True, delete=True)
        result = api.block_commit(world, made.name, [], options)
    assert [each.target for each in result.planned.disks] == ["vda", "vdb"]
    now = [guest_bytes_digest(tmp_path / f"{t}.qcow2", Format.QCOW2) for t in ("vda", "vdb")]
    assert now == guest
    assert not (tmp_path / "vda.s1").exists()


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    three = trio(tmp_path)
    before = digest(tmp_path)
    commit(three.made, active=True, delete=True, dry_run=True)
    pull(three.made, dry_run=True)
    resize(three.made, 2 * SIZE, dry_run=True)
    rebase(three.made, relative=True, dry_run=True)
    assert digest(tmp_path) == before


@RAW_AND_QCOW2
def test_pull_everything(fmt: Format, tmp_path: Path) -> None:
    three = trio(tmp_path, fmt)
    pull(three.made)
    three.assert_same()
    assert three.layers() == [three.top]
    assert three.base.exists()
    again = pull(three.made)
    assert again.transaction == ""


@pytest.mark.parametrize("relative", [False, True])
def test_pull_down_to_a_base(relative: bool, tmp_path: Path) -> None:
    three = trio(tmp_path, relative=relative)
    pull(three.made, base=str(three.base))
    three.assert_same()
    assert three.layers() == [three.base, three.top]
    name = three.base.name if relative else str(three.base)
    assert info(three.top)["backing-filename"] == name


def test_pulls_that_are_refused(tmp_path: Path) -> None:
    three = trio(tmp_path)
    job = partial(pull, three.made)
    refuses(tmp_path, BadRequestError, "non-null base", job=job, keep_relative=True)
    refuses(tmp_path, NotFoundError, "could not find image", job=job, base="/nowhere")
    refuses(tmp_path, BadRequestError, "its own base", job=job, base=str(three.top))
    qemu_img("snapshot", "-c", "inside", three.top)
    refuses(tmp_path, UnsupportedError, "internal snapshots", "inside", job=job)


@RAW_AND_QCOW2
def test_grow(fmt: Format, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", fmt, SIZE)
    write_pattern(image, fmt, 0, SIZE, 9)
    made = domain(tmp_path, disk(image, fmt))
    resize(made, 2 * SIZE, extend=True)
    assert info(image, fmt)["virtual-size"] == 2 * SIZE
    assert read_pattern(image, fmt, SIZE - 512, 1024) == b"\x09" * 512 + bytes(512)
    assert resize(made, 2 * SIZE).transaction == ""


@RAW_AND_QCOW2
def test_shrink_only_by_force(fmt: Format, tmp_path: Path) -> None:
    image = make_image(tmp_path / "image", fmt, SIZE)
    write_pattern(image, fmt, 0, SIZE, 9)
    made = domain(tmp_path, disk(image, fmt))
    job = partial(resize, made, MIB)
    refuses(tmp_path, LossError, "would be lost", job=job)
    refuses(tmp_path, BadRequestError, "--extend never shrinks", job=job, extend=True)
    resize(made, MIB, force=True)
    assert info(image, fmt)["virtual-size"] == MIB
    assert read_pattern(image, fmt, 0, MIB) == b"\x09" * MIB


def test_what_was_cut_off_does_not_come_back_from_the_base(tmp_path: Path) -> None:
    three = trio(tmp_path)
    write_pattern(three.base, Format.QCOW2, 0, SIZE, 0x55)
    resize(three.made, MIB, force=True)
    resize(three.made, SIZE)
    assert read_pattern(three.top, Format.QCOW2, MIB, SIZE - MIB) == bytes(SIZE - MIB)
    assert qemu_img("check", "-f", "qcow2", three.top)


def test_a_disk_with_tags_grows_but_is_not_cut(tmp_path: Path) -> None:
    three = trio(tmp_path)
    qemu_img("snapshot", "-c", "inside", three.top)
    job = partial(resize, three.made, MIB)
    refuses(tmp_path, UnsupportedError, "internal snapshots", "in part", job=job, force=True)
    resize(three.made, 2 * SIZE)
    assert qemu_img("check", "-f", "qcow2", three.top)
    qemu_img("snapshot", "-a", "inside", three.top)
    three.assert_same()


def test_the_end_of_an_image_that_is_a_base_is_not_cut_off(tmp_path: Path) -> None:
    three = trio(tmp_path)
    make_image(tmp_path / "images/x", backing=three.top, backing_format=Format.QCOW2, size=SIZE)
    job = partial(resize, three.made, MIB, force=True)
    refuses(tmp_path, UnsupportedError, "images/x", job=job)


@pytest.mark.parametrize("size", [0, 1000, 2**63])
def test_sizes_that_no_disk_has(size: int, tmp_path: Path) -> None:
    three = trio(tmp_path)
    refuses(tmp_path, BadRequestError, "multiple of 512", job=partial(resize, three.made, size))


def names(*paths: Path) -> list[str]:
    return [str(info(path)["backing-filename"]) for path in paths]


@RAW_AND_QCOW2
def test_rebase_to_relative_names_and_back(fmt: Format, tmp_path: Path) -> None:
    three = trio(tmp_path, fmt)
    rebase(three.made, relative=True)
    assert names(three.mid, three.top) == [three.base.name, three.mid.name]
    three.assert_same()
    moved = move_folder(three, tmp_path / "moved")
    moved.assert_same()
    rebase(moved.made, relative=False)
    assert names(moved.mid, moved.top) == [str(moved.base), str(moved.mid)]
    moved.assert_same()
    assert rebase(moved.made, relative=False).transaction == ""


def test_rebase_finds_bases_in_a_moved_folder(tmp_path: Path) -> None:
    three = trio(tmp_path)
    moved = move_folder(three, tmp_path / "moved")
    said: list[str] = []
    rebase(moved.made, relative=True, said=said)
    assert any(str(moved.base) in line for line in said)
    assert names(moved.mid, moved.top) == [moved.base.name, moved.mid.name]
    moved.assert_same()


def test_rebase_takes_no_other_file_for_the_base(tmp_path: Path) -> None:
    three = trio(tmp_path)
    moved = move_folder(three, tmp_path / "moved")
    moved.mid.write_bytes(b"something else")
    job = partial(rebase, moved.made, relative=True)
    refuses(tmp_path, ChainError, "mid.qcow2", job=job)
    moved.mid.unlink()
    refuses(tmp_path, ChainError, "mid.qcow2", job=job)


def test_rebase_to_a_base_that_is_elsewhere(tmp_path: Path) -> None:
    three = trio(tmp_path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    new = Path(shutil.move(three.mid, elsewhere))
    job = partial(rebase, three.made, relative=True)
    refuses(tmp_path, ChainError, "mid.qcow2", job=job)
    rebase(three.made, base=str(new), unsafe=True)
    assert names(new, three.top) == [str(three.base), str(new)]
    rebase(three.made, relative=True)
    assert names(new, three.top) == ["../images/base.qcow2", "../elsewhere/mid.qcow2"]
    three.assert_same()


def test_rebase_safely_onto_another_image(tmp_path: Path) -> None:
    three = trio(tmp_path)
    new = make_image(tmp_path / "new.raw", Format.RAW, SIZE)
    write_pattern(new, Format.RAW, 0, SIZE, 0xEE)
    job = partial(rebase, three.made, base=str(new))
    refuses(tmp_path, BadRequestError, "format", "not recorded", job=job)
    rebase(three.made, base=str(new), format=Format.RAW)
    three.assert_same()
    assert three.layers() == [new, three.top]


def test_rebase_safely_within_the_chain(tmp_path: Path) -> None:
    three = trio(tmp_path)
    rebase(three.made, base=str(three.base), relative=True)
    three.assert_same()
    assert names(three.top) == [three.base.name]


def test_rebases_that_are_refused(tmp_path: Path) -> None:
    three = trio(tmp_path)
    loop = make_image(tmp_path / "loop", backing=three.top, backing_format=Format.QCOW2, size=SIZE)
    job = partial(rebase, three.made)
    for unsafe in (False, True):
        how = {"base": str(loop), "format": Format.QCOW2, "unsafe": unsafe}
        refuses(tmp_path, UnsupportedError, "would loop", job=job, **how)
    refuses(tmp_path, NotFoundError, "no such image", job=job, base="/nowhere")
    qemu_img("snapshot", "-c", "inside", three.top)
    refuses(tmp_path, UnsupportedError, "internal snapshots", job=job, base=str(three.base))


def test_an_old_image_cannot_be_blocked(tmp_path: Path) -> None:
    features = Qcow2Features(compat="0.10")
    image = make_image(tmp_path / "old", size=SIZE, features=features)
    made = domain(tmp_path, disk(image))
    job = partial(resize, made, 2 * SIZE)
    refuses(tmp_path, UnsupportedError, "compat=0.10", job=job)


def test_what_the_xml_says_of_the_layers_below_goes(tmp_path: Path) -> None:
    three = trio(tmp_path)
    xml = three.made.xml
    explicit = "<backingStore type='file'><format type='qcow2'/><source file='%s'/></backingStore>"
    text = xml.read_text()
    assert "<target" in text
    xml.write_text(text.replace("<target", explicit % three.mid + "<target", 1))
    commit(three.made, top=str(three.mid), delete=True)
    assert "backingStore" not in xml.read_text()
    three.assert_same()


@pytest.mark.parametrize("used", [False, True])
def test_growing_is_taken_back_unless_somebody_has_used_it(used: bool, tmp_path: Path) -> None:
    image = make_image(tmp_path / "raw", Format.RAW, MIB)
    step = ResizeRaw(
        target="vda",
        image=image,
        inode=image.stat().st_ino,
        old_size=MIB,
        new_size=2 * MIB,
    )
    made = domain(tmp_path, disk(image, Format.RAW))
    said: list[str] = []
    with api.open_world(made.uri, say=said.append) as world:
        raw.resize(step, world)
        if used:
            write_pattern(image, Format.RAW, MIB + 4 * KIB, 4 * KIB, 1)
        raw.take_back(step, world)
        raw.take_back(step, world)
    assert image.stat().st_size == (2 * MIB if used else MIB)
    assert bool(said) is used


def test_too_little_space_is_seen_before_anything_is_written(tmp_path: Path) -> None:
    with mounted("tmpfs", tmp_path / "small", "size=2m") as small:
        base = make_image(small / "base.raw", Format.RAW, SIZE)
        top = make_image(tmp_path / "top", backing=base, backing_format=Format.RAW, size=SIZE)
        write_pattern(top, Format.QCOW2, 0, SIZE, 1)
        made = domain(tmp_path, disk(top))
        job = partial(commit, made, active=True)
        refuses(tmp_path, FailedError, "vda", "bytes are needed", job=job)
        mid = make_image(small / "mid", backing=top, backing_format=Format.QCOW2, size=SIZE)
        made = domain(tmp_path, disk(mid))
        refuses(tmp_path, FailedError, "vda", "bytes are needed", job=partial(pull, made))
