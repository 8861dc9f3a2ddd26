"""Copies of whole images to another folder, against those who copy files all day.

Peers get what they need to have their copies on the disk, too: a `sync -f` at the end.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.cli.main import COMMANDS
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing.domains import MadeDomain, make_domain
from imgtool.testing.images import make_image
from tests.bench.machines import FOLDER, Hosts, imgtool
from tests.bench.measure import Contender, Contest, Stopwatch, contest
from tests.power.disk import EXT4, XFS, FileSystem, make_file_system, mounted

MIB = 1 << 20
DISKS = 4
TRUSTING, LOOKING = "imgtool, --trust", "imgtool, --dry-run"
SPARSE, REFLINK, CONVERT = "cp --sparse=always", "cp --reflink=auto", "qemu-img convert"
PEERS = (SPARSE, REFLINK, CONVERT)
KINDS = {
    "ext4": replace(EXT4, size=12 << 30),
    "xfs": replace(XFS, size=12 << 30, mkfs=(*XFS.mkfs, "-m", "reflink=1")),
}
COMMAND = {"chain-copy": "chain-copy", "migrate": "migrate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Four disks, each a raw base below an overlay, and an empty folder on the same disk."""

    made: MadeDomain
    xml: str
    bases: tuple[Path, ...]
    new: Path

    def reset(self) -> None:
        shutil.rmtree(self.new)
        self.new.mkdir()
        shutil.rmtree(self.made.folder / ".imgtool", ignore_errors=True)
        self.made.xml.write_text(self.xml)

    def imgtool(self, name: str, *words: str) -> Contender:
        argv = [*imgtool(), "-q", "-c", self.made.uri, words[0], "vm", "--to", str(self.new)]
        return Contender(name=name, argv=[*argv, *words[1:]], reset=self.reset)

    def peer(self, name: str, command: str, images: Sequence[Path]) -> Contender:
        """A command with {} for an image and its copy, run for one after the other."""
        lines = [
            f"{command} {shlex.quote(str(image))} {shlex.quote(str(self.new / image.name))}"
            for image in images
        ]
        script = "; ".join([*lines, f"sync -f {shlex.quote(str(self.new))}"])
        return Contender(name=name, argv=["sh", "-ec", script], reset=self.reset)


def names() -> Iterator[tuple[str, str]]:
    """Contest and file system of each."""
    for command in COMMAND:
        if command in COMMANDS:
            for kind in KINDS:
                yield f"{command}-{kind}", kind


def copying(name: str, kind: str, size: int) -> Callable[[Hosts, Stopwatch, int], Contest]:
    """Copy four images of `size` bytes, half of them data, within one file system."""
    command = name.removesuffix(f"-{kind}")

    def hold(hosts: Hosts, watch: Stopwatch, runs: int) -> Contest:
        with _place(hosts.folder, KINDS[kind], size) as place:
            images = place.bases
            if command == "migrate":
                images = tuple(path for path in place.bases[0].parent.iterdir() if path.is_file())
            found = [
                place.imgtool(FOLDER, command),
                *([place.imgtool(TRUSTING, command, "--trust")] if command != "migrate" else []),
                place.imgtool(LOOKING, command, "--dry-run"),
                place.peer(SPARSE, "cp --sparse=always --reflink=never", images),
                place.peer(REFLINK, "cp --reflink=auto", images),
                place.peer(CONVERT, "qemu-img convert -t writeback -f raw -O raw", images),
            ]
            return contest(name, found, watch, runs=runs, folder=place.new)

    return hold


@contextmanager
def _place(folder: Path, kind: FileSystem, size: int) -> Iterator[Place]:
    image, mountpoint = folder / "disk.img", folder / "disk"
    make_file_system(kind, image)
    mountpoint.mkdir()
    try:
        with mounted(kind, image, mountpoint):
            yield _make(mountpoint, size)
    finally:
        mountpoint.rmdir()
        image.unlink()


def _make(folder: Path, size: int) -> Place:
    old, new, store = (folder / name for name in ("old", "new", "store"))
    for each in (old, new, store):
        each.mkdir()
    disks, bases = [], []
    for number in range(DISKS):
        bases.append(_half_full(old / f"base{number}", size, number))
        top = make_image(
            old / f"top{number}", size=size, backing=f"base{number}", backing_format=Format.RAW
        )
        disks.append(
            Disk(target=f"vd{'abcd'[number]}", source=top, format=Format.QCOW2, format_name="qcow2")
        )
    made = make_domain(store, "vm", disks)
    return Place(made=made, xml=made.xml.read_text(), bases=tuple(bases), new=new)


def _half_full(path: Path, size: int, seed: int) -> Path:
    """Every second MiB is data."""
    data = bytearray(random.Random(seed).randbytes(MIB))
    with path.open("xb") as file:
        file.truncate(size)
        for at in range(0, size, 2 * MIB):
            data[:8] = at.to_bytes(8, "big")
            os.pwrite(file.fileno(), data, at)
    return path
