"""Moves of a whole tree of images to another folder, to be disturbed again and again."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, capture, make_domain, make_image, write_pattern

from .branches import take, write
from .scenario import Scenario

HOWS = {
    "keep-source": api.MigrateOptions(to=Path()),
    "flatten": api.MigrateOptions(to=Path(), flatten=True, delete_source=True),
    "delete-source": api.MigrateOptions(to=Path(), delete_source=True),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Moving(Scenario):
    """Two disks over one base, in two folders, with a snapshot each way."""

    to: Path

    def take(self, world: World) -> None:
        api.migrate(world, "vm", replace(HOWS[self.kind], to=self.to))


def make_moving(how: str, parent: Path) -> Moving:
    """Make the domain below `parent`, and find out what an undisturbed run makes of it."""
    folder, template = parent / "store", parent / "template"
    folder.mkdir()
    grow(folder, how)
    shutil.copytree(folder, template, symlinks=True)
    shutil.rmtree(folder)
    shutil.copytree(template, folder, symlinks=True)  # copies are less sparse, and a plan counts
    before = capture(f"dir:{folder}", "vm", [folder])
    moving = Moving(
        kind=how, folder=folder, template=template, before=before, new=before, to=folder / "new"
    )
    with api.open_world(f"dir:{folder}") as world:
        moving.take(world)
    moving = replace(moving, new=moving.state())
    moving.fresh()
    return moving


def grow(folder: Path, how: str) -> None:
    """Images with data of their own in two folders, and their domain; a third folder is empty."""
    for name in ("golden", "old", "new"):
        (folder / name).mkdir()
    base = make_image(folder / "golden" / "base", Format.RAW, MIB)
    write_pattern(base, Format.RAW, 0, 4 * KIB, 1)
    disks = []
    for target in ("vda", "vdb"):
        top = folder / "old" / f"{target}.qcow2"
        backing = os.path.relpath(base, top.parent) if target == "vda" else base
        make_image(top, Format.QCOW2, MIB, backing=backing, backing_format=Format.RAW)
        disks.append(Disk(target=target, source=top, format=Format.QCOW2, format_name=Format.QCOW2))
    make_domain(folder, "vm", disks)
    if how == "flatten":
        return
    with api.open_world(f"dir:{folder}") as world:
        write(world, 0xA0)
        take(world, "outside", disk_only=True)
        write(world, 0xA1)
        take(world, "inside", disk_only=False)
        write(world, 0xA2)
