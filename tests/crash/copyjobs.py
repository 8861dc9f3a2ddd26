"""Copy jobs to be disturbed: a chain and a raw disk, copied together, again and again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, capture, guest_bytes_digest, make_domain, make_image
from imgtool.testing.images import write_pattern

from .jobs import Sight, sight
from .scenario import Scenario, digest

SIZE = MIB
Act = Callable[[World], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Copying(Scenario):
    """One command about a copy job, and what the folder is without any job."""

    act: Act
    plain: str  # digest of the folder before there was any job
    moved: Sight  # after a pivot
    guests: dict[str, str]  # what each copy must show, by its name

    @property
    def arguments(self) -> list[str]:
        """`copy` for the command line."""
        words = ["-c", f"dir:{self.folder}", "--jobs", "1", "blockcopy", "vm", "--pivot"]
        for target, letter in (("vda", "a"), ("vdc", "c")):
            words += ["--disk", f"{target},dest={self.folder}/{letter}-copy"]
        return words

    def fresh(self) -> None:
        """As before the command; a job knows its files by their inodes, so it is made anew."""
        super(Copying, self).fresh()
        if self.kind in ("pivot", "abort", "anew"):
            with self.world() as world:
                block_copy(world, kind=self.kind)
        if self.kind == "anew":  # somebody may have written to it: nobody can tell
            os.utime(self.folder / "a-top", (0, 0))

    def take(self, world: World) -> None:
        self.act(world)

    def ending(self) -> api.Ending | None:
        """What `blockjob --info` says; None: there is no job."""
        with self.world() as world:
            result = api.block_job(world, "vm", "vda")
        return None if result.job is None else result.ending

    def is_plain(self) -> bool:
        """To the last byte as if there had never been a job."""
        return digest(self.folder) == self.plain

    def has_moved(self) -> bool:
        return sight(self.state()) == self.moved

    def require_copies(self) -> None:
        """Both copies are there and whole, and the domain is on its sources."""
        for name, guest in self.guests.items():
            fmt = Format.RAW if name == "c-copy" else Format.QCOW2
            assert guest_bytes_digest(self.folder / name, fmt) == guest, name
        left = {path.name for path in self.folder.iterdir()} - set(self.guests)
        assert not any(name.startswith(".imgtool") for name in left), left
        head = (self.folder / "vm.xml").read_bytes()
        assert head == (self.template / "vm.xml").read_bytes()

    def abort(self) -> None:
        with self.world() as world:
            api.block_job_abort(world, "vm", "vda")

    def again(self) -> None:
        """The same words once more, and on to the pivot."""
        with self.world() as world:
            block_copy(world, kind=self.kind, pivot=True)


def make_copying(kind: str, parent: Path) -> Copying:
    """Make the domain below `parent`, and find out what an undisturbed run makes of it."""
    folder, template = parent / "store", parent / "template"
    folder.mkdir()
    _make_domain(folder)
    if kind == "reuse":
        base = folder / "a-base"
        make_image(folder / "a-copy", size=SIZE, backing=base, backing_format=Format.QCOW2)
        make_image(folder / "c-copy", Format.RAW, SIZE)
    shutil.copytree(folder, template, symlinks=True)
    shutil.rmtree(folder)
    shutil.copytree(template, folder, symlinks=True)  # copies are less sparse, and a plan counts
    before, plain = capture(f"dir:{folder}", "vm", [folder]), digest(folder)
    guests = {
        "a-copy": guest_bytes_digest(folder / "a-top", Format.QCOW2),
        "c-copy": guest_bytes_digest(folder / "c-raw", Format.RAW),
    }
    with api.open_world(f"dir:{folder}") as world:
        block_copy(world, kind=kind, pivot=True)
    new = capture(f"dir:{folder}", "vm", [folder])
    copying = Copying(
        kind=kind,
        folder=folder,
        template=template,
        before=before,
        new=new,
        act=ACTS[kind],
        plain=plain,
        moved=sight(new),
        guests=guests,
    )
    copying.fresh()
    return copying


def _make_domain(folder: Path) -> None:
    """vda: base <- top; vdc: raw."""
    base = make_image(folder / "a-base", size=SIZE)
    top = make_image(folder / "a-top", size=SIZE, backing=base, backing_format=Format.QCOW2)
    raw = make_image(folder / "c-raw", Format.RAW, SIZE)
    disks = []
    for number, path in enumerate((base, top, raw), start=1):
        fmt = Format.RAW if path == raw else Format.QCOW2
        write_pattern(path, fmt, number * 64 * KIB, 128 * KIB, number)
        if path != base:
            target = "vda" if path == top else "vdc"
            disks.append(Disk(target=target, source=path, format=fmt, format_name=fmt))
    make_domain(folder, "vm", disks)


def block_copy(world: World, *, kind: str, pivot: bool = False) -> object:
    """Copy both disks."""
    folder = Path(world.store.uri.removeprefix("dir:"))
    targets = [
        api.CopyTarget(disk=target, dest=str(folder / f"{letter}-copy"))
        for target, letter in (("vda", "a"), ("vdc", "c"))
    ]
    reuse = kind == "reuse"
    options = api.CopyOptions(pivot=pivot, shallow=reuse, reuse_external=reuse)
    return api.block_copy(world, "vm", targets, options)


def _whole(kind: str) -> Act:
    return lambda world: block_copy(world, kind=kind, pivot=True)


ACTS: dict[str, Act] = {
    "copy": _whole("copy"),
    "reuse": _whole("reuse"),
    "anew": _whole("anew"),
    "pivot": lambda world: api.block_job_pivot(world, "vm", "vda"),
    "abort": lambda world: api.block_job_abort(world, "vm", "vda"),
}
