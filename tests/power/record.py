"""Do a piece of work on a logged disk, and keep what the disk saw."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .disk import FileSystem, copy_image, logged_disk, make_file_system, mounted, tool
from .log import Entry, read_log

Work = Callable[[Path], None]


@dataclass(frozen=True, slots=True)
class Recording:
    """What happened to a disk; `start` and `done` are indices of entries."""

    base: Path  # the disk's image before the first entry
    log: Path
    device: Path  # what the disk was then
    entries: tuple[Entry, ...]
    start: int  # where the work began
    done: int  # where it returned; what comes later is somebody else's sync


def record(
    fs: FileSystem,
    folder: Path,
    mountpoint: Path,
    *,
    prepare: Work,
    act: Work,
    neighbour: float | None,
    disk: Path | None = None,
) -> Recording:
    """Do `prepare` on a new file system, unlogged and synced, and then `act`, logged.

    With `disk`, the image of one, that file system is used instead of a new one; it is not changed.

    The log ends before anything is unmounted: what was not synced by then is not in it.
    `folder` is empty and will hold images and log; neither mounts nor processes stay.
    `neighbour`: seconds between the syncs of another program on this file system, or None.
    """
    image, base = folder / "disk", folder / "base"
    if disk is None:
        make_file_system(fs, image)
    else:
        copy_image(disk, image)
    with mounted(fs, image, mountpoint):
        prepare(mountpoint)
        # Not left to umount: whoever starts a mount namespace now (libvirt for each VM, a service)
        # has this file system mounted as well, for as long as it lives.
        tool("sync", "--file-system", mountpoint)
    copy_image(image, base)
    copy_image(base, image)  # another file, which that other mount will not write to
    with logged_disk(fs, image, mountpoint, folder) as logged:
        start = logged.logged()
        with _neighbour(mountpoint, neighbour):
            act(mountpoint)
            done = logged.logged()
        _sync_something_else(mountpoint)
        end = logged.logged()
    image.unlink()
    entries = read_log(logged.log, end)
    return Recording(base, logged.log, logged.device, entries, start, done)


@contextmanager
def _neighbour(mountpoint: Path, pause: float | None) -> Iterator[None]:
    """Another program that syncs a file of its own, again and again, until the block ends."""
    if pause is None:
        yield
        return
    enough = threading.Event()

    def work() -> None:
        while not enough.wait(pause):
            _sync_something_else(mountpoint)

    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(work)
        try:
            yield
        finally:
            enough.set()
    thread.result()


def _sync_something_else(mountpoint: Path) -> None:
    """What other programs do all the time: it takes the journal to the disk, not our data.

    Names and sizes that were never synced thus outlive their contents. The file has no name,
    so that nothing stray is found after a cut.
    """
    file = os.open(mountpoint, os.O_TMPFILE | os.O_WRONLY, 0o600)
    try:
        os.write(file, b"x")
        os.fsync(file)
    finally:
        os.close(file)
