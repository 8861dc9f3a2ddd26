"""Copy jobs do to images and domains what they say, and refuse what they should."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.engine.jobfile import JobFile
from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.host.locks import PinnedImages
from imgtool.model.domain import Disk
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    ExistsError,
    FailedError,
    ImageChangedError,
    ImageInUseError,
    NotFoundError,
    RefusedError,
    UnsupportedError,
)
from imgtool.model.image import Format, Qcow2Features
from imgtool.model.job import Phase
from imgtool.model.plan import Pin
from imgtool.testing import (
    KIB,
    MIB,
    MadeDomain,
    guest_bytes_digest,
    make_image,
    write_pattern,
)
from tests.crash.scenario import digest

from .asking import chain, disk, domain, info, loop_device, mounted, named, qemu_img, take
from .jobs import SIZE, Trio, commit, refuses, resize, trio
from .moves import migrate

AWKWARD = "a:b, c\u00e9 -o.img"


def copy(
    made: MadeDomain,
    dests: dict[str, Path] | Path,
    *,
    fmt: Format | None = None,
    said: list[str] | None = None,
    **how: Any,
) -> api.CopyResult:
    """Copy vda to a path, or several disks."""
    wanted = dests if isinstance(dests, dict) else {"vda": dests}
    targets = [api.CopyTarget(disk=name, dest=str(to), format=fmt) for name, to in wanted.items()]
    with api.open_world(made.uri, say=None if said is None else said.append) as world:
        return api.block_copy(world, made.name, targets, api.CopyOptions(**how))


def job(made: MadeDomain, target: str = "vda") -> api.CopyResult:
    with api.open_world(made.uri) as world:
        return api.block_job(world, made.name, target)


def pivot(made: MadeDomain, target: str = "vda") -> api.CopyResult:
    with api.open_world(made.uri) as world:
        return api.block_job_pivot(world, made.name, target)


def abort(made: MadeDomain, target: str = "vda") -> api.CopyResult:
    with api.open_world(made.uri) as world:
        return api.block_job_abort(world, made.name, target)


@pytest.fixture
def three(tmp_path: Path) -> Trio:
    return trio(tmp_path)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """Where copies go."""
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


def test_ready_changes_nothing_and_a_pivot_moves_the_domain(three: Trio, to: Path) -> None:
    xml, before = three.made.xml.read_bytes(), digest(three.base.parent)
    result = copy(three.made, to / "copy")
    assert result.ending == "ready"
    assert three.made.xml.read_bytes() == xml
    assert guest_bytes_digest(to / "copy", Format.QCOW2) == three.guest
    assert "backing-filename" not in info(to / "copy")
    assert job(three.made).ending == "ready"
    assert [each.name for each in to.iterdir()] == ["copy"]
    assert pivot(three.made).ending == "pivoted"
    assert three.layers() == [to / "copy"]
    three.assert_same()
    assert job(three.made).job is None
    assert digest(three.base.parent) == before
    assert not (three.made.folder / ".imgtool").exists()


def test_an_abort_from_ready_keeps_the_copy(three: Trio, to: Path) -> None:
    store = digest(three.made.folder)
    copy(three.made, to / "copy")
    assert abort(three.made).ending == "finished"
    assert digest(three.made.folder) == store
    assert guest_bytes_digest(to / "copy", Format.QCOW2) == three.guest
    with pytest.raises(NotFoundError, match="no current block job for vda"):
        abort(three.made)


def test_pivot_and_finish_in_one_call(three: Trio, to: Path) -> None:
    store = digest(three.made.folder)
    assert copy(three.made, to / "kept", finish=True).ending == "finished"
    assert digest(three.made.folder) == store
    assert copy(three.made, to / "moved", pivot=True).ending == "pivoted"
    assert three.layers() == [to / "moved"]
    three.assert_same()


def test_a_copy_has_the_features_rights_and_bitmaps_of_its_source(tmp_path: Path, to: Path) -> None:
    features = Qcow2Features(cluster_size=32768, extended_l2=True, lazy_refcounts=True)
    image = make_image(tmp_path / "image", size=SIZE, features=features)
    write_pattern(image, Format.QCOW2, MIB, MIB, 7)
    qemu_img("bitmap", "--add", "-f", "qcow2", image, "b0")
    qemu_img("snapshot", "-c", "tag", image)
    image.chmod(0o640)
    os.chown(image, 12, 34)
    made = domain(tmp_path, disk(image))
    said: list[str] = []
    copy(made, to / AWKWARD, said=said)
    facts = info(to / AWKWARD)
    specific = facts["format-specific"]["data"]
    assert facts["cluster-size"] == 32768
    assert specific["extended-l2"]
    assert specific["lazy-refcounts"]
    assert [each["name"] for each in specific["bitmaps"]] == ["b0"]
    assert any("internal snapshots stay in" in line and "tag" in line for line in said)
    status = (to / AWKWARD).stat()
    assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (12, 34, 0o640)
    pivot(made)
    assert named(made).source == to / AWKWARD


@pytest.mark.parametrize(
    ("source", "dest"), [("raw", "qcow2"), ("qcow2", "raw"), ("raw", "raw"), ("qed", "qcow2")]
)
def test_from_one_format_to_another(source: str, dest: str, tmp_path: Path, to: Path) -> None:
    image = make_image(tmp_path / "image", Format(source), SIZE)
    write_pattern(image, Format(source), MIB, MIB, 7)
    made = domain(tmp_path, disk(image, Format(source)))
    copy(made, to / "copy", fmt=Format(dest), pivot=True)
    assert (named(made).source, named(made).format) == (to / "copy", dest)
    guest = guest_bytes_digest(image, Format(source))
    assert guest_bytes_digest(to / "copy", Format(dest)) == guest
    if dest == "raw":
        assert (to / "copy").stat().st_blocks * 512 <= MIB + 64 * KIB, "holes are kept"


@pytest.mark.parametrize("relative", [False, True])
def test_a_shallow_copy_builds_on_the_same_base(relative: bool, tmp_path: Path, to: Path) -> None:
    three = trio(tmp_path, relative=relative)
    copy(three.made, to / "copy", shallow=True, pivot=True)
    facts = info(to / "copy")
    assert facts["backing-filename"] == ("../images/mid.qcow2" if relative else str(three.mid))
    assert facts["backing-filename-format"] == "qcow2"
    assert facts["actual-size"] < info(three.top)["actual-size"] + 256 * KIB
    assert [Path(name).resolve() for name in three.layers()] == [three.base, three.mid, to / "copy"]
    three.assert_same()


def test_a_shallow_copy_beside_a_name_that_looks_like_a_protocol(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    base = make_image(images / "a:b,c", size=SIZE)
    write_pattern(base, Format.QCOW2, 0, MIB, 1)
    top = make_image(images / "top", size=SIZE, backing="./a:b,c", backing_format=Format.QCOW2)
    write_pattern(top, Format.QCOW2, MIB, MIB, 2)
    made = domain(tmp_path, disk(top))
    guest = guest_bytes_digest(top, Format.QCOW2)
    copy(made, images / "new", shallow=True, pivot=True)
    assert info(images / "new")["backing-filename"] == "./a:b,c"
    assert guest_bytes_digest(images / "new", Format.QCOW2) == guest


def test_shallow_without_a_base_is_a_full_copy(tmp_path: Path, to: Path) -> None:
    image = make_image(tmp_path / "image", Format.RAW, SIZE)
    write_pattern(image, Format.RAW, MIB, MIB, 7)
    made = domain(tmp_path, disk(image, Format.RAW))
    copy(made, to / "copy", shallow=True, pivot=True)
    assert (to / "copy").read_bytes() == image.read_bytes()


def pair(folder: Path) -> MadeDomain:
    """vda: qcow2, vdb: raw."""
    disks = []
    for number, (target, fmt) in enumerate((("vda", Format.QCOW2), ("vdb", Format.RAW)), start=1):
        image = make_image(folder / target, fmt, SIZE)
        write_pattern(image, fmt, number * 64 * KIB, MIB, number)
        disks.append(disk(image, fmt, target=target))
    return domain(folder, *disks)


def test_several_disks_pivot_together(tmp_path: Path, to: Path) -> None:
    made = pair(tmp_path)
    copy(made, {"vda": to / "a", "vdb": to / "b"})
    found = job(made, "vdb").job
    assert found is not None
    assert found.targets == ("vda", "vdb")
    pivot(made, "vdb")
    assert (named(made, "vda").source, named(made, "vdb").source) == (to / "a", to / "b")
    assert job(made, "vda").job is None


def test_two_jobs_of_one_domain(tmp_path: Path, to: Path) -> None:
    made = pair(tmp_path)
    copy(made, {"vda": to / "a"})
    copy(made, {"vdb": to / "b"})
    pivot(made, "vdb")
    assert named(made, "vda").source == tmp_path / "vda"
    assert job(made, "vda").ending == "ready"
    pivot(made, str(to / "a"))
    assert named(made, "vda").source == to / "a"


def test_one_disk_that_fails_leaves_nothing_of_any(tmp_path: Path, to: Path) -> None:
    made = pair(tmp_path)
    full = tmp_path / "full"
    with mounted("tmpfs", full, "size=4m"):
        (full / "filler").write_bytes(bytes(3 * MIB + 512 * KIB))
        before = digest(tmp_path)
        with pytest.raises(FailedError, match="free"):
            copy(made, {"vda": to / "a", "vdb": full / "b"})
        assert digest(tmp_path) == before


def test_running_out_of_space_in_the_middle(tmp_path: Path) -> None:
    """What is compressed takes less space than its copy."""
    raw = make_image(tmp_path / "raw", Format.RAW, 8 * MIB)
    write_pattern(raw, Format.RAW, 0, 8 * MIB, 7)
    image = tmp_path / "image"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", raw, image)
    made = domain(tmp_path, disk(image))
    full = tmp_path / "full"
    with mounted("tmpfs", full, "size=4m"):
        before = digest(tmp_path)
        with pytest.raises(FailedError, match="No space left on device") as raised:
            copy(made, full / "copy")
        assert raised.value.remedy == "free some space there"
        assert digest(tmp_path) == before


def test_what_ran_since_is_not_lost_by_a_pivot(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    write_pattern(three.top, Format.QCOW2, 0, 4 * KIB, 0x77)
    guest = guest_bytes_digest(three.top, Format.QCOW2)
    xml = three.made.xml.read_bytes()
    with pytest.raises(ImageChangedError, match="the copy is old") as raised:
        pivot(three.made)
    assert "blockcopy again" in raised.value.remedy
    assert "--abort" in raised.value.remedy
    assert three.made.xml.read_bytes() == xml
    assert job(three.made).ending == "ready"
    said: list[str] = []
    copy(three.made, to / "copy", said=said, pivot=True)
    assert any("copying anew" in line for line in said)
    assert guest_bytes_digest(to / "copy", Format.QCOW2) == guest
    assert named(three.made).source == to / "copy"


def test_the_same_words_again_find_the_job_ready(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    inode = (to / "copy").stat().st_ino
    assert copy(three.made, to / "copy").ending == "ready"
    assert (to / "copy").stat().st_ino == inode
    assert copy(three.made, to / "copy", pivot=True).ending == "pivoted"
    assert (to / "copy").stat().st_ino == inode


def test_a_copy_that_was_touched_is_never_pivoted_to_nor_removed(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    write_pattern(to / "copy", Format.QCOW2, 0, 4 * KIB, 0x77)
    with pytest.raises(ImageChangedError, match="was changed since it was made"):
        pivot(three.made)
    refuses(to.parent, ExistsError, "already exists", job=lambda: copy(three.made, to / "copy"))
    abort(three.made)
    assert (to / "copy").exists()


def test_a_copy_that_is_gone_is_made_again(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    (to / "copy").unlink()
    with pytest.raises(ChainError, match="copy"):
        pivot(three.made)
    copy(three.made, to / "copy", pivot=True)
    three.assert_same()
    assert three.layers() == [to / "copy"]


def test_an_open_job_keeps_others_away(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    for work in (
        lambda: commit(three.made, active=True),
        lambda: resize(three.made, 2 * SIZE),
        lambda: take(three.made),
        lambda: copy(three.made, to / "other"),
        lambda: undefine(three.made),
        lambda: migrate(three.made, to),
    ):
        error = refuses(to.parent, RefusedError, "disk 'vda' already in active block job", job=work)
        assert "--pivot" in error.remedy
        assert "--abort" in error.remedy
    abort(three.made)
    take(three.made, disk_only=True)


def test_a_job_of_another_disk_is_in_no_block_jobs_way(tmp_path: Path, to: Path) -> None:
    made = pair(tmp_path)
    copy(made, {"vdb": to / "b"})
    resize(made, 2 * SIZE)
    assert info(tmp_path / "vda")["virtual-size"] == 2 * SIZE
    pivot(made, "vdb")
    assert (named(made, "vda").source, named(made, "vdb").source) == (tmp_path / "vda", to / "b")


def undefine(made: MadeDomain) -> None:
    with api.open_world(made.uri) as world:
        api.undefine(world, made.name)


def test_snapshots_stay_whole(three: Trio, to: Path) -> None:
    take(three.made, disk_only=True)
    said: list[str] = []
    copy(three.made, to / "copy", said=said, pivot=True)
    assert any("snapshots of vm go on naming" in line for line in said)
    with api.open_world(three.made.uri) as world:
        (found,) = api.check(world, three.made.name)
        assert found.well, found
        api.revert_to(world, three.made.name, "s1", api.RevertOptions(force=True))
    assert guest_bytes_digest(*_active(three.made)) == three.guest


def _active(made: MadeDomain) -> tuple[Path, Format]:
    found = named(made)
    assert found.source is not None
    assert found.format is not None
    return found.source, found.format


def test_a_domain_that_names_another_image_meanwhile(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    other = make_image(three.base.parent / "other", size=SIZE)
    three.made.xml.write_text(three.made.xml.read_text().replace(str(three.top), str(other)))
    with pytest.raises(ImageChangedError, match="the copy is old"):
        pivot(three.made)
    abort(three.made)
    assert named(three.made).source == other


def test_a_copy_that_somebody_lets_the_domain_use_is_never_removed(three: Trio, to: Path) -> None:
    """Killed after it had its name and before the job was ready, and named by hand then."""
    copy(three.made, to / "copy")
    (path,) = three.made.folder.glob(".imgtool/*/job")
    file = JobFile(path, Files())
    (known,) = file.read()
    file.put(replace(known, phase=Phase.COPYING))
    three.made.xml.write_text(three.made.xml.read_text().replace(str(three.top), str(to / "copy")))
    abort(three.made)
    assert three.layers() == [to / "copy"]
    three.assert_same()


def test_somebody_pivots_by_hand(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    three.made.xml.write_text(three.made.xml.read_text().replace(str(three.top), str(to / "copy")))
    assert job(three.made).job is None
    take(three.made, disk_only=True)
    assert list(three.made.folder.glob(".imgtool/*/job")) == []


def test_the_copy_is_locked_against_qemu_while_it_is_made(three: Trio, to: Path) -> None:
    with writing(three.top), pytest.raises(ImageInUseError, match=r"top\.qcow2 is in use"):
        copy(three.made, to / "copy")
    assert list(to.iterdir()) == []


def writing(path: Path) -> PinnedImages:
    """Hold an image as QEMU does while it writes it."""
    pinned = PinnedImages()
    pin = Pin(target="x", path=path, identity=Files().identity(path), exclusive=True)
    pinned.pin([pin])
    return pinned


def test_gc_and_check_know_of_jobs(three: Trio) -> None:
    dest = three.base.parent / "copy"
    copy(three.made, dest, shallow=True)
    with api.open_world(three.made.uri) as world:
        (found,) = api.check(world, three.made.name)
        assert found.well
        assert [each.kind for each in found.findings] == ["block-job"]
        assert "ready" in found.findings[0].message
        (swept,) = api.sweep(world, three.made.name, force=True)
        recovery = api.recover(world)
    assert swept.removed == ()
    assert dest.exists()
    assert [each.targets for each in recovery.jobs] == [("vda",)]
    pivot(three.made)
    assert three.layers()[-1] == dest


def test_recovery_of_a_domain_that_was_removed_keeps_whole_copies(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    three.made.xml.unlink()
    with api.open_world(three.made.uri) as world:
        recovery = api.recover(world, three.made.name)
    assert recovery.problems == ()
    assert recovery.jobs == ()
    assert (to / "copy").exists()
    assert not (three.made.folder / ".imgtool").exists()


def test_a_damaged_job_file_is_told_and_touched_by_nobody(three: Trio, to: Path) -> None:
    copy(three.made, to / "copy")
    (path,) = three.made.folder.glob(".imgtool/*/job")
    path.write_bytes(path.read_bytes()[:-20])
    before = digest(to.parent)
    with api.open_world(three.made.uri) as world:
        recovery = api.recover(world)
    assert "is damaged" in recovery.problems[0].message
    assert recovery.problems[0].exit_code == 4
    assert digest(to.parent) == before


def reusable(three: Trio, path: Path, size: int = SIZE) -> Path:
    """An overlay over mid, as mirror-create or a person makes it."""
    return make_image(path, size=size, backing=three.mid, backing_format=Format.QCOW2)


def test_reuse_of_an_overlay(three: Trio, to: Path) -> None:
    made = reusable(three, to / "new")
    inode = made.stat().st_ino
    copy(three.made, made, shallow=True, reuse_external=True, pivot=True)
    assert made.stat().st_ino == inode
    assert three.layers() == [three.base, three.mid, made]
    three.assert_same()


def test_reuse_with_a_chain_of_its_own(three: Trio, to: Path) -> None:
    """The second place of the old recipe: the layers were copied there beforehand."""
    for name, base in (("base.qcow2", None), ("mid.qcow2", "base.qcow2")):
        source = three.base.parent / name
        (to / name).write_bytes(source.read_bytes())
        if base is not None:
            qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", base, to / name)
    new = make_image(to / "n", size=SIZE, backing="mid.qcow2", backing_format=Format.QCOW2)
    copy(three.made, new, shallow=True, reuse_external=True, pivot=True)
    assert info(new)["backing-filename"] == "mid.qcow2"
    assert [Path(each).resolve() for each in three.layers()] == [
        to / "base.qcow2",
        to / "mid.qcow2",
        new,
    ]
    three.assert_same()


def test_reuse_where_the_base_is_not_equal(three: Trio, to: Path) -> None:
    other = make_image(to / "other", size=SIZE)
    made = make_image(to / "new", size=SIZE, backing=other, backing_format=Format.QCOW2)
    with pytest.raises(FailedError, match="does not show what the disk shows"):
        copy(three.made, made, shallow=True, reuse_external=True)
    assert made.exists(), "it is not ours"
    assert job(three.made).job is None
    assert named(three.made).source == three.top


@pytest.mark.parametrize("fmt", [Format.RAW, Format.QCOW2])
def test_reuse_of_an_image_with_old_data(fmt: Format, three: Trio, to: Path) -> None:
    made = make_image(to / "new", fmt, SIZE)
    write_pattern(made, fmt, 0, SIZE, 0xEE)
    copy(three.made, made, fmt=fmt, reuse_external=True, pivot=True)
    assert guest_bytes_digest(made, fmt) == three.guest
    assert named(three.made).source == made


def test_reuse_of_a_block_device(three: Trio, to: Path) -> None:
    file = to / "file"
    file.write_bytes(bytes(SIZE))
    with loop_device(file) as device:
        copy(three.made, device, fmt=Format.RAW, reuse_external=True)
        device.write_bytes(b"x" * 4096)  # nothing but its data shows that
        with pytest.raises(ImageChangedError):
            pivot(three.made)
        copy(three.made, device, fmt=Format.RAW, reuse_external=True, pivot=True)
        found = named(three.made)
        assert (found.type, found.source, found.format) == ("block", device, Format.RAW)
        assert guest_bytes_digest(device, Format.RAW) == three.guest


@pytest.mark.parametrize(
    ("make", "how", "says"),
    [
        (lambda three, path: None, {}, "missing destination file for disk vda"),
        (lambda three, path: make_image(path, size=2 * SIZE), {}, "shows 8388608 bytes"),
        (reusable, {}, "a copy of the whole disk does not need"),
        (lambda three, path: make_image(path, size=SIZE), {"shallow": True}, "has no base"),
    ],
)
def test_what_cannot_be_reused(
    make: Any, how: dict[str, Any], says: str, three: Trio, to: Path
) -> None:
    make(three, to / "new")
    refuses(
        to.parent,
        BadRequestError,
        says,
        job=lambda: copy(three.made, to / "new", reuse_external=True, **how),
    )


def test_an_overlay_with_data_or_in_use_cannot_be_reused(three: Trio, to: Path) -> None:
    made = reusable(three, to / "new")
    write_pattern(made, Format.QCOW2, 0, 4 * KIB, 1)
    how: dict[str, Any] = {"reuse_external": True, "shallow": True}
    refuses(
        to.parent,
        BadRequestError,
        "has data of its own",
        job=lambda: copy(three.made, made, **how),
    )
    refuses(
        to.parent,
        BadRequestError,
        "is used by domain vm",
        job=lambda: copy(three.made, three.mid, **how),
    )


@pytest.mark.parametrize(
    ("fmt", "how", "kind", "says"),
    [
        (Format.VMDK, {}, UnsupportedError, "cannot be a vmdk image"),
        (Format.RAW, {"shallow": True}, UnsupportedError, "a raw copy cannot be shallow"),
    ],
)
def test_formats_that_copies_cannot_have(
    fmt: Format, how: dict[str, Any], kind: type[Any], says: str, three: Trio, to: Path
) -> None:
    refuses(to.parent, kind, says, job=lambda: copy(three.made, to / "new", fmt=fmt, **how))


def test_names_that_are_taken_or_cannot_be(three: Trio, to: Path) -> None:
    (to / "there").write_text("somebody's")
    (to / "link").symlink_to(to / "nowhere")
    for name, kind, says in (
        ("there", ExistsError, "already exists"),
        ("link", ExistsError, "already exists"),
        ("no/folder", BadRequestError, "no such folder"),
        ("new\nline", BadRequestError, "XML cannot hold"),
        ("x" * 256, BadRequestError, "File name too long"),
    ):
        refuses(to.parent, kind, says, job=lambda name=name: copy(three.made, to / name))


def test_one_destination_for_two_disks(tmp_path: Path, to: Path) -> None:
    made = pair(tmp_path)
    (tmp_path / "link").symlink_to(to)
    both = {"vda": to / "x", "vdb": tmp_path / "link" / "x"}
    refuses(tmp_path, BadRequestError, "vda and vdb would both", job=lambda: copy(made, both))


def test_a_dry_run_writes_nothing(three: Trio, to: Path) -> None:
    before = digest(to.parent)
    result = copy(three.made, to / "copy", shallow=True, dry_run=True)
    assert digest(to.parent) == before
    assert result.job is not None
    (planned,) = result.job.disks
    assert (planned.dest, planned.backing) == (to / "copy", str(three.mid))
    assert result.job.phase is Phase.COPYING


def test_a_disk_that_is_a_part_of_its_file(three: Trio, to: Path) -> None:
    xml = three.made.xml.read_text()
    slices = "<slices><slice type='storage' offset='0' size='4096'/></slices>"
    source = f"<source file='{three.top}'/>"
    assert source in xml or f'<source file="{three.top}"/>' in xml
    for each in (source, f'<source file="{three.top}"/>'):
        xml = xml.replace(each, f"{each[:-2]}>{slices}</source>")
    three.made.xml.write_text(xml)
    refuses(
        to.parent, UnsupportedError, "is a part of its file", job=lambda: copy(three.made, to / "c")
    )


def test_a_failure_in_a_world_that_goes_on(three: Trio, to: Path) -> None:
    """A program may use one world for long: it is as good as new after a failure."""
    other = make_image(to / "other", size=SIZE)
    overlay = make_image(to / "new", size=SIZE, backing=other, backing_format=Format.QCOW2)
    with api.open_world(three.made.uri) as world:
        with pytest.raises(FailedError):
            _copy_in(world, overlay, shallow=True, reuse_external=True)
        _copy_in(world, to / "one", pivot=True)
        _copy_in(world, to / "two", pivot=True)
    assert chain(to / "two") == [str(to / "two")]
    three.assert_same()


def _copy_in(world: World, dest: Path, **how: Any) -> None:
    target = api.CopyTarget(disk="vda", dest=str(dest))
    api.block_copy(world, "vm", [target], api.CopyOptions(**how))


def test_a_destination_that_is_relative(
    three: Trio, to: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (to / "below").mkdir()
    monkeypatch.chdir(to / "below")
    copy(three.made, Path("../copy"), pivot=True)
    assert named(three.made).source == to / "copy"


def test_the_disk_by_the_path_of_its_image(three: Trio, to: Path) -> None:
    copy(three.made, {str(three.top): to / "copy"})
    assert job(three.made, str(three.top)).ending == "ready"
    assert job(three.made, str(to / "copy")).ending == "ready"
    with pytest.raises(NotFoundError, match="no disk named 'vdz'"):
        job(three.made, "vdz")


def test_an_empty_drive(tmp_path: Path, to: Path) -> None:
    made = domain(tmp_path, Disk(target="sda", device="cdrom"))
    refuses(tmp_path, UnsupportedError, "no local image", job=lambda: copy(made, {"sda": to / "x"}))
