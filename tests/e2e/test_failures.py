"""libvirt cannot write, or is gone, in the middle of a snapshot."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from imgtool.host.files import Files
from imgtool.model.errors import StoreError
from imgtool.stores.libvirt import LibvirtStore
from imgtool.testing import Outcome, assert_old_or_new, differences, make_three_disks
from tests.crash import disks
from tests.libvirt_fixtures import libvirtd_in, libvirtd_pid, short_folder

from .command import assert_refused
from .held import Moment, held
from .machine import Machine, defined, forget
from .moments import EXTERNAL, INTERNAL, MADE_CURRENT, MIXED, PIVOTED, RECORDED

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd-kills")]

Trouble = Callable[[str, str], AbstractContextManager[None]]
DOMAINS = "/etc/libvirt/qemu"
SNAPSHOTS = "/var/lib/libvirt/qemu/snapshot"


def in_libvirtd(uri: str, *command: str) -> None:
    """Run a command where libvirtd sees it: among its own mounts."""
    inside = ["nsenter", "--mount", "--root", f"--target={libvirtd_pid(uri)}", "--", *command]
    subprocess.run(inside, check=True, capture_output=True)


@contextmanager
def read_only(uri: str, folder: str) -> Iterator[None]:
    """libvirtd can write no file there (EROFS)."""
    in_libvirtd(uri, "mount", "--bind", folder, folder)
    in_libvirtd(uri, "mount", "-o", "remount,bind,ro", folder)
    try:
        yield
    finally:
        in_libvirtd(uri, "umount", folder)


@contextmanager
def full(uri: str, folder: str) -> Iterator[None]:
    """libvirtd finds no room for a file there (ENOSPC)."""
    in_libvirtd(uri, "mount", "-t", "tmpfs", "-o", "size=64k", "full", folder)
    fill = f"cat /dev/zero >{folder}/filler 2>/dev/null || true; mkdir {folder}/vm || true"
    in_libvirtd(uri, "sh", "-c", fill)
    try:
        yield
    finally:
        in_libvirtd(uri, "umount", folder)


@pytest.mark.parametrize(
    ("trouble", "folder", "words"),
    [
        pytest.param(read_only, SNAPSHOTS, MIXED, id="EROFS, record"),
        pytest.param(full, SNAPSHOTS, MIXED, id="ENOSPC, record"),
        pytest.param(read_only, DOMAINS, EXTERNAL, id="EROFS, domain, external"),
        pytest.param(read_only, DOMAINS, INTERNAL, id="EROFS, domain, internal"),
        pytest.param(read_only, DOMAINS, MIXED, id="EROFS, domain, mixed"),
    ],
)
def test_what_libvirt_cannot_write_is_rolled_back(
    machine: Machine, words: tuple[str, ...], trouble: Trouble, folder: str
) -> None:
    before = machine.captured()
    with trouble(machine.uri, folder):
        ended = machine.imgtool(*words)
    assert_refused(ended, 1, "libvirt: ")
    assert differences(before, machine.captured()) == []


@pytest.mark.strace
def test_what_cannot_be_finished_waits(machine: Machine, tmp_path: Path) -> None:
    """Past the pivot, the images' folder becomes read-only: they cannot be unblocked."""
    before = machine.captured()
    with held(machine.words(*MIXED), PIVOTED, tmp_path / "log") as command:
        with disks.read_only(machine.images):
            code, stderr = command.go_on()
            assert code == 4, stderr
            assert "recover" in stderr
            assert "Read-only file system" in machine.imgtool("recover").stderr
            assert "Image is corrupt" in machine.does_not_start()
    (ended,) = machine.json("recover")["recovered"]
    assert ended["direction"] == "forward"
    now = machine.captured()
    machine.virsh("snapshot-delete", "vm", "s1", "--metadata")
    assert [disk.top.guest for disk in now.disks] == [disk.top.guest for disk in before.disks]
    assert [len(disk.top.tags) for disk in now.disks] == [1, 1, 0]


def test_a_record_that_libvirt_could_not_remove_stays(embed_uri: str, tmp_path: Path) -> None:
    """libvirt would forget it until it is started again; so it is not asked."""
    store = LibvirtStore(embed_uri, Files())
    store.define(make_three_disks(tmp_path, "frozen").xml.read_bytes())
    xml = b"<domainsnapshot><name>s1</name><state>shutoff</state><creationTime>1</creationTime>"
    xml += b"<memory snapshot='no'/>" + store.head("frozen").xml + b"</domainsnapshot>"
    store.record("frozen", "s1", xml, current=True)
    file = Path(embed_uri.partition("root=")[2], "lib/qemu/snapshot/frozen/s1.xml")
    with disks.read_only(file.parent), pytest.raises(StoreError, match="would come back"):
        store.forget("frozen", "s1")
    assert (store.current("frozen"), file.exists()) == ("s1", True)
    store.forget("frozen", "s1")
    assert (store.current("frozen"), file.exists()) == (None, False)
    store.undefine("frozen")


@pytest.mark.strace
def test_a_pivot_that_libvirtd_is_slow_at(machine: Machine, tmp_path: Path) -> None:
    """It goes on with it when imgtool is dead; recovery must not go back meanwhile."""
    started, slow = tmp_path / "started", tmp_path / "qemu"
    slow.write_text(f'#!/bin/sh\n: >{started}\nexec qemu-system-x86_64 "$@"\n')
    slow.chmod(0o755)
    xml = tmp_path / "vm.xml"
    xml.write_text(re.sub("(?<=<emulator>)[^<]*", str(slow), machine.xml()))
    machine.virsh("define", xml)
    with held(machine.words(*MIXED), MADE_CURRENT, tmp_path / "log") as command:
        started.unlink()
        slow.chmod(0o755)  # changed: libvirt looks at its capabilities again
        code, _ = command.go_on(kill_if=started.exists)
    assert code == -signal.SIGKILL
    (ended,) = machine.json("recover")["recovered"]
    forward = ended["direction"] == "forward"  # unless it died before it asked
    time.sleep(0 if forward else 10)  # should libvirtd still be at it
    vdc = machine.image("vdc").with_suffix(".s1") if forward else machine.image("vdc")
    assert (machine.sources()["vdc"], vdc.exists()) == (str(vdc), True)
    assert machine.virsh("snapshot-list", "vm", "--name") == ("s1" if forward else "")


@pytest.mark.strace
def test_a_libvirtd_that_dies_in_the_middle(tmp_path: Path) -> None:
    with short_folder() as folder:
        _die_in_the_middle(folder, tmp_path / "1", RECORDED, Outcome.OLD)
        _die_in_the_middle(folder, tmp_path / "2", PIVOTED, Outcome.NEW)


def _die_in_the_middle(folder: Path, place: Path, moment: Moment, outcome: Outcome) -> None:
    """libvirtd is killed at that moment; the next one in its folder finds this outcome."""
    place.mkdir()
    log = place.with_suffix(".log")
    with libvirtd_in(folder) as uri, defined(uri, place, keep=True) as machine:
        before = machine.captured()
        with held(machine.words(*MIXED), moment, log) as command:
            os.kill(libvirtd_pid(uri), signal.SIGKILL)
            code, stderr = command.go_on()
        assert code == 4, stderr
        assert machine.imgtool("recover").returncode == 1
    with libvirtd_in(folder):
        (ended,) = machine.json("recover")["recovered"]
        assert ended["direction"] == ("forward" if outcome is Outcome.NEW else "back")
        now = machine.captured()
        if outcome is Outcome.OLD:
            machine.done(*MIXED)
        assert assert_old_or_new(before, machine.captured(), now) is outcome
        forget(uri)
