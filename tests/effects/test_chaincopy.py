"""chain-copy: the layers below the active one in another folder, the same chain, byte for byte."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.cli.main import main
from imgtool.engine.chaincopy import Action
from imgtool.engine.interrupt import Interrupt
from imgtool.host.comparing import first_difference
from imgtool.host.files import Files
from imgtool.model.errors import (
    BadRequestError,
    ChainError,
    ExistsError,
    FailedError,
    ImageInUseError,
    ImgtoolError,
    Interrupted,
    NotFoundError,
)
from imgtool.model.image import Format
from imgtool.testing import (
    KIB,
    MIB,
    MadeDomain,
    guest_bytes_digest,
    make_domain,
    make_image,
    write_pattern,
)
from tests.crash.command import assert_refused, imgtool
from tests.crash.disks import fill, small_disk
from tests.crash.scenario import digest

from .asking import chain, disk, domain, loop_device, qemu_img
from .jobs import Trio, refuses, trio
from .mirrored import make_move

BIG = 40 * MIB  # bytes of a raw base: several strides


@pytest.fixture
def three(tmp_path: Path) -> Trio:
    """vda: base <- mid <- top, by relative names."""
    (tmp_path / "new").mkdir()
    return trio(tmp_path, relative=True)


def copy(
    made: MadeDomain,
    to: Path,
    *disks: str,
    files: Files | None = None,
    said: list[str] | None = None,
    interrupt: Interrupt | None = None,
    **how: Any,
) -> api.ChainCopyResult:
    say = None if said is None else said.append
    with api.open_world(made.uri, files=files, say=say, interrupt=interrupt, jobs=1) as world:
        return api.copy_chain(world, made.name, disks, api.ChainCopyOptions(to=to, **how))


def actions(result: api.ChainCopyResult) -> dict[str, str]:
    return {each.layer.copy.name: str(each.action) for each in result.layers}


def big(folder: Path) -> MadeDomain:
    """vda: a raw base with 40 MiB of data <- top."""
    base = folder / "big.raw"
    base.write_bytes(random.Random(7).randbytes(BIG))
    top = make_image(folder / "top.qcow2", size=BIG, backing="big.raw", backing_format=Format.RAW)
    (folder / "new").mkdir()
    return domain(folder, disk(top))


def leftovers(*folders: Path) -> list[Path]:
    """Anything of ours that is not an image: staged files, the state folder."""
    return [path for folder in folders for path in folder.rglob(".imgtool*")]


@contextmanager
def opened_by_qemu(path: Path) -> Iterator[None]:
    """Inside, a QEMU program has it open for writing, as a virtual machine would."""
    command = ["qemu-io", "-f", "qcow2", os.fspath(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write("length\n")
        program.stdin.flush()
        while "MiB" not in (line := program.stdout.readline()):
            assert line, "it could not be opened"
        try:
            yield
        finally:
            program.stdin.close()


def test_the_copies_are_the_same_relative_chain(three: Trio) -> None:
    new = three.base.parent.parent / "new"
    before = digest(three.base.parent)
    assert actions(copy(three.made, new, "vda")) == {"base.qcow2": "copied", "mid.qcow2": "copied"}
    assert digest(three.base.parent) == before
    assert sorted(path.name for path in new.iterdir()) == ["base.qcow2", "mid.qcow2"]
    # The mirror: what the guest sees through it is what it sees now, wherever the folder goes.
    (new / "mirror").write_bytes(three.top.read_bytes())
    moved = new.rename(new.with_name("moved"))
    assert chain(moved / "mirror") == [
        str(moved / name) for name in ("mirror", "mid.qcow2", "base.qcow2")
    ]
    assert guest_bytes_digest(moved / "mirror", Format.QCOW2) == three.guest
    assert leftovers(three.made.folder, moved) == []


def test_again_keeps_what_is_equal_and_compares_it(three: Trio) -> None:
    new = three.base.parent.parent / "new"
    copy(three.made, new)
    (new / "base.qcow2").unlink()
    inode = (new / "mid.qcow2").stat().st_ino
    assert actions(copy(three.made, new)) == {"base.qcow2": "copied", "mid.qcow2": "kept"}
    assert (new / "mid.qcow2").stat().st_ino == inode
    assert actions(copy(three.made, new, trust=True)) == {"base.qcow2": "kept", "mid.qcow2": "kept"}
    assert actions(copy(three.made, three.base.parent)) == {
        "base.qcow2": "kept",
        "mid.qcow2": "kept",
    }


def _other_bytes(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-KIB] ^= 0xFF
    path.write_bytes(data)


def _longer(path: Path) -> None:
    os.truncate(path, path.stat().st_size + 512)


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    other = path.rename(path.with_name("elsewhere"))
    path.symlink_to(other)


@pytest.mark.parametrize("change", [_other_bytes, _longer, _folder, _link])
def test_a_name_that_is_taken_by_something_else(
    change: Callable[[Path], None], three: Trio
) -> None:
    root = three.base.parent.parent
    copy(three.made, root / "new")
    (root / "new" / "base.qcow2").unlink()  # would be copied first
    change(root / "new" / "mid.qcow2")
    refuses(root, ExistsError, "vda", "mid.qcow2", job=copy, made=three.made, to=root / "new")


def test_another_header_is_seen_without_comparing_data(three: Trio) -> None:
    root = three.base.parent.parent
    copy(three.made, root / "new")
    copied = root / "new" / "mid.qcow2"
    qemu_img("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "bbbb.qcow2", copied)
    refuses(root, ExistsError, "mid.qcow2", job=copy, made=three.made, to=root / "new", trust=True)


def test_disks_that_share_a_base_get_it_once(tmp_path: Path) -> None:
    base = make_image(tmp_path / "common.raw", Format.RAW, 4 * MIB)
    write_pattern(base, Format.RAW, 0, MIB, 1)
    tops = [
        make_image(tmp_path / f"{n}.qcow2", size=4 * MIB, backing=name, backing_format=Format.RAW)
        for n, name in enumerate(("common.raw", "./common.raw"))
    ]
    new = tmp_path / "new"
    new.mkdir()
    made = domain(tmp_path, disk(tops[0]), disk(tops[1], target="vdb"))
    (only,) = copy(made, new, "vda", "vdb").layers
    assert only.layer.targets == ("vda", "vdb")
    assert (new / "common.raw").read_bytes() == base.read_bytes()


def test_two_layers_of_one_name(tmp_path: Path) -> None:
    disks = []
    for target in ("vda", "vdb"):
        folder = tmp_path / target
        folder.mkdir()
        make_image(folder / "base", size=MIB)
        top = make_image(folder / "top", size=MIB, backing="base", backing_format=Format.QCOW2)
        disks.append(disk(top, target=target))
    (tmp_path / "new").mkdir()
    made = domain(tmp_path, *disks)
    refuses(tmp_path, ExistsError, "vdb", "both", job=copy, made=made, to=tmp_path / "new")
    assert len(copy(made, tmp_path / "new", "vdb").layers) == 1


def test_a_layer_with_an_absolute_name(tmp_path: Path) -> None:
    three = trio(tmp_path)
    (tmp_path / "new").mkdir()
    error = refuses(
        tmp_path, ChainError, "vda", "mid.qcow2", job=copy, made=three.made, to=tmp_path / "new"
    )
    assert "imgtool rebase vm vda --relative" in error.remedy
    with api.open_world(three.made.uri) as world:
        api.rebase(world, "vm", "vda", api.RebaseOptions(relative=True))
    assert len(copy(three.made, tmp_path / "new").layers) == 2


def test_only_the_active_layer_has_an_absolute_name(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base", size=MIB)
    top = make_image(tmp_path / "top", size=MIB, backing=base, backing_format=Format.QCOW2)
    (tmp_path / "new").mkdir()
    copy(domain(tmp_path, disk(top)), tmp_path / "new")
    assert (tmp_path / "new" / "base").read_bytes() == base.read_bytes()


def test_a_name_that_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "vm").mkdir()
    (tmp_path / "new").mkdir()
    make_image(tmp_path / "common" / "base", size=MIB)
    top = make_image(
        tmp_path / "vm" / "top", size=MIB, backing="../common/base", backing_format=Format.QCOW2
    )
    made = domain(tmp_path, disk(top))
    refuses(tmp_path, ChainError, "vda", "leads out", job=copy, made=made, to=tmp_path / "new")


def test_names_within_the_folder_and_links(tmp_path: Path) -> None:
    """sub/mid leads to ../base, which is a link: copied is what QEMU would open."""
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "sub").mkdir(parents=True)
    new.mkdir()
    make_image(tmp_path / "volume", size=MIB)
    write_pattern(tmp_path / "volume", Format.QCOW2, 0, 64 * KIB, 3)
    (old / "base").symlink_to("../volume")
    make_image(old / "sub" / "mid", size=MIB, backing="../base", backing_format=Format.QCOW2)
    top = make_image(old / "top", size=MIB, backing="sub/mid", backing_format=Format.QCOW2)
    copy(domain(tmp_path, disk(top)), new)
    (new / "top").write_bytes(top.read_bytes())
    assert chain(new / "top") == [str(new / "top"), str(new / "sub/mid"), str(new / "sub/../base")]
    assert not (new / "base").is_symlink()
    assert guest_bytes_digest(new / "top", Format.QCOW2) == guest_bytes_digest(top, Format.QCOW2)


def test_a_link_in_the_way_of_a_subfolder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "sub").symlink_to(tmp_path / "sub")
    make_image(tmp_path / "sub" / "base", size=MIB)
    top = make_image(tmp_path / "top", size=MIB, backing="sub/base", backing_format=Format.QCOW2)
    made = domain(tmp_path, disk(top))
    refuses(tmp_path, BadRequestError, "vda", "sub", job=copy, made=made, to=tmp_path / "new")


@pytest.mark.parametrize(
    "name", ["a,b=c", "a:b", "two words", "new\nline", "-b", "ünïcødé", os.fsdecode(b"\xff\xfe")]
)
def test_odd_names(name: str, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / f"to {name}"
    old.mkdir()
    new.mkdir()
    base = make_image(old / "plain", size=MIB)
    write_pattern(base, Format.QCOW2, 0, 64 * KIB, 3)
    top = make_image(old / "top", size=MIB, backing="plain", backing_format=Format.QCOW2)
    base = base.rename(old / name)
    recorded = f"./{name}" if ":" in name else name
    words = ["rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", recorded, str(top)]
    subprocess.run(["qemu-img", *words], check=True, capture_output=True)
    copy(domain(tmp_path, disk(top)), new)
    assert (new / name).read_bytes() == base.read_bytes()


def test_what_cannot_be_meant(three: Trio, tmp_path: Path) -> None:
    new = tmp_path / "new"
    refuses(tmp_path, BadRequestError, "--to", job=copy, made=three.made, to=new / "nowhere")
    refuses(tmp_path, BadRequestError, "--to", job=copy, made=three.made, to=three.top)
    refuses(tmp_path, NotFoundError, "vdz", job=lambda **how: copy(three.made, new, "vdz"))
    alone = make_domain(new, "alone", [disk(three.base)])
    refuses(tmp_path, BadRequestError, "layers below", job=copy, made=alone, to=new)
    refuses(
        tmp_path, BadRequestError, "vda", "layers below", job=lambda **how: copy(alone, new, "vda")
    )


def test_a_layer_that_somebody_writes_is_refused(three: Trio, tmp_path: Path) -> None:
    with opened_by_qemu(three.base):
        refuses(tmp_path, ImageInUseError, "base.qcow2", job=copy, made=three.made,
                to=tmp_path / "new")  # fmt: skip


def test_the_active_layer_may_be_in_use(three: Trio, tmp_path: Path) -> None:
    """As of a running machine, which has the layers below open, too, for reading."""
    with opened_by_qemu(three.top):
        copy(three.made, tmp_path / "new", "vda")
    assert (tmp_path / "new" / "mid.qcow2").read_bytes() == three.mid.read_bytes()


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o400, 0o640])
def test_the_copy_is_whose_the_original_is(mode: int, three: Trio, tmp_path: Path) -> None:
    os.chown(three.base, 1234, 5678)
    three.base.chmod(mode)
    subprocess.run(["setfacl", "-m", "u:4321:rw", three.mid], check=True)
    copy(three.made, tmp_path / "new")
    facts = (tmp_path / "new" / "base.qcow2").stat()
    assert (facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode)) == (1234, 5678, mode)
    theirs, ours = (
        subprocess.run(["getfacl", "-ncE", path], check=True, capture_output=True, text=True).stdout
        for path in (three.mid, tmp_path / "new" / "mid.qcow2")
    )
    assert ours == theirs


@pytest.mark.parametrize("trust", [False, True])
def test_on_xfs_blocks_are_shared(trust: bool, tmp_path: Path) -> None:
    with small_disk("xfs", tmp_path) as folder:
        three = trio(folder, relative=True)
        (folder / "new").mkdir()
        os.sync()
        free = os.statvfs(folder).f_bavail
        result = copy(three.made, folder / "new", trust=trust)
        assert set(actions(result).values()) == {"reflinked"}
        os.sync()
        assert (free - os.statvfs(folder).f_bavail) * 4096 < MIB
        assert (folder / "new" / "mid.qcow2").read_bytes() == three.mid.read_bytes()


def test_no_space_is_seen_before_anything_is_copied(tmp_path: Path) -> None:
    made = big(tmp_path)
    with small_disk("ext4", tmp_path) as small:
        fill(small, leave=MIB)
        error = refuses(
            small, FailedError, "vda", "bytes are needed", job=copy, made=made, to=small
        )
        assert str(BIG) in error.message
    assert leftovers(made.folder) == []


def test_holes_need_no_space(tmp_path: Path) -> None:
    size = 1 << 40
    make_image(tmp_path / "base", Format.RAW, size)
    top = make_image(tmp_path / "top", size=size, backing="base", backing_format=Format.RAW)
    made = domain(tmp_path, disk(top))
    with small_disk("tmpfs", tmp_path) as small:
        copy(made, small)
        assert (small / "base").stat().st_size == size


def test_a_base_on_a_block_device(tmp_path: Path) -> None:
    """Its name in the folder is a link; the copy is a file."""
    volume = make_image(tmp_path / "volume", Format.RAW, 8 * MIB)
    write_pattern(volume, Format.RAW, MIB, MIB, 5)
    with loop_device(volume) as device:
        (tmp_path / "base").symlink_to(device)
        top = make_image(tmp_path / "top", size=MIB, backing="base", backing_format=Format.RAW)
        (tmp_path / "new").mkdir()
        copy(domain(tmp_path, disk(top)), tmp_path / "new")
    copied = tmp_path / "new" / "base"
    assert copied.read_bytes() == volume.read_bytes()
    assert copied.stat().st_blocks * 512 < 4 * MIB


class Full(Files):
    """Believes that there is room."""

    def free_bytes(self, folder: Path) -> int:
        return 1 << 60


def test_no_space_in_the_middle(tmp_path: Path) -> None:
    made = big(tmp_path)
    with small_disk("tmpfs", tmp_path) as small:
        with pytest.raises(FailedError, match="No space left"):
            copy(made, small, files=Full())
        assert list(small.iterdir()) == []
    assert leftovers(made.folder) == []


class Stopping(Files):
    """At a given byte of a copy, a signal comes."""

    def __init__(self, interrupt: Interrupt, at: int) -> None:
        self.interrupt, self.at = interrupt, at

    def copy(
        self,
        source: Path,
        destination: Path,
        *,
        watch: Callable[[int], None],
        check: Callable[[], None],
        done: int = 0,
        compare: bool = False,
    ) -> bool:
        def told(copied: int) -> None:
            watch(copied)
            if copied >= self.at:
                self.interrupt.deliver(signal.SIGINT)

        return super().copy(
            source, destination, watch=told, check=check, done=done, compare=compare
        )


def test_ctrl_c_leaves_it_resumable(tmp_path: Path) -> None:
    made, new = big(tmp_path), tmp_path / "new"
    interrupt = Interrupt()
    with pytest.raises(Interrupted, match="goes on from there") as caught:
        copy(made, new, files=Stopping(interrupt, 17 * MIB), interrupt=interrupt,
             checkpoint=8 * MIB)  # fmt: skip
    assert caught.value.exit_code == 130
    (staged,) = new.iterdir()
    inode = staged.stat().st_ino
    (done,) = copy(made, new, "vda").layers
    assert (done.action, done.resumed) == (Action.COPIED, 16 * MIB)
    assert (new / "big.raw").read_bytes() == (tmp_path / "big.raw").read_bytes()
    assert (new / "big.raw").stat().st_ino == inode
    assert leftovers(made.folder, new) == []


def test_ctrl_c_before_a_checkpoint_leaves_nothing(tmp_path: Path) -> None:
    made, new = big(tmp_path), tmp_path / "new"
    interrupt = Interrupt()
    with pytest.raises(Interrupted, match="rolled back"):
        copy(made, new, files=Stopping(interrupt, 17 * MIB), interrupt=interrupt)
    assert leftovers(made.folder, new) == []


def _interrupted(made: MadeDomain, new: Path) -> Path:
    """The staged file that a Ctrl-C has left."""
    interrupt = Interrupt()
    with pytest.raises(Interrupted):
        copy(made, new, files=Stopping(interrupt, 17 * MIB), interrupt=interrupt, checkpoint=MIB)
    (staged,) = leftovers(new)
    return staged


def test_another_source_is_copied_from_its_beginning(tmp_path: Path) -> None:
    made, new = big(tmp_path), tmp_path / "new"
    _interrupted(made, new)
    (tmp_path / "big.raw").write_bytes(bytes(range(256)) * (BIG // 256))
    (done,) = copy(made, new).layers
    assert done.resumed == 0
    assert (new / "big.raw").read_bytes() == (tmp_path / "big.raw").read_bytes()
    assert leftovers(made.folder, new) == []


def test_a_staged_file_that_was_replaced_is_left_alone(tmp_path: Path) -> None:
    made, new = big(tmp_path), tmp_path / "new"
    staged = _interrupted(made, new)
    staged.rename(new / "mine")
    staged.write_bytes(b"somebody else's")
    (done,) = copy(made, new).layers
    assert done.resumed == 0
    assert staged.read_bytes() == b"somebody else's"
    assert (new / "big.raw").read_bytes() == (tmp_path / "big.raw").read_bytes()


def test_gc_removes_what_was_abandoned(tmp_path: Path) -> None:
    made, new = big(tmp_path), tmp_path / "new"
    staged = _interrupted(made, new)
    # Another domain has an image there, and nothing to do with it.
    other = make_domain(made.folder, "other", [disk(make_image(new / "other", size=MIB))])
    before = digest(tmp_path)
    with api.open_world(made.uri) as world:
        (swept,) = api.sweep(world, other.name)
        assert (swept.removed, swept.left) == ((), ())
        (swept,) = api.sweep(world, made.name, dry_run=True)
        assert [each.path for each in swept.removed] == [staged]
        assert digest(tmp_path) == before
        (swept,) = api.sweep(world, made.name)
        assert [each.path for each in swept.removed] == [staged]
    assert leftovers(made.folder, new) == []


def test_a_bad_copy_never_gets_its_name(tmp_path: Path) -> None:
    """The kernel says that it has copied what it has not."""
    made, new = big(tmp_path), tmp_path / "new"
    inject = "inject=copy_file_range:retval=4096:when=7"
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", inject, sys.executable, "-m"]
    words = ["imgtool", "-c", made.uri, "chain-copy", "vm", "--to", str(new)]
    done = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert_refused(done, 1, "vda", str(new / "big.raw"), f"differs from {tmp_path / 'big.raw'}")
    assert leftovers(made.folder, new) == []
    assert list(new.iterdir()) == []


def test_what_an_earlier_run_has_copied_is_compared(tmp_path: Path) -> None:
    """A disk that has lost what it was told to keep."""
    made, new = big(tmp_path), tmp_path / "new"
    staged = _interrupted(made, new)
    with staged.open("r+b") as file:
        file.write(b"lost")
    (done,) = copy(made, new).layers
    assert done.resumed == 0
    assert (new / "big.raw").read_bytes() == (tmp_path / "big.raw").read_bytes()


class Torn(Files):
    """Copies lose what is in their middle, refcounts of a qcow2 included."""

    def copy(self, source: Path, destination: Path, **how: Any) -> bool:
        done = super().copy(source, destination, **how)
        with destination.open("r+b") as file:
            file.seek(64 * KIB)
            file.write(bytes(192 * KIB))
        return done


def test_the_structure_is_verified_even_if_data_are_trusted(three: Trio, tmp_path: Path) -> None:
    with pytest.raises(ImgtoolError, match="bad"):
        copy(three.made, tmp_path / "new", files=Torn(), trust=True)
    assert list((tmp_path / "new").iterdir()) == []
    assert leftovers(three.made.folder) == []


def test_a_damaged_layer_is_not_copied(three: Trio, tmp_path: Path) -> None:
    with three.base.open("r+b") as file:
        file.seek(79)
        file.write(b"\2")  # the corrupt bit
    refuses(tmp_path, ChainError, "corrupt", job=copy, made=three.made, to=tmp_path / "new")


def test_the_command(three: Trio, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = tmp_path / "new"
    words = ["-c", three.made.uri, "chain-copy", "vm", "--disk", "vda", "--to", str(new)]
    before = digest(tmp_path)
    assert main([*words, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert digest(tmp_path) == before
    assert main([*words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == planned
    assert facts["layers"][0] == {
        "target": "vda",
        "targets": ["vda"],
        "source": str(three.base),
        "copy": str(new / "base.qcow2"),
        "bytes": three.base.stat().st_size,
        "allocation": three.base.stat().st_blocks * 512,
        "action": "copied",
        "resumed": 0,
    }
    assert main(words) == 0
    assert "base.qcow2 (kept, " in capsys.readouterr().out
    assert_refused(imgtool("-c", three.made.uri, "chain-copy", "vm"), 2, "--to")


def test_a_real_kill(tmp_path: Path) -> None:
    """SIGKILL in the fourth of four pieces that are far from each other: three are kept."""
    base = tmp_path / "base.raw"
    with base.open("xb") as file:
        file.truncate(1000 * MIB)
        for at in range(0, 1000 * MIB, 300 * MIB):
            os.pwrite(file.fileno(), random.Random(at).randbytes(2 * MIB), at)
    top = make_image(
        tmp_path / "top", size=1000 * MIB, backing="base.raw", backing_format=Format.RAW
    )
    made, new = domain(tmp_path, disk(top)), tmp_path / "new"
    new.mkdir()
    words = ["imgtool", "-c", made.uri, "chain-copy", "vm", "--to", str(new), "--json"]
    inject = "inject=copy_file_range:signal=KILL:when=50"  # a piece has 16
    command = ["strace", "-f", "-qq", "-o", os.devnull, "-e", inject, sys.executable, "-m"]
    killed = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (staged,) = new.iterdir()
    assert staged.name.startswith(".imgtool-")
    done = imgtool(*words[1:])
    assert done.returncode == 0, done.stderr
    (layer,) = json.loads(done.stdout)["layers"]
    assert (layer["action"], layer["resumed"]) == ("copied", 602 * MIB)
    copied = new / "base.raw"
    assert first_difference(base, copied, check=lambda: None) is None
    assert copied.stat().st_blocks == base.stat().st_blocks
    assert leftovers(made.folder, new) == []


def test_progress_is_told(tmp_path: Path) -> None:
    made, told = big(tmp_path), []

    def progress(target: str, what: str, share: float, size: int) -> None:
        told.append((target, what, size))
        shares.append(share)

    shares: list[float] = []
    with api.open_world(made.uri, progress=progress) as world:
        api.copy_chain(world, "vm", [], api.ChainCopyOptions(to=tmp_path / "new"))
    assert set(told) == {("vda big.raw", "copying", BIG)}
    assert shares == sorted(shares)
    assert len(shares) > 8
    assert shares[-1] == 1.0


def test_a_real_ctrl_c(tmp_path: Path) -> None:
    """To the process, in the middle of a slow copy, which would go on for ten seconds."""
    made, new = big(tmp_path), tmp_path / "new"
    words = ["-c", made.uri, "chain-copy", "vm", "--to", str(new)]
    slowly = ("-e", "trace=copy_file_range", "-e", "inject=copy_file_range:delay_exit=30000")
    command = ["strace", "-f", "-qq", "-o", os.devnull, *slowly, sys.executable, "-m", "imgtool"]
    with subprocess.Popen([*command, *words], stderr=subprocess.PIPE, text=True) as program:
        while not any(path.stat().st_blocks for path in leftovers(new)):
            assert program.poll() is None
        (child,) = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
        os.kill(int(child), signal.SIGINT)
        _, said = program.communicate()
    assert program.returncode == 130, said
    assert "SIGINT: rolled back, nothing has changed" in said
    assert leftovers(made.folder, new) == []
    assert imgtool(*words).returncode == 0
    assert (new / "big.raw").read_bytes() == (tmp_path / "big.raw").read_bytes()


def test_a_mirror_gets_what_it_needs(tmp_path: Path) -> None:
    move = make_move(tmp_path)
    move.mirrored(disk_only=True)
    there = move.new.parent
    error = refuses(tmp_path, BadRequestError, "vda", "new.qcow2", job=copy, made=move.made,
                    to=tmp_path)  # fmt: skip
    assert error.remedy.endswith(f"--to {there}")
    assert actions(copy(move.made, there)) == {"common": "copied", "old.qcow2": "copied"}
    guest = move.guest()
    move.end(pivot=True)
    assert move.layers() == [there / name for name in ("new.qcow2", "old.qcow2", "common")]
    assert move.guest() == guest


def test_a_mirror_that_looks_elsewhere(tmp_path: Path) -> None:
    """It is the mirror's own name that counts, not the active layer's."""
    move = make_move(tmp_path)
    move.mirrored(disk_only=True)
    words = ("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b")
    qemu_img(*words, move.old, move.new)
    to = move.new.parent
    refuses(tmp_path, ChainError, "new.qcow2", "absolutely", job=copy, made=move.made, to=to)
    qemu_img(*words, "other", move.new)
    assert actions(copy(move.made, to)) == {"common": "copied", "other": "copied"}
