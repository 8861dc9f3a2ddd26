"""A file system on a disk that logs each write and flush.

    mount point <- loop device <- FUSE file of a qemu-storage-daemon <- blklogwrites <- image, log

Needs root, loop devices, /dev/fuse, qemu-storage-daemon and the mkfs of the file system.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .log import count_entries

MEMORY = Path("/dev/shm")
MEMORY_ENOUGH = 4 << 30  # bytes
PATIENCE = 60.0  # seconds, for the daemon to start or to stop


class ToolError(Exception):
    """mount, mkfs, losetup or the daemon failed; the message is the command and its stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSystem:
    """What to test on. `sector`: bytes that reach the disk whole or not at all.

    ext4 and btrfs count on 4 KiB: a checksum of theirs covers more than 512 bytes.
    """

    name: str
    kind: str  # for mkfs.KIND and mount -t
    sector: int
    mkfs: tuple[str, ...]
    options: str = "defaults"  # for mount -o
    size: int = 512 << 20  # bytes; sparse

    def __str__(self) -> str:
        return self.name


LAZY = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"  # lazy: writes nobody asked for, later
# nouuid: a file system cut from power may still be mounted in its earlier life
XFS = FileSystem(name="xfs", kind="xfs", sector=512, mkfs=("-q", "-K"), options="nouuid")
EXT4 = FileSystem(
    name="ext4", kind="ext4", sector=4096, mkfs=("-q", "-F", "-b", "4096", "-E", LAZY)
)
EXT4_BARE = FileSystem(
    name="ext4-noauto_da_alloc",
    kind="ext4",
    sector=4096,
    mkfs=EXT4.mkfs,
    options="noauto_da_alloc",  # renaming over a file no longer writes the new one's data first
)
BTRFS = FileSystem(name="btrfs", kind="btrfs", sector=4096, mkfs=("-q", "-K"), options="nodiscard")


@dataclass(frozen=True, slots=True)
class LoggedDisk:
    """A mounted file system, and the log of what was done to its disk since it was attached."""

    mountpoint: Path
    log: Path
    device: Path  # the loop device under it

    def logged(self) -> int:
        """How many requests the disk has completed by now: a mark in its log."""
        return count_entries(self.log)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for images and logs, in memory if there is plenty; removed at the end."""
    roomy = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_ENOUGH
    with tempfile.TemporaryDirectory(prefix="power-", dir=MEMORY if roomy else None) as folder:
        yield Path(folder)


def make_file_system(fs: FileSystem, image: Path) -> None:
    """An empty file system in a new sparse file. Raises ToolError, FileExistsError."""
    with image.open("xb") as file:
        file.truncate(fs.size)
    tool(f"mkfs.{fs.kind}", *fs.mkfs, image)
    tool("fallocate", "--dig-holes", image)  # mkfs.xfs writes 64 MiB of zeros; each cut copies them


def copy_image(source: Path, target: Path) -> None:
    """Make or replace `target`, sparse; a reflink where the file system has them."""
    target.unlink(missing_ok=True)
    tool("cp", "--reflink=auto", "--sparse=auto", "--", source, target)


@contextmanager
def loop_device(file: Path, other_than: Path | None = None) -> Iterator[Path]:
    """A block device that is this file; not that one, whoever has it now or had it before."""
    device = _attach(file)
    try:
        if device != other_than:
            yield device
        else:  # it is taken now, so the next one is another
            with loop_device(file) as other:
                yield other
    finally:
        tool("losetup", "--detach", device)


def _attach(file: Path) -> Path:
    return Path(tool("losetup", "--find", "--show", file).strip())


@contextmanager
def mounted(
    fs: FileSystem, image: Path, mountpoint: Path, other_than: Path | None = None
) -> Iterator[Path]:
    """Mount `image`, and unmount it whatever happens; yields its device, which is not that one.

    Raises ToolError if it cannot be mounted, or is still in use at the end; it is detached then.
    """
    with loop_device(image, other_than) as device:
        tool("mount", "-t", fs.kind, "-o", fs.options, device, mountpoint)
        try:
            yield device
        finally:
            _unmount(mountpoint)


@contextmanager
def logged_disk(
    fs: FileSystem, image: Path, mountpoint: Path, scratch: Path
) -> Iterator[LoggedDisk]:
    """Mount the file system in `image` with a log under it, which stays when this ends.

    `image` changes as it is used. `scratch` is an existing folder for the log.
    """
    log = scratch / "log"
    log.touch(exist_ok=False)
    with ExitStack() as stack:
        export = stack.enter_context(_export(image, log, scratch))
        device = stack.enter_context(mounted(fs, export, mountpoint))
        yield LoggedDisk(mountpoint, log, device)


def tool(*command: str | Path) -> str:
    """Run a command, return its stdout. Raises ToolError."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ToolError(str(error)) from error
    if done.returncode:
        words = " ".join(map(str, command))
        raise ToolError(f"{words}: exit {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def _unmount(mountpoint: Path) -> None:
    try:
        tool("umount", mountpoint)
    except ToolError:  # somebody left a file open; do not leave the mount behind as well
        tool("umount", "--lazy", mountpoint)
        raise


@contextmanager
def _export(image: Path, log: Path, scratch: Path) -> Iterator[Path]:
    """A file that reads and writes as `image`, and logs; gone with its daemon at the end."""
    export, pid, stderr = scratch / "export", scratch / "pid", scratch / "stderr"
    export.touch(exist_ok=False)
    command = (
        "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=image,discard=unmap,filename={image}",
        "--blockdev", f"driver=file,node-name=log,filename={log}",
        "--blockdev", "driver=blklogwrites,node-name=logged,discard=unmap,file=image,log=log,"
        "log-super-update-interval=1",
        "--export", f"type=fuse,id=export,node-name=logged,writable=on,mountpoint={export}",
        "--pidfile", str(pid),
    )  # fmt: skip
    with stderr.open("wb") as errors, subprocess.Popen(command, stderr=errors) as daemon:
        try:
            _await_start(daemon, pid, stderr)
            yield export
        finally:
            _stop(daemon, export)


def _await_start(daemon: subprocess.Popen[bytes], pid: Path, stderr: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not pid.exists():  # written when the exports are up
        if daemon.poll() is not None or time.monotonic() > deadline:
            raise ToolError(f"qemu-storage-daemon did not start: {stderr.read_text().strip()}")
        time.sleep(0.005)


def _stop(daemon: subprocess.Popen[bytes], export: Path) -> None:
    daemon.terminate()
    try:
        daemon.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
    # a daemon that was killed leaves its mount, and stat() cannot tell: there is nobody to answer
    if f" {export} " in Path("/proc/self/mounts").read_text():
        tool("umount", "--lazy", export)
