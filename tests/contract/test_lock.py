"""The lock of a domain outlives an imgtool that is killed, as long as its qemu-img works."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from imgtool.host.files import Files

# Takes the lock, then starts a qemu-img that reads for a long time.
HOLDER = """
import sys
from pathlib import Path
from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
assert Files().lock(Path(sys.argv[1])) is not None
QemuImg().run("bench", "-f", "raw", "-c", "100000000", sys.argv[2], timeout=None)
"""


def test_a_killed_process_leaves_its_lock_to_its_qemu_img(tmp_path: Path) -> None:
    lock, image = tmp_path / "lock", tmp_path / "raw"
    image.write_bytes(bytes(1 << 20))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, lock, image])
    try:
        worker = _child(holder.pid)
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    assert Files().lock(lock) is None
    os.kill(worker, signal.SIGKILL)
    assert _lock_soon(lock)


def _child(pid: int) -> int:
    """The qemu-img that it has started."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/comm").read_text() == "qemu-img\n":
                    return int(child)
        time.sleep(0.01)
    raise AssertionError("no qemu-img was started")


def _lock_soon(path: Path) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        descriptor = Files().lock(path)
        if descriptor is not None:
            os.close(descriptor)
            return True
        time.sleep(0.01)
    return False
