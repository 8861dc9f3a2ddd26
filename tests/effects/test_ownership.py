"""Whose an overlay is: never more people's than its base is, and usable by those who use that."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgtool.model.image import Format
from imgtool.testing import MIB, make_image

from .asking import disk, domain, external, loop_device, mounted, take

SOMEBODY, THEIR_GROUP = 1234, 5678
MODES = {  # of the base, and what the overlay then has
    0o600: 0o600,
    0o640: 0o640,
    0o644: 0o640,
    0o660: 0o660,
    0o666: 0o660,
    0o777: 0o770,
    0o400: 0o600,
    0o444: 0o640,
    0o000: 0o600,
}


@pytest.fixture(params=[0o022, 0o000, 0o077], ids="umask {:03o}".format)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@contextmanager
def being(uid: int, gid: int) -> Iterator[None]:
    """Act as somebody else; what is imported late has to be imported by now."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def _snapshot(base: Path, overlay: Path) -> tuple[list[str], os.stat_result]:
    said: list[str] = []
    take(domain(base.parent, disk(base)), external(file=overlay), said=said)
    return said, overlay.stat()


def _setfacl(*arguments: str | Path) -> None:
    subprocess.run(["setfacl", *arguments], check=True)


def _acl(path: Path) -> list[str]:
    command = ["getfacl", "--omit-header", "--numeric", "--no-effective", str(path)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line for line in text.splitlines() if line]


@pytest.mark.parametrize("mode", MODES, ids="{:03o}".format)
def test_mode(mode: int, umask: int, tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    base.chmod(mode)
    said, facts = _snapshot(base, tmp_path / "top")
    assert stat.S_IMODE(facts.st_mode) == MODES[mode]
    assert stat.S_IMODE(base.stat().st_mode) == mode
    assert said == []


def test_owner(umask: int, tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    os.chown(base, SOMEBODY, THEIR_GROUP)
    base.chmod(0o640)
    _, facts = _snapshot(base, tmp_path / "top")
    assert (facts.st_uid, facts.st_gid) == (SOMEBODY, THEIR_GROUP)
    assert stat.S_IMODE(facts.st_mode) == 0o640


def test_an_internal_snapshot_leaves_owner_and_mode(umask: int, tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    os.chown(base, SOMEBODY, THEIR_GROUP)
    base.chmod(0o604)
    inode = base.stat().st_ino
    take(domain(tmp_path, disk(base)))
    facts = base.stat()
    assert (facts.st_uid, facts.st_gid, facts.st_ino) == (SOMEBODY, THEIR_GROUP, inode)
    assert stat.S_IMODE(facts.st_mode) == 0o604


def test_acl(umask: int, tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    base.chmod(0o600)
    _setfacl("-m", f"u:{SOMEBODY}:rw,g:{THEIR_GROUP}:r,o::r", base)
    _, facts = _snapshot(base, tmp_path / "top")
    assert _acl(tmp_path / "top") == [
        "user::rw-",
        f"user:{SOMEBODY}:rw-",
        "group::---",
        f"group:{THEIR_GROUP}:r--",
        "mask::rw-",
        "other::---",
    ]
    assert not facts.st_mode & 0o007


def test_a_folder_s_default_acl_opens_nothing(umask: int, tmp_path: Path) -> None:
    """The base came before it; the overlay must not be readable by those who cannot read that."""
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    base.chmod(0o660)
    _setfacl("-d", "-m", f"u:{SOMEBODY}:rwx,o::rwx", tmp_path)
    _snapshot(base, tmp_path / "top")
    assert _acl(tmp_path / "top") == ["user::rw-", "group::rw-", "other::---"]


def test_nobody_can_open_it_for_a_moment(umask: int, tmp_path: Path) -> None:
    """Whoever opens it while it is empty reads what is written later."""
    base = tmp_path / "base"
    base.write_bytes(b"")
    base.chmod(0o666)
    _setfacl("-m", f"u:{SOMEBODY}:rw,o::rw", base)
    log, new = tmp_path / "log", tmp_path / "new"
    script = (
        "import os, sys; from pathlib import Path; from imgtool.host.files import Files; "
        f"os.umask({umask}); Files().create_like(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    trace = ["strace", "-qq", "-xx", "-s", "200", "-e", "trace=fsetxattr", "-o", str(log)]
    command = [*trace, sys.executable, "-c", script, str(new), str(base)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    others = r"\x20\x00\x00\x00"  # tag 0x20, no rights: that is how the ACL is set at first
    assert others in log.read_text()
    assert r"\x20\x00\x06" not in log.read_text()
    assert _acl(new)[-1] == "other::---"


def test_a_security_label(tmp_path: Path) -> None:
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    label = b"system_u:object_r:svirt_image_t:s0:c1,c2\0"
    os.setxattr(base, "security.selinux", label)
    said, _ = _snapshot(base, tmp_path / "top")
    assert os.getxattr(tmp_path / "top", "security.selinux") == label
    assert said == []


def test_a_file_system_without_labels_and_acls(tmp_path: Path) -> None:
    """The snapshot is taken, for fewer people, and somebody is told."""
    base = make_image(tmp_path / "disk.qcow2", size=MIB)
    base.chmod(0o600)
    _setfacl("-m", f"u:{SOMEBODY}:rw", base)
    os.setxattr(base, "security.selinux", b"system_u:object_r:svirt_image_t:s0\0")
    with mounted("ramfs", tmp_path / "elsewhere") as elsewhere:
        said, facts = _snapshot(base, elsewhere / "top")
        assert stat.S_IMODE(facts.st_mode) == 0o600  # what stood for the mask is nobody's now
    assert len(said) == 2
    assert all(str(elsewhere / "top") in line and "vda" in line for line in said)
    assert "security label" in said[0]
    assert "ACL" in said[1]


def test_over_a_block_device(umask: int, tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.write_bytes(bytes(MIB))
    with loop_device(storage) as device:
        made = domain(tmp_path, disk(device, Format.RAW))
        take(made, external(file=tmp_path / "top"))
        facts = (tmp_path / "top").stat()
    assert stat.S_IMODE(facts.st_mode) == 0o600


@pytest.mark.parametrize("group", [THEIR_GROUP, SOMEBODY], ids=["own group", "another"])
def test_a_user_s_snapshot_of_somebody_s_image(group: int) -> None:
    """Others than root cannot give files away: theirs it is, and nobody else's."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_image(folder / "disk.qcow2", size=MIB)
        base.chmod(0o664)
        os.chown(base, 4321, group)
        os.chown(folder, SOMEBODY, THEIR_GROUP)
        made = domain(folder, disk(base))
        for path in (made.folder, made.xml):
            os.chown(path, SOMEBODY, THEIR_GROUP)
        said: list[str] = []
        with being(SOMEBODY, THEIR_GROUP):
            take(made, external(file=folder / "top"), said=said)
        facts = (folder / "top").stat()
        assert (facts.st_uid, facts.st_gid) == (SOMEBODY, THEIR_GROUP)
        assert stat.S_IMODE(facts.st_mode) == 0o600
        assert len(said) == 1
        assert "owner" in said[0]
