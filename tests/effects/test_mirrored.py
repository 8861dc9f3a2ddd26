"""Mirrored snapshots: taken, guarded, pivoted, given up; nothing in between, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.engine.interrupt import Interrupt
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    DomainChangedError,
    ExistsError,
    ImgtoolError,
    Interrupted,
    NotFoundError,
    RefusedError,
)
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, guest_bytes_digest, make_image, qemu_io, write_pattern
from tests.crash.scenario import digest

from .asking import NAME, E, disk, domain, external, info, internal, named, qemu_img, take
from .mirrored import SIZE, Move, make_move, typed


@pytest.fixture
def move(tmp_path: Path) -> Move:
    return make_move(tmp_path)


def prepare(move: Move) -> None:
    with api.open_world(move.made.uri) as world:
        api.create_mirror_files(world, "vm", [move.asked()])


def refused(root: Path, kind: type[E], act: Any) -> E:
    """With this type, and nothing below `root` has changed."""
    before = digest(root)
    with pytest.raises(ImgtoolError) as raised:
        act()
    assert digest(root) == before, f"something was written: {raised.value!r}"
    assert type(raised.value) is kind, repr(raised.value)
    assert isinstance(raised.value, kind)
    assert raised.value.remedy
    return raised.value


@pytest.mark.parametrize("reuse", [False, True])
def test_the_domain_moves_to_the_file_and_the_mirror_is_noted(
    move: Move, reuse: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = move.guest()
    if reuse:
        prepare(move)
    result = move.mirrored(reuse_external=reuse)
    assert result.disks[0].mirror == move.new
    assert named(move.made).source == move.migrate
    assert move.guest() == guest
    for path in (move.migrate, move.new):
        facts = info(path)
        assert (facts["backing-filename"], facts["backing-filename-format"]) == (
            "old.qcow2",
            "qcow2",
        )
        assert facts["virtual-size"] == SIZE
    (record,) = (move.made.folder / ".imgtool").glob(f"*/snapshots/{NAME}.xml")
    assert "<mirror" not in record.read_text()  # libvirt would drop it
    assert str(move.new) in record.read_text()
    shown = typed(capsys, "-c", move.made.uri, "snapshot-dumpxml", "vm", NAME).stdout
    assert f"<mirror file='{move.new}'/>" in shown
    assert "recorded-by" not in move.made.xml.read_text()
    assert "mirror" not in move.made.xml.read_text()
    assert not list(move.root.rglob(".imgtool-*"))


def test_what_is_shown_can_be_redefined(move: Move, capsys: pytest.CaptureFixture[str]) -> None:
    move.mirrored()
    shown = typed(capsys, "-c", move.made.uri, "snapshot-dumpxml", "vm", NAME).stdout
    with api.open_world(move.made.uri) as world:
        world.store.forget("vm", NAME)
        api.redefine_snapshot(world, "vm", shown.encode(), current=True)
        (snapshot,) = api.snapshots(world, "vm")
    assert snapshot.disks[0].mirror == str(move.new)
    again = typed(capsys, "-c", move.made.uri, "snapshot-dumpxml", "vm", NAME).stdout
    assert again == shown
    move.end(pivot=False)
    assert not move.new.exists()


@pytest.mark.parametrize("written", [False, True])
def test_pivot(move: Move, written: bool) -> None:
    move.mirrored()
    if written:  # the guest has run since: data, zeros over data, and zeros as data
        write_pattern(move.migrate, Format.QCOW2, 100 * KIB, 4 * KIB, 9)
        qemu_io(move.migrate, Format.QCOW2, "write -q -z 512k 64k", "write -q -P 0 768k 64k")
    guest = move.guest()
    move.copy()
    said: list[str] = []
    result = move.end(pivot=True, said=said)
    assert result.pivoted
    assert named(move.made).source == move.new
    assert move.guest() == guest
    new = move.new.parent
    assert move.layers() == [move.new, new / "old.qcow2", new / "common"]
    assert guest_bytes_digest(move.migrate, Format.QCOW2) == guest  # the old place is whole
    assert any(str(move.migrate) in line for line in said)
    assert move.snapshots() == []
    assert qemu_img("check", "-f", "qcow2", move.new)
    assert info(move.new)["backing-filename"] == "old.qcow2"


def test_a_pivot_that_was_undone_can_be_done_again(move: Move) -> None:
    """The mirror has data from the first try, and the guest has written since."""
    move.mirrored()
    move.copy()
    write_pattern(move.migrate, Format.QCOW2, 0, 64 * KIB, 9)
    write_pattern(move.new, Format.QCOW2, 0, 64 * KIB, 9)
    write_pattern(move.migrate, Format.QCOW2, 32 * KIB, 64 * KIB, 10)
    guest = move.guest()
    move.end(pivot=True)
    assert move.guest() == guest


@pytest.mark.parametrize("trust", [False, True])
def test_a_mirror_with_data_of_somebody_else(move: Move, trust: bool) -> None:
    """Compared once it has all that it should have; with --trust, nobody looks."""
    move.mirrored()
    move.copy()
    write_pattern(move.new, Format.QCOW2, 3 * MIB, 64 * KIB, 9)
    if trust:
        move.end(pivot=True, trust=True)
        assert named(move.made).source == move.new
        return
    guest = move.guest()
    with pytest.raises(ImgtoolError, match="other data"):
        move.end(pivot=True)
    assert named(move.made).source == move.migrate
    assert move.guest() == guest


def _nothing_is_copied(move: Move) -> None:
    """old.qcow2 is not there."""


def _half_is_copied(move: Move) -> None:
    move.copy()
    move.new.with_name("common").unlink()


def _no_format(move: Move) -> None:
    """The header extension with the format of the base becomes one that nobody knows."""
    move.copy()
    copied = move.new.with_name("old.qcow2")
    copied.write_bytes(copied.read_bytes().replace(b"\xe2\x79\x2a\xca", b"\x11\x11\x11\x11", 1))


def _a_loop(move: Move) -> None:
    move.copy()
    base = move.new.with_name("common")
    base.unlink()
    base.symlink_to(move.new.name)


def _another_size(move: Move) -> None:
    move.copy()
    qemu_img("resize", "-q", "-f", "qcow2", move.new.with_name("old.qcow2"), str(2 * SIZE))


def _no_base(move: Move) -> None:
    move.new.unlink()
    make_image(move.new, size=SIZE)


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(
    "spoil", [_nothing_is_copied, _half_is_copied, _no_format, _a_loop, _another_size, _no_base]
)
def test_the_structure_is_never_trusted(move: Move, spoil: Any, trust: bool) -> None:
    move.mirrored()
    spoil(move)
    error = refused(move.root, ChainError, lambda: move.end(pivot=True, trust=trust))
    assert "vda" in error.message


def test_other_data_are_refused_unless_trusted(move: Move) -> None:
    move.mirrored()
    move.copy()
    write_pattern(move.new.with_name("common"), Format.QCOW2, 3 * MIB, 4096, 7)
    error = refused(move.root, ChainError, lambda: move.end(pivot=True))
    assert "other data" in error.message
    move.end(pivot=True, trust=True)
    assert named(move.made).source == move.new


def test_abort(move: Move) -> None:
    move.mirrored()
    write_pattern(move.migrate, Format.QCOW2, 0, 4096, 9)
    move.copy()
    guest = move.guest()
    move.end(pivot=False)
    assert named(move.made).source == move.migrate
    assert move.guest() == guest
    assert not move.new.exists()
    assert sorted(path.name for path in move.new.parent.iterdir()) == ["common", "old.qcow2"]
    assert move.snapshots() == []
    take(move.made, external(), name="s2")  # and all is free again


def _gone(move: Move) -> None:
    move.new.unlink()


def _another_file(move: Move) -> None:
    move.new.unlink()
    make_image(move.new, size=SIZE)


def _used(move: Move) -> None:
    move.copy()
    top = move.new.with_name("theirs")
    make_image(top, size=SIZE, backing=move.new, backing_format=Format.QCOW2)


@pytest.mark.parametrize("spoil", [_gone, _another_file, _used])
def test_abort_removes_no_file_of_others(move: Move, spoil: Any) -> None:
    move.mirrored()
    spoil(move)
    there = move.new.exists()
    said: list[str] = []
    move.end(pivot=False, said=said)
    assert move.new.exists() == there
    assert any(str(move.new) in line for line in said)
    assert move.snapshots() == []


def test_two_disks_pivot_together_or_not_at_all(tmp_path: Path) -> None:
    disks, asked = [], []
    (tmp_path / "new").mkdir()
    for target in ("vda", "vdb"):
        path = make_image(tmp_path / f"{target}.qcow2", size=SIZE)
        disks.append(disk(path, target=target))
        mirror = tmp_path / "new" / target
        asked.append(external(target, path.with_suffix(".s1"), mirror=str(mirror)))
    made = domain(tmp_path, *disks)
    take(made, *asked)
    move = Move(
        made=made, old=tmp_path / "a/b/c", migrate=tmp_path / "vda.s1", new=tmp_path / "new/vda"
    )
    os.link(tmp_path / "vda.qcow2", tmp_path / "new/vda.qcow2")  # as good as a copy
    refused(tmp_path, ChainError, lambda: move.end(pivot=True))
    os.link(tmp_path / "vdb.qcow2", tmp_path / "new/vdb.qcow2")
    move.end(pivot=True)
    assert [named(made, each).source for each in ("vda", "vdb")] == [
        tmp_path / "new/vda",
        tmp_path / "new/vdb",
    ]


def test_what_is_refused_while_it_is_mirrored(move: Move) -> None:
    take(move.made, internal(), name="s0")
    move.mirrored()
    with api.open_world(move.made.uri) as world:
        acts: dict[str, Any] = {
            "snapshot": lambda: take(move.made, external(), name="s2"),
            "revert": lambda: api.revert_to(world, "vm", "s0", api.RevertOptions(force=True)),
            "delete": lambda: api.delete_snapshot(world, "vm", NAME, api.DeleteOptions()),
            "another": lambda: api.delete_snapshot(world, "vm", "s0", api.DeleteOptions()),
            "metadata": lambda: api.delete_snapshot(
                world, "vm", NAME, api.DeleteOptions(metadata=True)
            ),
            "commit": lambda: api.block_commit(
                world, "vm", ["vda"], api.CommitOptions(active=True)
            ),
            "pull": lambda: api.block_pull(world, "vm", ["vda"], api.PullOptions()),
            "resize": lambda: api.resize(world, "vm", "vda", api.ResizeOptions(size=2 * SIZE)),
            "rebase": lambda: api.rebase(world, "vm", "vda", api.RebaseOptions(relative=False)),
            "copy": lambda: api.block_copy(
                world,
                "vm",
                [api.CopyTarget(disk="vda", dest=str(move.root / "copy"))],
                api.CopyOptions(),
            ),
            "migrate": lambda: api.migrate(world, "vm", api.MigrateOptions(to=move.root)),
            "current": lambda: api.set_current_snapshot(world, "vm", "s0"),
        }
        for what, act in acts.items():
            error = refused(move.root, RefusedError, act)
            assert error.exit_code == 3, what
            assert "--mirror-pivot" in error.remedy, what
            assert "--mirror-abort" in error.remedy, what


def test_a_disk_without_a_mirror_is_free(tmp_path: Path) -> None:
    move = make_move(tmp_path)
    other = make_image(tmp_path / "b.qcow2", size=SIZE)
    made = domain(tmp_path, disk(move.old), disk(other, target="vdb"))
    take(made, move.asked(), external("vdb"))
    with api.open_world(made.uri) as world:
        api.resize(world, "vm", "vdb", api.ResizeOptions(size=2 * SIZE))


def test_prepared_files_must_fit(move: Move) -> None:
    def reuse() -> None:
        move.mirrored(reuse_external=True)

    refused(move.root, BadRequestError, reuse)  # neither is there
    prepare(move)
    good = move.new.read_bytes()

    def wrong(*words: str | Path) -> None:
        move.new.unlink()
        qemu_img("create", "-q", "-u", "-f", "qcow2", *words)
        error = refused(move.root, BadRequestError, reuse)
        assert str(move.new) in error.message
        assert "mirror-create" in error.remedy

    base = ("-b", "old.qcow2", "-F")
    wrong(*base, "qcow2", move.new, str(2 * SIZE))
    wrong(*base, "raw", move.new, str(SIZE))
    wrong("-b", move.old, "-F", "qcow2", move.new, str(SIZE))
    wrong(move.new, str(SIZE))
    move.new.write_bytes(good)
    alone = f"driver=qcow2,backing=,file.filename={move.new}"
    qemu_img("snapshot", "-c", "tag", "--image-opts", alone)
    refused(move.root, BadRequestError, reuse)
    move.new.write_bytes(bytes(SIZE))
    refused(move.root, ChainError, reuse)
    move.new.unlink()
    refused(move.root, BadRequestError, reuse)  # the mirror alone is missing
    os.link(move.migrate, move.new)
    refused(move.root, BadRequestError, reuse)  # one file in both roles
    move.new.unlink()
    move.new.write_bytes(good)
    reuse()


def test_what_cannot_be_taken(move: Move, tmp_path: Path) -> None:
    there = move.new.parent
    mirror = str(move.new)
    refused(tmp_path, BadRequestError, lambda: move.mirrored(no_metadata=True))
    for asked in (
        external(file=there / "f", mirror=mirror),  # not beside the active layer
        external(file=move.migrate, mirror=str(there / "old.qcow2")),
        external(file=move.migrate, mirror=str(move.migrate)),
        external(file=move.migrate, mirror=str(there / "none" / "m")),
        external(file=move.migrate, mirror=str(there / "line\nbreak")),
    ):
        refused(tmp_path, BadRequestError, lambda asked=asked: take(move.made, asked))
    move.new.touch()
    refused(tmp_path, ExistsError, move.mirrored)


def test_ends_that_are_refused(move: Move) -> None:
    refused(move.root, NotFoundError, lambda: move.end(pivot=True))
    take(move.made, external())
    refused(move.root, BadRequestError, lambda: move.end(pivot=True))  # it has no mirror


def test_a_mirrored_snapshot_that_is_not_current_any_more(move: Move) -> None:
    move.mirrored()
    with api.open_world(move.made.uri) as world:
        world.store.set_current("vm", None)
    for pivot in (True, False):
        refused(move.root, BadRequestError, lambda pivot=pivot: move.end(pivot=pivot))


def test_the_domain_has_left_the_file(move: Move) -> None:
    """As virsh would, by hand."""
    move.mirrored()
    xml = move.made.xml
    xml.write_text(xml.read_text().replace(str(move.migrate), str(move.old)))
    move.copy()
    refused(move.root, DomainChangedError, lambda: move.end(pivot=True))
    move.end(pivot=False)
    assert named(move.made).source == move.old


def test_as_it_is_typed(move: Move, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["-c", move.made.uri]
    spec = f"vda,file={move.migrate},mirror={move.new}"
    create = ["snapshot-create-as", "vm", NAME, "--disk-only", "--diskspec", spec]
    printed = typed(capsys, *words, *create, "--print-xml").stdout
    assert f"      <source file='{move.migrate}'/>\n      <mirror file='{move.new}'/>\n" in printed
    before = digest(move.root)
    planned = typed(capsys, *words, "--dry-run", *create)
    assert str(move.new) in planned.stdout
    assert digest(move.root) == before
    request = move.root / "request.xml"
    request.write_text(printed)
    done = typed(capsys, *words, "--json", "snapshot-create", "vm", str(request), "--disk-only")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["disks"][0]["mirror"] == str(move.new)
    delete = ["snapshot-delete", "vm", NAME]
    assert typed(capsys, *words, *delete).returncode == 3
    assert typed(capsys, *words, *delete, "--mirror-pivot", "--mirror-abort").returncode == 2
    assert typed(capsys, *words, *delete, "--trust").returncode == 2
    assert typed(capsys, *words, *delete, "--mirror-pivot", "--metadata").returncode == 2
    assert typed(capsys, *words, *delete, "--mirror-pivot").returncode == 2
    move.copy()
    before = digest(move.root)
    planned = typed(capsys, *words, "--dry-run", *delete, "--mirror-pivot")
    assert f"switch to {move.new}" in planned.stdout
    assert digest(move.root) == before
    done = typed(capsys, *words, "--json", "snapshot-delete", "vm", "--current", "--mirror-pivot")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["disks"] == [{"target": "vda", "source": str(move.new)}]


@pytest.mark.parametrize("pivot", [None, True, False])
def test_check_has_nothing_against_it(
    move: Move, pivot: bool | None, capsys: pytest.CaptureFixture[str]
) -> None:
    move.mirrored()
    move.copy()
    if pivot is not None:
        move.end(pivot=pivot)
    done = typed(capsys, "-c", move.made.uri, "check", "vm")
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_tells_of_a_mirror_that_is_gone(
    move: Move, capsys: pytest.CaptureFixture[str]
) -> None:
    move.mirrored()
    move.new.unlink()
    ended = typed(capsys, "-c", move.made.uri, "check", "vm", "--quick", "--json")
    (found,) = json.loads(ended.stdout)["findings"]
    assert (ended.returncode, found["kind"], found["disk"]) == (1, "mirror-missing", "vda")
    assert f"snapshot-delete vm {NAME} --mirror-abort" in found["remedy"]
    move.end(pivot=False)
    assert typed(capsys, "-c", move.made.uri, "check", "vm", "--quick").returncode == 0


def test_a_mirror_beside_the_disk_is_no_stray(
    move: Move, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = move.old.with_name("mirror")
    take(move.made, external(file=move.migrate, mirror=str(mirror)))
    for command in ("check", "gc"):
        done = typed(capsys, "-c", move.made.uri, command, "vm")
        assert done.returncode == 0, done.stdout + done.stderr
        assert str(mirror) not in done.stdout
    assert mirror.exists()
    said: list[str] = []
    move.end(pivot=True, said=said)  # which builds on the old place itself: that is said
    assert any("both places" in line for line in said)
    assert named(move.made).source == mirror


@pytest.mark.parametrize("name", ["a,b", "a:b", "nbd:b", "a b", "-h", "\u00e4\u0301", "json:{}"])
def test_strange_names_all_the_way(name: str, tmp_path: Path) -> None:
    """Of the disk, its overlay and its mirror; without file=, the overlay has libvirt's name."""
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    old = make_image(tmp_path / "here" / name, size=SIZE)
    write_pattern(old, Format.QCOW2, 0, 4096, 1)
    new = tmp_path / "there" / f"{name}.new"
    made = domain(tmp_path, disk(old))
    take(made, external(mirror=str(new)))
    migrate = named(made).source
    assert migrate is not None
    assert migrate.parent == old.parent
    write_pattern(migrate, Format.QCOW2, 4096, 4096, 2)
    guest = guest_bytes_digest(migrate, Format.QCOW2)
    shutil.copy(old, new.parent)
    move = Move(made=made, old=old, migrate=migrate, new=new)
    move.end(pivot=True)
    assert named(made).source == new
    assert move.layers() == [new, new.parent / name]
    assert move.guest() == guest


def test_somebody_watches(move: Move) -> None:
    """And hears how far it is; what is compared is found equal all the same, and different."""
    move.mirrored()
    move.copy()
    write_pattern(move.migrate, Format.QCOW2, 0, MIB, 9)
    heard: dict[str, float] = {}

    def progress(_target: str, doing: str, share: float, _size: int) -> None:
        heard[doing.partition(" ")[0]] = share

    options = api.MirrorEndOptions(pivot=True)
    write_pattern(move.new.with_name("common"), Format.QCOW2, 3 * MIB, 4096, 7)
    with api.open_world(move.made.uri, progress=progress) as world:
        with pytest.raises(ChainError, match="other data"):
            api.end_mirror(world, "vm", NAME, options)
        move.copy()
        api.end_mirror(world, "vm", NAME, options)
    assert heard == {"comparing": 1.0, "carrying": 1.0}


@pytest.mark.parametrize("what", ["comparing", "carrying"])
def test_ctrl_c(what: str, move: Move) -> None:
    """While data are compared, or carried over: rolled back, and it can be done again."""
    move.mirrored()
    move.copy()
    write_pattern(move.migrate, Format.QCOW2, 0, MIB, 9)
    guest, xml = move.guest(), move.made.xml.read_bytes()
    interrupt = Interrupt()

    def progress(_target: str, doing: str, _share: float, _size: int) -> None:
        if doing.startswith(what) and interrupt.signum is None:
            interrupt.deliver(signal.SIGINT)

    with (
        pytest.raises(Interrupted) as raised,
        api.open_world(move.made.uri, interrupt=interrupt, progress=progress) as world,
    ):
        api.end_mirror(world, "vm", NAME, api.MirrorEndOptions(pivot=True))
    assert raised.value.exit_code == 130
    assert "nothing has changed" in raised.value.message
    assert move.made.xml.read_bytes() == xml
    assert move.guest() == guest
    assert not list(move.root.rglob("journal"))
    move.end(pivot=True)
    assert move.guest() == guest
