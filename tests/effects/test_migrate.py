"""Migration: a domain's disks with all their snapshots in another folder, or nothing at all."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from imgtool import api
from imgtool.host.files import Files
from imgtool.host.headers import read_image
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    ExistsError,
    FailedError,
    NotFoundError,
    UnsupportedError,
)
from imgtool.model.image import Format, Qcow2Features
from imgtool.testing import MIB, MadeDomain, guest_bytes_digest, make_domain, make_image
from tests.crash.command import imgtool
from tests.crash.disks import fill, read_only, small_disk
from tests.crash.scenario import digest

from .asking import chain, disk, domain, loop_device, mounted, named, qemu_img, take
from .moves import (
    SIZE,
    backings,
    guest_writes,
    layer,
    migrate,
    refuses,
    shown,
    sources,
    tree,
    twig,
    whole,
)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The folder to move to."""
    folder = tmp_path / "new"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_a_tree_moves_whole(tmp_path: Path, new: Path, relative: bool) -> None:
    made = tree(tmp_path, relative=relative)
    before, old, images = shown(made), digest(tmp_path / "images"), len(sources(made))
    result = migrate(made, new)
    assert shown(made) == before
    assert imgtool("-c", made.uri, "check", "vm").returncode == 0
    assert digest(tmp_path / "images") == old, "the old place is as it was"
    assert len(sources(made)) == images
    assert {path.parent for path in sources(made)} == {new}
    names = {path.name for folder in ("images", "golden") for path in (tmp_path / folder).iterdir()}
    assert {path.name for path in new.iterdir()} == names
    assert all("/" not in (backing or "") for backing in backings(new).values())
    assert result.transaction
    whole(new)


def test_a_folder_that_is_renamed_afterwards(tmp_path: Path, new: Path) -> None:
    made = twig(tmp_path)
    migrate(made, new)
    top = named(made, "vda").source
    assert top is not None
    guest = guest_bytes_digest(top, Format.QCOW2)
    moved = new.rename(tmp_path / "elsewhere") / top.name
    assert guest_bytes_digest(moved, Format.QCOW2) == guest
    layers = chain(moved)
    assert {Path(layer).parent for layer in layers} == {tmp_path / "elsewhere"}


def test_snapshots_work_in_the_new_place(tmp_path: Path, new: Path) -> None:
    made = tree(tmp_path)
    before = shown(made)
    migrate(made, new)
    for name in ("images", "golden"):
        (tmp_path / name).rename(tmp_path / f"gone-{name}")
    with api.open_world(made.uri) as world:
        api.revert_to(world, "vm", "left", api.RevertOptions(keep_as="right"))
    assert shown(made)["now vda"] == before["left vda"]
    with api.open_world(made.uri) as world:
        for name in ("one", "inside", "three", "two", "right", "left"):
            api.delete_snapshot(world, "vm", name, api.DeleteOptions())
    assert shown(made) == {f"now {each}": before[f"left {each}"] for each in ("vda", "vdb")}
    assert {path.parent for path in sources(made)} == {new}
    whole(new)


def test_some_disks_only(tmp_path: Path, new: Path) -> None:
    made = tree(tmp_path)
    before, stays = shown(made), named(made, "vdb").source
    result = migrate(made, new, disks=["vda"])
    assert shown(made) == before
    assert named(made, "vdb").source == stays
    assert [each.target for each in result.planned.disks] == ["vda"]
    assert (new / "base.raw").exists(), "each disk has its own now"
    assert not list(new.glob("b.*"))
    error = refuses(tmp_path, made, new, ExistsError, "vdb: base.raw exists already")
    assert "share" in error.remedy


def test_there_already(tmp_path: Path, new: Path) -> None:
    made = twig(tmp_path)
    migrate(made, new)
    before = digest(tmp_path)
    assert migrate(made, new).transaction == ""
    assert digest(tmp_path) == before


def test_a_base_that_is_there_already(tmp_path: Path, new: Path) -> None:
    layer(new / "base.raw", 1)
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2, new / "base.raw", Format.RAW)))
    before = shown(made)
    result = migrate(made, new)
    assert shown(made) == before
    assert backings(new) == {"top": "base.raw"}
    assert [step.overlay.name for step in result.planned.plan.made] == ["top"]


def test_an_overlay_that_is_there_already(tmp_path: Path, new: Path) -> None:
    base = layer(tmp_path / "base.raw", 1)
    made = domain(tmp_path, disk(layer(new / "top", 2, base, Format.RAW)))
    refuses(tmp_path, made, new, UnsupportedError, "is in", "already", "base.raw is not")


ODD = ["with space", "com,ma", "co:lon", "new\nline", "-dash", "ü€", "per%cent", "a'b\"c<&>"]


@pytest.mark.parametrize("name", ODD)
def test_odd_names(tmp_path: Path, new: Path, name: str) -> None:
    """Of a base any name will do; of an active layer one that XML can hold."""
    base = layer(tmp_path / name, 1)
    top = tmp_path / ("top" if "\n" in name else f"{name}.top")
    made = domain(tmp_path, disk(layer(top, 2, base)))
    before = shown(made)
    migrate(made, new)
    assert shown(made) == before
    assert {path.name for path in new.iterdir()} == {name, top.name}
    assert backings(new)[top.name] == (f"./{name}" if ":" in name else name)


def test_a_name_that_is_not_utf8(tmp_path: Path, new: Path) -> None:
    base = layer(Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff")), 1)
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2, base)))
    before = shown(made)
    migrate(made, new)
    assert shown(made) == before
    folder = tmp_path / os.fsdecode(b"\xfe")
    folder.mkdir()
    refuses(tmp_path, made, folder, BadRequestError, "XML cannot hold this name")


def test_one_name_twice(tmp_path: Path, new: Path) -> None:
    """Active layers keep their names, in the order of the disks; the next has a number."""
    for name in "xyz":
        (tmp_path / name).mkdir()
    base = layer(tmp_path / "x/disk.qcow2", 1)
    one = layer(tmp_path / "y/disk.qcow2", 2, base)
    two = layer(tmp_path / "z/disk.qcow2", 3)
    made = domain(tmp_path, disk(one), disk(two, target="vdb"))
    before = shown(made)
    migrate(made, new)
    assert shown(made) == before
    assert backings(new) == {
        "disk.qcow2": "disk-3.qcow2",
        "disk-2.qcow2": None,
        "disk-3.qcow2": None,
    }


def test_a_name_that_somebody_has(tmp_path: Path, new: Path) -> None:
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2)))
    (new / "top").write_text("mine")
    refuses(tmp_path, made, new, ExistsError, "vda: top exists already")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2)))
    error = refuses(tmp_path, made, tmp_path / "none", BadRequestError, "no such folder")
    assert error.remedy.startswith("mkdir -p ")
    refuses(tmp_path, made, tmp_path / "top", BadRequestError, "is no folder")


def test_a_folder_by_another_name(tmp_path: Path, new: Path) -> None:
    """The XML spells it as it was given, but for `..`, which means something else behind a link."""
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2)))
    link = tmp_path / "link"
    link.symlink_to(new)
    migrate(made, link)
    assert named(made).source == link / "top"
    deep = tmp_path / "deep"
    deep.mkdir()
    migrate(made, link / ".." / "deep")
    assert named(made).source == deep / "top"
    assert (link / "top").exists()


def test_links_are_followed(tmp_path: Path, new: Path) -> None:
    (tmp_path / "san").mkdir()
    layer(tmp_path / "san" / "lun.raw", 1)
    link = tmp_path / "base"
    link.symlink_to("san/lun.raw")
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2, link, Format.RAW)))
    before = shown(made)
    migrate(made, new)
    assert shown(made) == before
    assert backings(new) == {"top": "lun.raw"}


def test_cdroms_and_readonly_disks_stay_unless_they_are_named(tmp_path: Path, new: Path) -> None:
    iso, golden = layer(tmp_path / "iso.raw", 1), layer(tmp_path / "golden", 2)
    made = domain(
        tmp_path,
        disk(layer(tmp_path / "top", 3)),
        disk(golden, target="vdb", readonly=True),
        disk(iso, Format.RAW, target="sda", device="cdrom"),
        disk(iso, Format.RAW, target="sdb", device="cdrom", source=None),
    )
    migrate(made, new)
    assert {path.name for path in new.iterdir()} == {"top"}
    migrate(made, new, disks=["sda", str(golden)])
    assert {path.name for path in new.iterdir()} == {"top", "iso.raw", "golden"}
    assert named(made, "sda").source == new / "iso.raw"
    refuses(tmp_path, made, new, NotFoundError, "no disk named 'vdz'", disks=["vdz"])
    refuses(tmp_path, made, new, UnsupportedError, "sdb", disks=["sdb"])


def test_a_block_device_becomes_a_file(tmp_path: Path, new: Path) -> None:
    file = layer(tmp_path / "lun.raw", 1)
    with loop_device(file) as device:
        top = layer(tmp_path / "top", 2, device, Format.RAW)
        made = domain(tmp_path, disk(top), disk(device, Format.RAW, target="vdb"))
        before = shown(made)
        migrate(made, new)
        assert shown(made) == before
        assert named(made, "vdb").type == "file"
        assert named(made, "vdb").source == new / device.name
        assert (new / device.name).stat().st_size == SIZE
        assert read_image(new / "top", Format.QCOW2).backing == device.name


def test_owner_and_mode_go_along(tmp_path: Path, new: Path) -> None:
    top = layer(tmp_path / "top", 2)
    os.chown(top, 1234, 2345)
    top.chmod(0o640)
    migrate(domain(tmp_path, disk(top)), new)
    facts = (new / "top").stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o777) == (1234, 2345, 0o640)


def test_another_file_system(tmp_path: Path) -> None:
    made = tree(tmp_path)
    before = shown(made)
    with mounted("tmpfs", tmp_path / "mnt") as mnt:
        migrate(made, mnt)
        assert shown(made) == before
        assert {path.parent for path in sources(made)} == {mnt}
        whole(mnt)


def test_space_is_looked_at_beforehand(tmp_path: Path) -> None:
    made = twig(tmp_path)
    with mounted("tmpfs", tmp_path / "mnt", "size=64k") as mnt:
        refuses(tmp_path, made, mnt, FailedError, "bytes are needed")


def test_a_reflink_needs_no_space(tmp_path: Path) -> None:
    with small_disk("xfs", tmp_path) as small:
        top = layer(small / "top.raw", 1)
        os.truncate(top, 24 * MIB)
        with top.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, 24 * MIB)
        made = domain(tmp_path, disk(top, Format.RAW))
        fill(small, leave=12 * MIB)
        new = small / "new"
        new.mkdir()
        before = shown(made)
        migrate(made, new)
        assert shown(made) == before
        assert named(made).source == new / "top.raw"


class HopefulFiles(Files):
    """Sees room wherever it looks, as where somebody else fills the disk meanwhile."""

    def free_bytes(self, folder: Path) -> int:
        return 1 << 40


@pytest.mark.parametrize("limit", ["nr_inodes=3", "size=256k"])
def test_no_space_half_way(tmp_path: Path, limit: str) -> None:
    made = twig(tmp_path)
    before = digest(tmp_path / "images"), shown(made)
    with mounted("tmpfs", tmp_path / "mnt", limit) as mnt:
        with pytest.raises(FailedError, match="No space left on device") as raised:
            with api.open_world(made.uri, files=HopefulFiles()) as world:
                api.migrate(world, "vm", api.MigrateOptions(to=mnt))
        assert raised.value.remedy == "free some space there"
        assert list(mnt.iterdir()) == []
    assert (digest(tmp_path / "images"), shown(made)) == before
    with api.open_world(made.uri) as world:
        assert api.pending(world) == ()


def test_read_only_storage(tmp_path: Path, new: Path) -> None:
    made = twig(tmp_path)
    with read_only(new):
        error = refuses(tmp_path, made, new, FailedError, "Read-only file system")
        assert "choose a folder that can be written" in error.remedy


def test_a_snapshot_whose_image_is_lost(tmp_path: Path, new: Path) -> None:
    made = tree(tmp_path)
    lost = next(path for path in sources(made) if path.name == "a.three")
    lost.unlink()
    error = refuses(tmp_path, made, new, ChainError, "snapshot left", "a.three")
    assert "--metadata" in error.remedy


def test_a_damaged_image_is_not_moved(tmp_path: Path, new: Path) -> None:
    top = layer(tmp_path / "top", 2)
    with top.open("r+b") as file:
        file.seek(2 * 65536)  # a refcount block: every count is wrong
        file.write(b"\0" * 512)
    made = domain(tmp_path, disk(top))
    error = refuses(tmp_path, made, new, FailedError, "qemu-img check finds")
    assert "qemu-img check" in error.remedy


def test_other_formats(tmp_path: Path, new: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    base = layer(tmp_path / "there" / "base.raw", 1)
    beside = layer(tmp_path / "here" / "beside.raw", 1)
    here = tmp_path / "here"
    make_image(here / "x.qed", Format.QED, SIZE, backing="beside.raw", backing_format=Format.RAW)
    make_image(here / "y.qed", Format.QED, SIZE, backing=base, backing_format=Format.RAW)
    make_image(here / "z.vmdk", Format.VMDK, SIZE)
    made = domain(
        tmp_path,
        disk(here / "x.qed", Format.QED),
        disk(here / "z.vmdk", Format.VMDK, target="vdb"),
        disk(here / "y.qed", Format.QED, target="vdc"),
    )
    assert beside.exists()
    refuses(tmp_path, made, new, UnsupportedError, "y.qed", "cannot be changed")
    migrate(made, new, disks=["vda", "vdb"])
    assert {path.name for path in new.iterdir()} == {"x.qed", "beside.raw", "z.vmdk"}


def test_many_layers_share_one_copy(tmp_path: Path, new: Path) -> None:
    base = layer(tmp_path / "base", 1)
    tops = [layer(tmp_path / f"top{number}", 2, base) for number in range(4)]
    made = domain(
        tmp_path, *(disk(top, target=f"vd{n}") for n, top in zip("abcd", tops, strict=True))
    )
    result = migrate(made, new)
    assert [each.layers for each in result.planned.disks] == [2, 1, 1, 1]
    assert len(list(new.iterdir())) == 5
    assert sum(each.size for each in result.planned.disks) < 5 * MIB


def test_a_dry_run_begins_nothing(tmp_path: Path, new: Path) -> None:
    made = twig(tmp_path)
    before = digest(tmp_path)
    result = migrate(made, new, dry_run=True)
    assert digest(tmp_path) == before
    assert len(result.planned.plan.steps) == len(list((tmp_path / "images").iterdir())) + 1


def test_a_snapshot_is_taken_afterwards(tmp_path: Path, new: Path) -> None:
    made = twig(tmp_path)
    migrate(made, new)
    take(made, name="after", disk_only=True)
    guest_writes(made, 12)
    assert {path.parent for path in sources(made)} == {new}


def chained(folder: Path) -> tuple[MadeDomain, Path]:
    """vda: base <- top, with features and a bitmap; vdb: raw."""
    base = layer(folder / "base.raw", 1)
    top = folder / "top"
    features = Qcow2Features(cluster_size=4096, lazy_refcounts=True)
    make_image(top, size=SIZE, features=features, backing=base, backing_format=Format.RAW)
    qemu_img("bitmap", "--add", "-f", "qcow2", top, "dirty")
    other = layer(folder / "other.raw", 2)
    return domain(folder, disk(top), disk(other, Format.RAW, target="vdb")), top


def test_flatten(tmp_path: Path, new: Path) -> None:
    made, top = chained(tmp_path)
    before, header = shown(made), read_image(top, Format.QCOW2)
    result = migrate(made, new, flatten=True)
    assert shown(made) == before
    assert {path.name for path in new.iterdir()} == {"top", "other.raw"}
    flat = read_image(new / "top", Format.QCOW2)
    assert (flat.backing, flat.features, flat.bitmaps) == (None, header.features, ("dirty",))
    assert named(made, "vdb").format is Format.RAW
    assert [each.layers for each in result.planned.disks] == [1, 1]
    assert top.exists()


def test_flatten_and_delete_the_source(tmp_path: Path, new: Path) -> None:
    made, _top = chained(tmp_path)
    before = shown(made)
    migrate(made, new, flatten=True, delete_source=True)
    assert shown(made) == before
    assert {path.name for path in tmp_path.iterdir()} == {"new", "store"}


def test_a_snapshot_needs_its_chain(tmp_path: Path, new: Path) -> None:
    made = tree(tmp_path)
    error = refuses(tmp_path, made, new, UnsupportedError, "snapshot", "one", flatten=True)
    assert "leave --flatten out" in error.remedy
    base = layer(tmp_path / "base", 1)
    top = layer(tmp_path / "top", 2, base)
    qemu_img("snapshot", "-c", "mine", top)
    (tmp_path / "two").mkdir()
    made = domain(tmp_path / "two", disk(top))
    refuses(tmp_path, made, new, UnsupportedError, "internal snapshots inside", flatten=True)
    (new / "y").mkdir()
    here = domain(tmp_path / "two", disk(layer(new / "flat", 3, base)))
    refuses(tmp_path, here, new, UnsupportedError, "is in", flatten=True)


def test_sources_that_nobody_needs_go(tmp_path: Path, new: Path) -> None:
    made = tree(tmp_path)
    before = shown(made)
    count = len(list((tmp_path / "images").iterdir())) + 1
    said: list[str] = []
    result = migrate(made, new, said, delete_source=True)
    assert shown(made) == before
    assert list((tmp_path / "images").iterdir()) == list((tmp_path / "golden").iterdir()) == []
    assert len(result.planned.dropped) == len(list(new.iterdir())) == count
    assert said == []
    assert result.planned.dropped[-1].name == "base.raw", "no chain is ever without its base"


def test_sources_that_others_need_stay(tmp_path: Path, new: Path) -> None:
    """Another disk, another domain, its snapshot, an overlay that nobody records: each is named."""
    paths = {name: layer(tmp_path / name, 1) for name in ("disk", "domain", "snapshot", "stray")}
    tops = [layer(tmp_path / f"{name}.top", 2, base) for name, base in paths.items()]
    targets = ("vda", "vdb", "vdc", "vdd")
    own = [disk(top, target=target) for target, top in zip(targets, tops, strict=True)]
    stays = layer(tmp_path / "stays", 3, paths["disk"])
    made = domain(tmp_path, *own, disk(stays, target="vde"))
    other = layer(tmp_path / "other", 3, paths["domain"])
    make_domain(made.folder, "two", [disk(other)])
    third = make_domain(made.folder, "three", [disk(layer(tmp_path / "t", 4, paths["snapshot"]))])
    take(third, disk_only=True)
    make_domain(made.folder, "three", [disk(tmp_path / "other")])
    layer(tmp_path / "nobody", 5, paths["stray"])
    before, said = shown(made), list[str]()
    result = migrate(made, new, said, disks=list(targets), delete_source=True)
    assert shown(made) == before
    whys = {each.path.name: each.reason for each in result.planned.kept}
    assert whys == {
        "disk": "needed by disk vde",
        "domain": f"needed by domain three, domain two, {other}",
        "snapshot": f"needed by domain three, {tmp_path}/t, {tmp_path}/t.s1",
        "stray": f"needed by {tmp_path}/nobody",
    }
    for name, path in paths.items():
        assert path.exists()
        assert any(f"{path} stays: " in line for line in said), name
    assert not any(top.exists() for top in tops)


def test_what_is_in_use_again_stays(tmp_path: Path, new: Path) -> None:
    """Killed after the pivot; before anybody recovers it, a stranger builds on the old base."""
    base = layer(tmp_path / "base", 1)
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2, base)))
    before = shown(made)
    options = api.MigrateOptions(to=new, delete_source=True)
    if (child := os.fork()) == 0:
        try:
            with api.open_world(made.uri, files=KilledFiles(), jobs=1) as world:
                api.migrate(world, "vm", options)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    make_domain(made.folder, "two", [disk(layer(tmp_path / "later", 3, base))])
    said: list[str] = []
    with api.open_world(made.uri, say=said.append) as world:
        assert not api.recover(world).problems
    assert shown(made) == before
    assert base.exists()
    assert not (tmp_path / "top").exists()
    assert any("base is in use again" in line for line in said), said


class KilledFiles(Files):
    """Dies when the first source is to be removed."""

    def unlink(self, path: Path) -> None:
        if path.name == "top" and path.parent.name != "new":
            os.kill(os.getpid(), signal.SIGKILL)
        super().unlink(path)
