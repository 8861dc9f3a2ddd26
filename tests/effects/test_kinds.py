"""Every kind of disk, on real qemu-img: what the overlay is, and what QEMU itself makes of it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from imgtool.model.image import Format, Qcow2Features
from imgtool.testing import KIB, MIB, guest_bytes_digest, make_image, write_pattern
from imgtool.testing.strategies import ImageDraft, images

from .asking import (
    chain,
    disk,
    domain,
    external,
    externally,
    info,
    internal,
    loop_device,
    mounted,
    named,
    qemu_img,
    skipped,
    take,
)

FEATURES = {
    **{f"cluster_size={1 << bits}": Qcow2Features(cluster_size=1 << bits) for bits in range(9, 22)},
    "extended_l2": Qcow2Features(extended_l2=True),
    "extended_l2, small": Qcow2Features(extended_l2=True, cluster_size=16 * KIB),
    "lazy_refcounts": Qcow2Features(lazy_refcounts=True),
    "compat=0.10": Qcow2Features(compat="0.10"),
    "compat=0.10, small": Qcow2Features(compat="0.10", cluster_size=512),
    **{
        f"refcount_bits={1 << order}": Qcow2Features(refcount_bits=1 << order) for order in range(7)
    },
    "all": Qcow2Features(
        extended_l2=True, lazy_refcounts=True, cluster_size=2 * MIB, refcount_bits=64
    ),
}
SIZES = (512, 1000, 65536, 65537, 3 * MIB + 511, 8 * MIB)
AWKWARD = (
    *(
        "a,b",
        ",",
        "a,,b",
        "a:b",
        "json:{}",
        "nbd:unix",
        "file:x",
        "white space",
        " ",
        "-h",
        "--help",
    ),
    *(
        "-",
        "-o",
        "%20",
        "100%",
        "'",
        '"',
        "it's",
        "<&>",
        "\\",
        "a\\b",
        "*",
        "?",
        "[x]",
        "$HOME",
        "`",
    ),
    *("é", "中文", "😀", "\u202e", "e\u0301", "~", "#", ";", "|", "=", "a=b", "...", "#fd"),
    *("fat:x", "x" * 255, "é" * 127),
)


@pytest.mark.parametrize("features", FEATURES.values(), ids=FEATURES.keys())
def test_an_overlay_takes_over_the_features_of_its_base(
    features: Qcow2Features, tmp_path: Path
) -> None:
    base = make_image(tmp_path / "base.qcow2", Format.QCOW2, 2 * MIB, features=features)
    write_pattern(base, Format.QCOW2, 12 * KIB, 4 * KIB, 7)
    made = domain(tmp_path, disk(base))
    take(made, external())
    overlay = info(tmp_path / "base.s1")
    assert overlay["virtual-size"] == 2 * MIB
    assert overlay["cluster-size"] == features.cluster_size
    assert overlay["backing-filename"] == str(base)
    assert overlay["backing-filename-format"] == "qcow2"
    data: dict[str, Any] = overlay["format-specific"]["data"]
    assert data["compat"] == features.compat
    if features.compat != "0.10":
        assert data["extended-l2"] is features.extended_l2
        assert data["lazy-refcounts"] is features.lazy_refcounts
    assert data["refcount-bits"] == features.refcount_bits
    assert qemu_img("compare", "-f", "qcow2", "-F", "qcow2", base, tmp_path / "base.s1")


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(draft=images(max_size=2 * MIB))
def test_any_small_image(draft: ImageDraft, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    base = make_image(folder / "base", draft.format, draft.size, features=draft.features)
    made = domain(folder, disk(base, draft.format))
    externally(made, {"vda": folder / "base.s1"}, external())


@pytest.mark.parametrize("size", SIZES)
def test_raw_of_any_size(size: int, tmp_path: Path) -> None:
    base = tmp_path / "disk.raw"
    base.write_bytes(os.urandom(size))
    made = domain(tmp_path, disk(base, Format.RAW))
    take(made, external())
    overlay = tmp_path / "disk.s1"
    assert info(overlay)["virtual-size"] == -(-size // 512) * 512
    assert info(overlay)["virtual-size"] == info(base, "raw")["virtual-size"]
    assert guest_bytes_digest(overlay, Format.QCOW2) == guest_bytes_digest(base, Format.RAW)
    assert base.stat().st_size == size


@pytest.mark.parametrize("fmt", [Format.QED, Format.VMDK])
def test_foreign_formats(fmt: Format, tmp_path: Path) -> None:
    base = make_image(tmp_path / f"disk.{fmt}", fmt, 4 * MIB)
    write_pattern(base, fmt, MIB, 64 * KIB, 9)
    made = domain(tmp_path, disk(base, fmt))
    externally(made, {"vda": tmp_path / "disk.s1"}, external())
    assert info(tmp_path / "disk.s1")["backing-filename-format"] == fmt


def test_a_chain_of_vmdks(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base.vmdk", Format.VMDK, 4 * MIB)
    top = make_image(
        tmp_path / "top.vmdk", Format.VMDK, 4 * MIB, backing="base.vmdk", backing_format=Format.VMDK
    )
    made = domain(tmp_path, disk(top, Format.VMDK))
    take(made, external())
    assert chain(tmp_path / "top.s1")[1:] == [str(top), str(base)]


@pytest.mark.parametrize("fmt", [Format.RAW, Format.QCOW2])
def test_over_a_block_device(fmt: Format, tmp_path: Path) -> None:
    file = tmp_path / "storage"
    file.write_bytes(bytes(8 * MIB))
    with loop_device(file) as device:
        if fmt is Format.QCOW2:
            make_image(device, fmt, 4 * MIB, features=Qcow2Features(cluster_size=4096))
        write_pattern(device, fmt, 0, 64 * KIB, 3)
        before = guest_bytes_digest(device, fmt)
        made = domain(tmp_path, disk(device, fmt))
        overlay = tmp_path / "overlay.qcow2"
        take(made, external(file=overlay))
        facts = info(overlay)
        assert facts["virtual-size"] == (8 if fmt is Format.RAW else 4) * MIB
        assert facts["backing-filename"] == str(device)
        assert facts["cluster-size"] == (65536 if fmt is Format.RAW else 4096)
        assert guest_bytes_digest(overlay, Format.QCOW2) == before
        now = named(made)
        assert (now.type, now.source, now.format_name) == ("file", overlay, "qcow2")


def test_the_source_is_a_link_and_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    real = make_image(tmp_path / "real" / "disk.qcow2", size=MIB)
    link = tmp_path / "link.qcow2"
    link.symlink_to(real)
    made = domain(tmp_path, disk(link))
    take(made, external())
    overlay = tmp_path / "link.s1"
    assert overlay.is_file()
    assert not overlay.is_symlink()
    assert info(overlay)["backing-filename"] == str(link)
    assert chain(overlay) == [str(overlay), str(link)]


def test_relative_names_below_a_linked_source(tmp_path: Path) -> None:
    """QEMU looks such a name up from the folder of the link, not of what it leads to."""
    (tmp_path / "near").mkdir()
    (tmp_path / "far").mkdir()
    base = make_image(tmp_path / "near" / "base.raw", Format.RAW, MIB)
    write_pattern(base, Format.RAW, 0, 4096, 1)
    wrong = make_image(tmp_path / "far" / "base.raw", Format.RAW, MIB)
    top = make_image(
        tmp_path / "far" / "top.qcow2", size=MIB, backing="base.raw", backing_format=Format.RAW
    )
    link = tmp_path / "near" / "top.qcow2"
    link.symlink_to(top)
    made = domain(tmp_path, disk(link))
    take(made, external())
    overlay = tmp_path / "near" / "top.s1"
    assert chain(overlay) == [str(overlay), str(link), str(base)]
    assert str(wrong) not in chain(overlay)
    assert guest_bytes_digest(overlay, Format.QCOW2) == guest_bytes_digest(base, Format.RAW)


def test_a_chain_across_folders(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
    base = make_image(tmp_path / "one" / "base.raw", Format.RAW, MIB)
    write_pattern(base, Format.RAW, 0, 4096, 1)
    make_image(
        tmp_path / "two" / "mid.qcow2",
        size=MIB,
        backing="../one/base.raw",
        backing_format=Format.RAW,
    )
    top = make_image(
        tmp_path / "three" / "top.qcow2",
        size=MIB,
        backing="../two/mid.qcow2",
        backing_format=Format.QCOW2,
    )
    made = domain(tmp_path, disk(top))
    externally(made, {"vda": tmp_path / "one" / "x"}, external(file=tmp_path / "one" / "x"))
    assert len(chain(tmp_path / "one" / "x")) == 4


def test_another_file_system(tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    made = domain(tmp_path, disk(base))
    with mounted("tmpfs", tmp_path / "elsewhere", "size=16m") as elsewhere:
        externally(made, {"vda": elsewhere / "top"}, external(file=elsewhere / "top"))
        assert chain(elsewhere / "top") == [str(elsewhere / "top"), str(base)]
        assert list(elsewhere.iterdir()) == [elsewhere / "top"]


@pytest.mark.parametrize(
    ("base", "overlay"),
    [
        ("disk.qcow2", "top.qcow2"),
        ("base/disk.qcow2", "top/a/b.qcow2"),
        ("disk.qcow2", "deep/er/top.qcow2"),
        ("deep/er/disk.qcow2", "top.qcow2"),
        ("a:b/c,d.qcow2", "top.qcow2"),
        ("a:b.qcow2", "top.qcow2"),
        ("-h.qcow2", "-o.qcow2"),
        ("json:{}.qcow2", "é/中 文.qcow2"),
    ],
)
def test_a_folder_with_relative_names_can_be_moved(base: str, overlay: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in (base, overlay):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
    raw = make_image(home / "root.raw", Format.RAW, MIB)
    write_pattern(raw, Format.RAW, 0, 4096, 5)
    up = "/".join([".."] * base.count("/") + ["root.raw"])
    make_image(home / base, size=MIB, backing=up, backing_format=Format.RAW)
    made = domain(tmp_path, disk(home / base))
    take(made, external(file=home / overlay), relative=True)
    recorded = info(home / overlay)["backing-filename"]
    assert not recorded.startswith("/")
    wanted = guest_bytes_digest(raw, Format.RAW)
    moved = home.rename(tmp_path / "moved, away: here")
    assert not home.exists()
    assert guest_bytes_digest(moved / overlay, Format.QCOW2) == wanted
    real = [os.path.realpath(name) for name in chain(moved / overlay)]
    assert real == [str(moved / name) for name in (overlay, base, "root.raw")]


def test_relative_through_linked_folders(tmp_path: Path) -> None:
    (tmp_path / "home" / "images").mkdir(parents=True)
    (tmp_path / "home" / "tops").mkdir()
    base = make_image(tmp_path / "home" / "images" / "disk.qcow2", size=MIB)
    (tmp_path / "tops").symlink_to(tmp_path / "home" / "tops")
    (tmp_path / "disk").symlink_to(base)
    made = domain(tmp_path, disk(tmp_path / "disk"))
    take(made, external(file=tmp_path / "tops" / "x"), relative=True)
    real = tmp_path / "home" / "tops" / "x"
    assert info(real)["backing-filename"] == "../images/disk.qcow2"
    assert chain(tmp_path / "tops" / "x")  # by the name in the domain XML
    (tmp_path / "home").rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    assert [os.path.realpath(name) for name in chain(moved / "tops" / "x")] == [
        str(moved / "tops" / "x"),
        str(moved / "images" / "disk.qcow2"),
    ]


@pytest.mark.parametrize("relative", [False, True], ids=["absolute", "relative"])
@pytest.mark.parametrize("name", AWKWARD, ids=ascii)
def test_awkward_names(name: str, relative: bool, tmp_path: Path) -> None:
    """As base, as overlay, and as the folder of both."""
    folder = tmp_path / name
    folder.mkdir()
    base = make_image(folder / name, size=MIB)
    write_pattern(base, Format.QCOW2, 0, 4096, 5)
    made = domain(tmp_path, disk(base))
    overlay = tmp_path / name / f"o{name}"[: 255 - (len(os.fsencode(name)) - len(name))]
    take(made, external(file=overlay), relative=relative)
    assert [os.path.realpath(layer) for layer in chain(overlay)] == [str(overlay), str(base)]
    assert sorted(folder.iterdir()) == sorted([base, overlay])


def test_base_names_that_are_no_text(tmp_path: Path) -> None:
    """The domain XML cannot name such a file, but a layer can."""
    odd = tmp_path / os.fsdecode(b"caf\xe9\n\x01.raw")
    odd.write_bytes(bytes(MIB))
    mid = make_image(tmp_path / "mid.qcow2", size=MIB, backing=odd, backing_format=Format.RAW)
    other = odd.with_suffix(".other")
    other.write_bytes(bytes(MIB))
    (tmp_path / "link").symlink_to(other)
    made = domain(tmp_path, disk(mid), disk(tmp_path / "link", Format.RAW, target="vdb"))
    take(made, external(), external("vdb"), relative=True)
    assert qemu_img("compare", "-f", "qcow2", "-F", "raw", tmp_path / "mid.s1", odd)
    assert os.fsencode(other.name) in (tmp_path / "link.s1").read_bytes()


def test_the_bitmaps_of_a_base_are_spoken_of(tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    qemu_img("bitmap", "--add", "-f", "qcow2", base, "backup-1")
    qemu_img("bitmap", "--add", "-f", "qcow2", base, "backup-2")
    made = domain(tmp_path, disk(base))
    said: list[str] = []
    take(made, external(), said=said, dry_run=True)
    assert len(said) == 1
    take(made, external(), said=said)
    assert said[0] == said[1]
    for word in ("vda", "backup-1", "backup-2", str(base), str(tmp_path / "disk.s1")):
        assert word in said[0]
    kept = info(base)["format-specific"]["data"]["bitmaps"]
    assert [bitmap["name"] for bitmap in kept] == ["backup-1", "backup-2"]
    assert "bitmaps" not in info(tmp_path / "disk.s1")["format-specific"]["data"]


def test_bitmaps_outlive_an_internal_snapshot(tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    qemu_img("bitmap", "--add", "-f", "qcow2", base, "backup")
    made = domain(tmp_path, disk(base))
    said: list[str] = []
    take(made, said=said)
    assert said == []
    assert [one["name"] for one in info(base)["format-specific"]["data"]["bitmaps"]] == ["backup"]


@pytest.mark.parametrize("how", [{}, {"disk_only": True}], ids=["default", "disk-only"])
def test_the_stopped_rows_on_real_images(how: dict[str, bool], tmp_path: Path) -> None:
    """Mixed per disk, which libvirt refuses; the mode that no disk gives comes from --disk-only."""
    paths = {name: tmp_path / f"{name}.qcow2" for name in ("vda", "vdb", "vdc", "vdd")}
    for path in paths.values():
        make_image(path, size=MIB)
    made = domain(tmp_path, *(disk(path, target=name) for name, path in paths.items()))
    overlays = {"vdb": tmp_path / "vdb.s1"} | ({"vda": tmp_path / "vda.s1"} if how else {})
    inside = frozenset({"vdc"} if how else {"vda", "vdc"})
    asked = (external("vdb"), internal("vdc"), skipped("vdd"))
    externally(made, overlays, *asked, inside=inside, **how)


def test_what_is_left_alone_by_default(tmp_path: Path) -> None:
    system = make_image(tmp_path / "vda.qcow2", size=MIB)
    iso, floppy, fixed = (tmp_path / name for name in ("cd.iso", "floppy.img", "fixed.raw"))
    for path in (iso, floppy, fixed):
        path.write_bytes(bytes(MIB))
    made = domain(
        tmp_path,
        disk(system),
        disk(iso, Format.RAW, target="sda", device="cdrom"),
        disk(floppy, Format.RAW, target="fda", device="floppy"),
        disk(fixed, Format.RAW, target="vdb", readonly=True),
        disk(iso, Format.RAW, target="sdb", device="cdrom", source=None),
        disk(tmp_path / "gone.iso", Format.RAW, target="sdc", device="cdrom"),
    )
    result = take(made)
    assert [(each.target, each.mode) for each in result.disks] == [
        ("vda", "internal"),
        *((target, "no") for target in ("sda", "fda", "vdb", "sdb", "sdc")),
    ]


@pytest.mark.parametrize("mode", ["no", "external"])
def test_the_domain_s_own_default_for_a_disk(mode: str, tmp_path: Path) -> None:
    one, two = (make_image(tmp_path / name, size=MIB) for name in ("one.qcow2", "two.qcow2"))
    made = domain(tmp_path, disk(one), disk(two, target="vdb"))
    text = made.xml.read_text()
    at = text.rindex("device='disk'")
    made.xml.write_text(f"{text[:at]}device='disk' snapshot='{mode}'{text[at + 13 :]}")
    result = take(made)
    assert [str(each.mode) for each in result.disks] == ["internal", mode]


def test_199_layers_become_200_and_qemu_opens_them(tmp_path: Path) -> None:
    top = deep(tmp_path, 199)
    made = domain(tmp_path, disk(top))
    take(made, external(file=tmp_path / "top"))
    assert len(chain(tmp_path / "top")) == 200


def test_200_layers_can_still_have_an_internal_snapshot(tmp_path: Path) -> None:
    top = deep(tmp_path, 200)
    made = domain(tmp_path, disk(top))
    take(made)
    assert [tag["name"] for tag in info(top)["snapshots"]] == ["s1"]


def deep(folder: Path, layers: int) -> Path:
    """A chain of relative names; all but the base share one header."""
    name = "layer-000"
    make_image(folder / name, Format.QCOW2, MIB)
    pattern = folder / "pattern"
    qemu_img("create", "-q", "-f", "qcow2", "-u", "-b", name, "-F", "qcow2", pattern, str(MIB))
    header = pattern.read_bytes()
    pattern.unlink()
    assert header.count(name.encode()) == 1
    for number in range(1, layers):
        lower = f"layer-{number - 1:03}"
        (folder / f"layer-{number:03}").write_bytes(header.replace(name.encode(), lower.encode()))
    return folder / f"layer-{layers - 1:03}"
