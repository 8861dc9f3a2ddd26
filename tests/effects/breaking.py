"""Ways to break a machine by hand, each as something in the wild does it."""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
import sys
from pathlib import Path

from imgtool import api
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotRequest
from imgtool.plan.finding import Finding
from imgtool.testing import MadeDomain
from tests.crash.dying import DeadError, Doom, DyingFiles, Fate
from tests.effects.asking import qemu_img

CLUSTER = 65536
_FORMAT = (0xE2792ACA).to_bytes(4, "big")  # the header extension that records a base's format


def leak(image: Path) -> None:
    """Count a cluster at the end of the file as used, though nothing uses it."""
    with image.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        end = -(-file.tell() // CLUSTER) * CLUSTER
        file.truncate(end + CLUSTER)
        file.seek(48)
        (table,) = struct.unpack(">Q", file.read(8))
        file.seek(table)
        (block,) = struct.unpack(">Q", file.read(8))
        file.seek(block + end // CLUSTER * 2)
        file.write(b"\0\1")


def corrupt(image: Path) -> None:
    """Forget that the cluster of the L1 table is used."""
    with image.open("r+b") as file:
        file.seek(40)
        (l1,) = struct.unpack(">Q", file.read(8))
        file.seek(48)
        (table,) = struct.unpack(">Q", file.read(8))
        file.seek(table)
        (block,) = struct.unpack(">Q", file.read(8))
        file.seek(block + l1 // CLUSTER * 2)
        file.write(b"\0\0")


def set_bit(image: Path, bit: int) -> None:
    """An incompatible feature: 1 is dirty, 2 is corrupt."""
    with image.open("r+b") as file:
        file.seek(79)
        file.write(bytes([bit]))


def forget_format(overlay: Path) -> None:
    """What qemu-img before 6.1 did when it was given no -F."""
    data = overlay.read_bytes()
    at = data.index(_FORMAT, 0, CLUSTER)
    with overlay.open("r+b") as file:
        file.seek(at)
        file.write(b"\x12\x34\x56\x78")  # an extension that nobody knows


def tag(image: Path, name: str) -> None:
    qemu_img("snapshot", "-c", name, image)


def tags(image: Path) -> list[str]:
    """The internal snapshots of an image, oldest first."""
    lines = qemu_img("snapshot", "-l", image).splitlines()[2:]
    return [line.split()[1] for line in lines]


def date_tag(image: Path, number: int, seconds: int) -> None:
    """Let an internal snapshot (from 0; all names are equally long) be made at another time."""
    with image.open("r+b") as file:
        file.seek(64)
        (table,) = struct.unpack(">Q", file.read(8))
        file.seek(table)
        _, _, id_length, name_length, _, _, _, _, extra = struct.unpack(">QIHHIIQII", file.read(40))
        size = -(-(40 + extra + id_length + name_length) // 8) * 8
        file.seek(table + number * size + 16)
        file.write(struct.pack(">I", seconds))


def overlay(path: Path, base: Path, fmt: Format = Format.QCOW2) -> Path:
    qemu_img("create", "-q", "-f", "qcow2", "-F", fmt, "-b", base, path)
    return path


def snapshot(made: MadeDomain, name: str, *, disk_only: bool = True) -> None:
    with api.open_world(made.uri) as world:
        request = SnapshotRequest(name=name)
        api.take_snapshot(world, made.name, request, api.SnapshotOptions(disk_only=disk_only))


def record(made: MadeDomain, name: str) -> Path:
    """The file of a snapshot's metadata."""
    (found,) = made.folder.glob(f".imgtool/*/snapshots/{name}.xml")
    return found


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, text
    path.write_text(text.replace(old, new))


def die_in_a_snapshot(made: MadeDomain, name: str) -> None:
    """A process of imgtool dies when the images are staged: the journal stays."""
    doom = Doom(fate=Fate.DIE, at=20)
    opened = descriptors()
    try:
        with api.open_world(made.uri, files=DyingFiles(doom), jobs=1) as world:
            request = SnapshotRequest(name=name)
            api.take_snapshot(world, made.name, request, api.SnapshotOptions(disk_only=True))
    except DeadError:
        close_new(opened)
        return
    raise AssertionError("it did not die")


def close_new(opened: set[int]) -> None:
    """The end of a process closes its descriptors."""
    for left in descriptors() - opened:
        os.close(left)


def descriptors() -> set[int]:
    with os.scandir("/proc/self/fd") as entries:
        found = {int(entry.name) for entry in entries}
    return {number for number in found if Path(f"/proc/self/fd/{number}").exists()}


def findings(made: MadeDomain, *, quick: bool = False) -> list[Finding]:
    with api.open_world(made.uri) as world:
        (checkup,) = api.check(world, made.name, quick=quick)
    return list(checkup.findings)


def kinds(made: MadeDomain) -> list[str]:
    return [finding.kind for finding in findings(made)]


def follow(remedy: str) -> subprocess.CompletedProcess[str]:
    """Run the command that a remedy names: it must work."""
    starts = [at for at in (remedy.find("imgtool -c "), remedy.find("qemu-img ")) if at >= 0]
    assert starts, f"no command in {remedy!r}"
    words = shlex.split(remedy[min(starts) :])
    if words[0] == "imgtool":
        words = [sys.executable, "-m", *words]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or "check" in words, (words, done.stdout, done.stderr)
    return done


def repair(made: MadeDomain, **consent: bool) -> tuple[str, ...]:
    with api.open_world(made.uri) as world:
        return api.repair(world, made.name, api.RepairOptions(**consent)).mended
