"""An internal snapshot of a large image, staged on a scratch layer for those, is QEMU's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from imgtool import api
from imgtool.engine.redo import LARGE
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotRequest
from imgtool.testing.domains import make_domain
from imgtool.testing.images import make_image

CLUSTER = 1 << 16


def test_the_image_is_what_qemu_img_makes_of_it(tmp_path: Path) -> None:
    image = make_image(tmp_path / "q", size=LARGE + CLUSTER, options="preallocation=metadata")
    assert image.stat().st_size > LARGE
    direct = tmp_path / "direct"
    subprocess.run(["cp", "--sparse=always", image, direct], check=True)
    subprocess.run(["qemu-img", "snapshot", "-c", "s", direct], check=True)
    disk = Disk(target="vda", source=image, format=Format.QCOW2, format_name="qcow2")
    make_domain(tmp_path, "vm", [disk])
    with api.open_world(f"dir:{tmp_path}") as world:
        api.take_snapshot(world, "vm", SnapshotRequest(name="s"), api.SnapshotOptions())
    assert _content(image) == _content(direct)
    shutil.rmtree(tmp_path)


def _content(image: Path) -> dict[int, bytes]:
    """The clusters that are not all zeros, by offset; the snapshot's time is taken out."""
    with image.open("rb") as file:
        table = int.from_bytes(os.pread(file.fileno(), 8, 64))
        found = {}
        for offset in _clusters(file.fileno()):
            data = bytearray(os.pread(file.fileno(), CLUSTER, offset).ljust(CLUSTER, b"\0"))
            if offset == table:
                data[16:24] = bytes(8)  # seconds, nanoseconds
            if any(data):
                found[offset] = bytes(data)
    return found


def _clusters(fd: int) -> Iterator[int]:
    size, done = os.fstat(fd).st_size, 0
    while done < size:
        try:
            begin = os.lseek(fd, done, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        done = os.lseek(fd, begin, os.SEEK_HOLE)
        yield from range(begin // CLUSTER * CLUSTER, done, CLUSTER)
