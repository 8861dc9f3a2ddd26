"""What libvirt leaves when it is killed or its disk fails, seen by check and mended.

libvirt is real; where 9.0 cannot do what leaves a state (it has no offline external revert, and
deletes by starting QEMU), the state that 11.3 leaves is made by hand, and the test says so.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import imgtool
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing import (
    KIB,
    guest_bytes_digest,
    make_domain,
    make_image,
    read_pattern,
    write_pattern,
)
from tests.libvirt_fixtures import libvirtd_in, libvirtd_pid, short_folder, virsh

from . import command
from .command import Done
from .machine import Machine, defined

pytestmark = [pytest.mark.libvirtd, pytest.mark.xdist_group("libvirtd")]

TARGETS = ("vda", "vdb", "vdc")
SECONDS = 30.0


@dataclass(slots=True)
class Peer:
    """A libvirtd that finds our qemu-img first, which kills it when it is told to."""

    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)
    uri: str = ""

    def start(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", f"{self.folder / 'bin'}:{os.environ['PATH']}")
            self.uri = self.stack.enter_context(libvirtd_in(self.folder))

    def restart(self) -> None:
        """After its death, as systemd would."""
        self.stack.close()
        self.stack = ExitStack()
        self.start()

    def kill_at(self, call: int) -> None:
        """Die when qemu-img is called for the n-th time, before it does anything."""
        (self.folder / "armed").write_text(f"{call}\n")

    def make_tool(self) -> None:
        tool = self.folder / "bin/qemu-img"
        tool.parent.mkdir()
        tool.write_text(
            "#!/bin/sh\n"
            f"armed={self.folder}/armed\n"
            'if [ -e "$armed" ]; then\n'
            '  left=$(($(cat "$armed") - 1))\n'
            '  echo $left >"$armed"\n'
            '  if [ $left = 0 ]; then rm "$armed"; kill -KILL $PPID; exit 1; fi\n'
            "fi\n"
            f'exec {shutil.which("qemu-img")} "$@"\n'
        )
        tool.chmod(0o755)


@pytest.fixture(scope="module")
def peer() -> Iterator[Peer]:
    with short_folder() as folder:
        made = Peer(folder=folder)
        made.make_tool()
        made.start()
        try:
            yield made
        finally:
            made.stack.close()


@pytest.fixture
def machine(peer: Peer, tmp_path: Path) -> Iterator[Machine]:
    """A stopped domain with three disks: vda and vdb are qcow2, vdc is raw."""
    with defined(peer.uri, tmp_path) as made:
        yield made


@contextmanager
def failing_rename(uri: str, when: int, log: Path) -> Iterator[None]:
    """The n-th XML that libvirtd puts in its place cannot be put there (EIO)."""
    inject = f"inject=rename:error=EIO:when={when}"
    strace = subprocess.Popen(
        [
            *("strace", "-f", "-p", str(libvirtd_pid(uri)), "-o", os.fspath(log)),
            *("-e", "trace=rename", "-e", inject),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    assert "attached" in strace.stderr.readline()
    try:
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.communicate(timeout=SECONDS)


def found(machine: Machine, *words: str) -> list[dict[str, str]]:
    """What check finds, notes and all."""
    ended = machine.imgtool("--json", "check", "vm", *words)
    assert "Traceback" not in ended.stderr
    findings: list[dict[str, str]] = json.loads(ended.stdout)["findings"]
    bad = any(each["severity"] != "note" for each in findings)
    assert ended.returncode == bad, ended
    return findings


def kinds(machine: Machine) -> list[str]:
    return [each["kind"] for each in found(machine)]


def await_next_second() -> None:
    now = int(time.time())
    while int(time.time()) == now:
        time.sleep(0.01)


def follow(remedy: str) -> Done:
    """Run the command that a finding names."""
    words = shlex.split(remedy[remedy.index("imgtool -c ") :])[1:]
    ended = command.imgtool(*words)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended


def guest(machine: Machine) -> list[str]:
    """What a guest reads on each disk. Damage is a finding, see `kinds`."""
    return [
        guest_bytes_digest(Path(source), _format(machine, source))
        for source in machine.sources().values()
    ]


def _format(machine: Machine, source: str) -> Format:
    return Format.RAW if source == str(machine.image("vdc")) else Format.QCOW2


def write(machine: Machine, byte: int) -> None:
    """What a guest does on each disk."""
    for source in machine.sources().values():
        write_pattern(Path(source), _format(machine, source), 0, 64 * KIB, byte)


def test_killed_at_the_third_overlay(machine: Machine, peer: Peer) -> None:
    """Its overlays stay, and every other try fails on them."""
    before = guest(machine)
    peer.kill_at(3)
    machine.virsh_fails("snapshot-create-as", "vm", "x", "--disk-only")
    peer.restart()
    assert "already exists" in machine.virsh_fails("snapshot-create-as", "vm", "x", "--disk-only")
    findings = found(machine)
    assert [each["kind"] for each in findings] == ["stray", "stray"]
    follow(findings[0]["remedy"])
    assert kinds(machine) == []
    machine.virsh("snapshot-create-as", "vm", "x", "--disk-only")
    assert guest(machine) == before
    assert kinds(machine) == []


def test_killed_at_the_third_internal_snapshot(peer: Peer, tmp_path: Path) -> None:
    """The second try makes its tags twice, and libvirt would revert to those of the first."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = {target: make_image(folder / f"vm-{target}.qcow2") for target in TARGETS}
    disks = [
        Disk(target=target, source=path, format=Format.QCOW2, format_name="qcow2")
        for target, path in images.items()
    ]
    made = make_domain(folder, "vm", disks)
    machine = Machine(uri=peer.uri, folder=tmp_path)
    machine.virsh("define", made.xml)
    made.xml.unlink()
    try:
        write(machine, 0x11)
        peer.kill_at(3)
        machine.virsh_fails("snapshot-create-as", "vm", "x")
        peer.restart()
        assert kinds(machine) == ["tag-without-record"] * 2
        write(machine, 0x22)
        await_next_second()  # tags of one second cannot be told apart, see test_check.py
        machine.virsh("snapshot-create-as", "vm", "x")
        write(machine, 0x33)
        findings = found(machine)
        assert [each["kind"] for each in findings] == ["tag-twice"] * 2
        machine.imgtool("check", "vm", "--repair")
        assert kinds(machine) == ["tag-twice"] * 2, "not without consent"
        follow(findings[0]["remedy"])
        assert kinds(machine) == []
        machine.virsh("snapshot-revert", "vm", "x")
        for image in images.values():
            assert read_pattern(image, Format.QCOW2, 0, KIB) == b"\x22" * KIB
    finally:
        virsh(peer.uri, "undefine", "vm", "--snapshots-metadata")


def test_tags_of_a_try_that_died_go_before_the_next(machine: Machine, tmp_path: Path) -> None:
    """Mended in time, nothing is ever there twice."""
    for target in ("vda", "vdb"):
        subprocess.run(["qemu-img", "snapshot", "-c", "x", machine.image(target)], check=True)
    findings = found(machine)
    assert [each["kind"] for each in findings] == ["tag-without-record"] * 2
    follow(findings[0]["remedy"])
    assert kinds(machine) == []
    machine.done("snapshot-create-as", "vm", "x", "--diskspec", "vdc,snapshot=external")
    assert kinds(machine) == []


@pytest.mark.strace
def test_eio_at_the_domain_xml(machine: Machine, peer: Peer, tmp_path: Path) -> None:
    """libvirt removes its overlays, and goes on naming them: only its own file knows better."""
    before = guest(machine)
    with failing_rename(peer.uri, 1, tmp_path / "log"):
        machine.virsh_fails("snapshot-create-as", "vm", "x", "--disk-only")
    assert machine.sources()["vda"].endswith("vm-vda.x")
    assert not Path(machine.sources()["vda"]).exists()
    assert set(kinds(machine)) == {"missing"}
    # Behind a socket of its own nobody can tell where its files are: look from where it is.
    done = inside(peer, "imgtool -c qemu:///system check vm")
    assert done.returncode == 1, done.stderr
    first = done.stdout.splitlines()[0]
    assert "libvirt has other images in memory than in /etc/libvirt/qemu/vm.xml" in first
    inside(peer, first.partition(" -> ")[2])
    assert kinds(machine) == []
    assert guest(machine) == before
    machine.virsh("snapshot-create-as", "vm", "x", "--disk-only")
    assert kinds(machine) == []


def inside(peer: Peer, line: str) -> Done:
    """Run a command of imgtool where libvirtd's own folders are seen."""
    words = [sys.executable, "-m", *shlex.split(line)]
    enter = ["nsenter", "--mount", "--root", f"--target={libvirtd_pid(peer.uri)}", "--"]
    project = Path(imgtool.__file__).parents[1]  # it begins in the root folder
    return subprocess.run(
        [*enter, *words],
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.strace
@pytest.mark.parametrize(
    "first", [pytest.param(True, marks=pytest.mark.long), False], ids=["first", "second"]
)
def test_eio_at_the_snapshot_xml(machine: Machine, peer: Peer, tmp_path: Path, first: bool) -> None:
    """The disks are switched, and no snapshot is recorded; the old one is not current any more."""
    if not first:
        machine.virsh("snapshot-create-as", "vm", "p", "--disk-only")
    before = guest(machine)
    with failing_rename(peer.uri, 2 if first else 3, tmp_path / "log"):
        machine.virsh_fails("snapshot-create-as", "vm", "x", "--disk-only")
    assert machine.sources()["vda"].endswith("vm-vda.x")
    assert machine.virsh("snapshot-list", "vm", "--name") == ("" if first else "p")
    findings = found(machine)
    assert "not-recorded" in [each["kind"] for each in findings], findings
    (adopt,) = [each["remedy"] for each in findings if each["kind"] == "not-recorded"]
    follow(adopt)
    assert kinds(machine) == []
    assert machine.virsh("snapshot-current", "vm", "--name") == "x"
    assert machine.virsh("snapshot-info", "vm", "x").count("external") == 1
    write(machine, 0x44)
    latest = guest(machine)
    machine.done("snapshot-revert", "vm", "x", "--keep-as", "latest")
    assert guest(machine) == before
    machine.done("snapshot-revert", "vm", "latest", "--keep")
    assert guest(machine) == latest


def test_two_records_that_claim_to_be_current(machine: Machine, peer: Peer) -> None:
    """libvirt rewrites the old one first: a power cut may bring it back. And a .new is a record."""
    for name in ("p", "x"):
        machine.virsh("snapshot-create-as", "vm", name, "--disk-only")
    old = peer.folder / "lib/qemu/snapshot/vm/p.xml"
    text = old.read_text()
    assert "<active>0</active>" in text
    old.write_text(text.replace("<active>0</active>", "<active>1</active>"))
    half = old.with_name("x.xml.new")
    half.write_text(text)
    seen = inside(peer, "imgtool -c qemu:///system --json check vm")
    twice, ignored = sorted(json.loads(seen.stdout)["findings"], key=lambda each: each["kind"])
    assert (twice["kind"], ignored["kind"]) == ("current-twice", "record-ignored")
    assert ignored["remedy"].endswith("rm -- /var/lib/libvirt/qemu/snapshot/vm/x.xml.new")
    half.unlink()
    assert inside(peer, twice["remedy"]).returncode == 0
    assert "<active>0</active>" in old.read_text()
    assert machine.virsh("snapshot-current", "vm", "--name") == "x"


def test_killed_at_the_first_rename_of_a_revert(machine: Machine) -> None:
    """As 11.3 leaves it (9.0 has no such revert): new overlays made, those in use unlinked."""
    at_x = guest(machine)
    machine.virsh("snapshot-create-as", "vm", "x", "--disk-only")
    write(machine, 0x22)
    for target, source in machine.sources().items():
        Path(source).unlink()
        base = machine.image(target)
        overlay = base.with_suffix(f".{int(time.time())}")
        words = f"create -q -f qcow2 -F {base.suffix[1:]}".split()
        subprocess.run(["qemu-img", *words, "-b", base, overlay], check=True)
    findings = found(machine)
    assert [each["kind"] for each in findings] == ["missing"] * 3 + ["stray"] * 3
    follow(findings[0]["remedy"])
    assert guest(machine) == at_x
    findings = found(machine)
    assert [each["kind"] for each in findings] == ["stray"] * 3
    follow(findings[0]["remedy"])
    assert kinds(machine) == []
    assert guest(machine) == at_x


@pytest.mark.qemu
def test_killed_behind_the_first_disk_of_a_deletion(machine: Machine) -> None:
    """As 11.3 leaves it: vda is merged and switched, the others are not, a QEMU is left paused."""
    machine.virsh("snapshot-create-as", "vm", "x", "--disk-only")
    write(machine, 0x22)
    latest = guest(machine)
    overlay = Path(machine.sources()["vda"])
    subprocess.run(["qemu-img", "commit", "-q", "-f", "qcow2", overlay], check=True)
    overlay.unlink()
    xml = machine.folder / "vm.xml"
    xml.write_text(machine.xml().replace(str(overlay), str(machine.image("vda"))))
    machine.virsh("define", xml)
    machine.virsh("start", "vm", "--paused")
    (first, *rest) = found(machine)
    assert first["kind"] == "frozen-image-in-use"
    assert "not-stopped" in [each["kind"] for each in rest]
    words = shlex.split(first["remedy"])[1:]
    ended = command.imgtool(*words)
    assert ended.returncode == 3
    stray = machine.images / "stray"
    base = ["-F", "raw", "-b", str(machine.image("vdc"))]
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *base, stray], check=True)
    assert "may not be in its XML" in machine.done("gc", "vm", "--force")
    machine.remedy(ended)
    assert f"{stray} removed" in machine.done("gc", "vm")
    follow(first["remedy"])
    assert kinds(machine) == []
    assert guest(machine) == latest
    assert machine.virsh("snapshot-list", "vm", "--name") == ""
    assert machine.sources()["vda"] == str(machine.image("vda"))


def test_a_leaf_deleted_whose_parent_was_made_current(machine: Machine) -> None:
    """As 11.3 leaves it (9.0 gets it right): the overlays of x unlinked, which those of y need."""
    at_x = guest(machine)
    machine.virsh("snapshot-create-as", "vm", "x", "--disk-only")
    overlays = [Path(source) for source in machine.sources().values()]
    write(machine, 0x22)
    machine.virsh("snapshot-create-as", "vm", "y", "--disk-only")
    write(machine, 0x33)
    machine.virsh("snapshot-current", "vm", "x")
    machine.virsh("snapshot-delete", "vm", "y", "--metadata")
    for overlay in overlays:
        overlay.unlink()
    findings = found(machine)
    assert [each["kind"] for each in findings] == ["missing"] * 3
    follow(findings[0]["remedy"])
    assert guest(machine) == at_x
    assert kinds(machine) == []


def test_the_same_file_for_two_disks(machine: Machine) -> None:
    """libvirt overwrites the first overlay with the second, and both disks name it."""
    at_x = guest(machine)
    same = machine.images / "same"
    words = [f"--diskspec={target},snapshot=external,file={same}" for target in ("vda", "vdb")]
    machine.virsh("snapshot-create-as", "vm", "x", "--disk-only", *words)
    assert machine.sources()["vda"] == machine.sources()["vdb"] == str(same)
    (finding,) = found(machine)
    assert (finding["kind"], finding["disk"]) == ("shared", "vda")
    follow(finding["remedy"])
    assert kinds(machine) == []
    assert guest(machine) == at_x
    assert len(set(machine.sources().values())) == 3
