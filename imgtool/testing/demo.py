"""The main job, shown: `python -m imgtool.testing.demo`. Needs qemu-img, and root for one scene."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imgtool import api
from imgtool.host.files import Files
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotRequest
from imgtool.testing.domains import make_domain, make_three_disks
from imgtool.testing.images import guest_bytes_digest


def main() -> int:
    """Run all scenes in a temporary folder; returns 0 if each ended as it should."""
    with tempfile.TemporaryDirectory(prefix="imgtool-demo-") as name:
        folder = Path(name)
        vm = folder / "vm"
        vm.mkdir()
        title("A stopped machine with three disks: two qcow2, one raw, with guest data on each")
        make_three_disks(vm)
        imgtool(vm, "domblklist", "vm", "--details")
        scene_snapshots(vm)
        scene_read_only(folder)
        scene_killed(vm)
    title("Done: every scene ended as it should")
    return 0


def scene_snapshots(vm: Path) -> None:
    """A mixed snapshot, then an external one; the guest sees the same bytes throughout."""
    guest = guest_digests(vm)
    title("A mixed snapshot: internal in the qcow2 disks, external on the raw one, all or none")
    mixed = ["snapshot-create-as", "vm", "mixed", "before the update"]
    mixed += ["--diskspec", "vdc,snapshot=external"]
    imgtool(vm, "--dry-run", *mixed)
    imgtool(vm, *mixed)
    title("An external one of all three, whose overlays name their bases relatively")
    imgtool(vm, "snapshot-create-as", "vm", "external", "--disk-only", "--relative")
    imgtool(vm, "chain", "vm")
    imgtool(vm, "snapshot-list", "vm", "--tree")
    require(guest_digests(vm) == guest, "the guest sees the same bytes as before")


def scene_read_only(folder: Path) -> None:
    """A snapshot whose second disk lies on read-only storage fails, and nothing has changed."""
    title("A snapshot whose second disk lies on read-only storage")
    vm, storage = folder / "other", folder / "storage"
    vm.mkdir()
    storage.mkdir()
    made = make_three_disks(vm)
    moved = storage / made.image("vdb").name
    with read_only_storage(storage, made.image("vdb")):
        disks = [
            Disk(target=disk.target, source=path, format=disk.format, format_name=disk.format_name)
            for disk in made.disks
            for path in [moved if disk.target == "vdb" else disk.source]
        ]
        make_domain(vm, "vm", disks)
        before = tree_digest(vm)
        imgtool(vm, "snapshot-create-as", "vm", "s1", "--disk-only", expect=1)
        require(tree_digest(vm) == before, "not one byte, name or mode has changed")


def scene_killed(vm: Path) -> None:
    """SIGKILL while an image is half overwritten; QEMU refuses it until recovery."""
    title("Killed (SIGKILL) in the middle of an internal snapshot")
    image = make_second_domain(vm)
    before = tree_digest(vm)
    if (child := os.fork()) == 0:
        with api.open_world(f"dir:{vm}", files=KillingFiles(), jobs=1) as world:
            api.take_snapshot(world, "two", SnapshotRequest(name="s1"), api.SnapshotOptions())
        os._exit(0)
    _, status = os.waitpid(child, 0)
    require(os.WTERMSIG(status) == signal.SIGKILL, "the process was killed half-way")
    imgtool(vm, "recover", "--list")
    refused = run(["qemu-io", "-f", "qcow2", "-c", "write 0 512", image])
    require("corrupt" in refused.stderr, "QEMU refuses the half-changed image, so nobody boots it")
    imgtool(vm, "recover")
    require(tree_digest(vm) == before, "everything is as it was, to the last byte")
    imgtool(vm, "snapshot-create-as", "two", "s1")
    imgtool(vm, "chain", "two")


class KillingFiles(Files):
    """Dies when one image is half overwritten and the other not at all."""

    def __init__(self) -> None:
        self._pieces = 0

    def copy_range(self, *args: Any) -> None:
        """As ever, until a few pieces of an image have been written in place."""
        super().copy_range(*args)
        in_place = args[-1](0, bytes(512)) != bytes(512)  # only what stays blocked is edited
        self._pieces += in_place
        if self._pieces == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def make_second_domain(vm: Path) -> Path:
    """A domain `two` with two qcow2 disks; returns the image of the first."""
    other = vm / "two"
    other.mkdir()
    made = make_three_disks(other, "two")
    made.xml.unlink()
    disks = [disk for disk in made.disks if disk.format is Format.QCOW2]
    make_domain(vm, "two", disks)
    return made.image("vda")


@contextmanager
def read_only_storage(storage: Path, image: Path) -> Iterator[None]:
    """Move `image` into `storage`, which can then not be written to; root may write anywhere
    else, so for root it becomes a file system of its own."""
    if os.geteuid() != 0:
        shutil.move(image, storage)
        storage.chmod(0o555)
        try:
            yield
        finally:
            storage.chmod(0o755)
        return
    require(run(["mount", "-t", "tmpfs", "tmpfs", storage]).returncode == 0, "mounted a tmpfs")
    try:
        shutil.move(image, storage)
        require(run(["mount", "-o", "remount,ro", storage]).returncode == 0, "made it read-only")
        yield
    finally:
        run(["umount", storage])


def imgtool(folder: Path, *words: str, expect: int = 0) -> None:
    """Run the command as a user would, showing it and what it says."""
    print(f"$ imgtool -c dir:{folder.name} {shlex.join(words)}", flush=True)
    command = [sys.executable, "-m", "imgtool", "-c", f"dir:{folder}", *words]
    code = subprocess.run(command, check=False).returncode
    print(f"  (exit code {code})\n" if code else "", flush=True)
    require(code == expect, f"exit code {expect}", quiet=True)


def run(command: list[str | Path]) -> subprocess.CompletedProcess[str]:
    """Another program, without its output."""
    return subprocess.run(command, check=False, capture_output=True, text=True)


def require(holds: bool, what: str, *, quiet: bool = False) -> None:
    """Say that it holds, or end the demonstration."""
    if not holds:
        sys.exit(f"demo: NOT so: {what}")
    if not quiet:
        print(f"  ok: {what}", flush=True)


def title(text: str) -> None:
    """A heading."""
    print(f"\n=== {text}\n", flush=True)


def guest_digests(vm: Path) -> dict[str, str]:
    """What the guest would read from each disk."""
    with api.open_world(f"dir:{vm}") as world:
        return {
            target: guest_bytes_digest(chain.active.path, chain.active.format)
            for target, chain in api.chains(world, "vm").items()
        }


def tree_digest(folder: Path) -> str:
    """Names, modes and bytes of all that is below a folder."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(f"{path} {path.lstat().st_mode:o}\n".encode())
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
