"""Reverts and deletions to be disturbed: the same tree of snapshots, again and again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.model.domain import SnapshotMode
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing import capture, make_three_disks
from imgtool.testing.images import KIB, write_pattern

from .scenario import Scenario

Act = Callable[[World], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Branching(Scenario):
    """A revert or a deletion in a tree of three snapshots: mixed <- flat <- last."""

    act: Act

    @property
    def command(self) -> list[str]:
        """Of a deletion."""
        return ["snapshot-delete", "vm", *self.kind.split("delete-")[1:]]

    def take(self, world: World) -> None:
        self.act(world)


def make_branching(job: str, parent: Path) -> Branching:
    """Grow the tree below `parent`, and find out what an undisturbed run makes of it."""
    folder, template = parent / "store", parent / "template"
    folder.mkdir()
    make_three_disks(folder)
    with api.open_world(f"dir:{folder}") as world:
        grow(world)
    shutil.copytree(folder, template, symlinks=True)
    shutil.rmtree(folder)
    shutil.copytree(template, folder, symlinks=True)  # copies are less sparse, and a plan counts
    with api.open_world(f"dir:{folder}") as world:
        before = capture(world.store, "vm", [folder])
        JOBS[job](world)
        new = capture(world.store, "vm", [folder])
    scenario = Branching(
        kind=job, folder=folder, template=template, before=before, new=new, act=JOBS[job]
    )
    scenario.fresh()
    return scenario


def grow(world: World) -> None:
    """Internal and external, then external twice, each followed by guest writes."""
    external = SnapshotDisk(name="vdc", mode=SnapshotMode.EXTERNAL)
    write(world, 0xA0)
    take(world, "mixed", disk_only=False, disks=(external,))
    write(world, 0xA1)
    take(world, "flat", disk_only=True)
    write(world, 0xA2)
    take(world, "last", disk_only=True)
    write(world, 0xA3)


def take(world: World, name: str, *, disk_only: bool, disks: tuple[SnapshotDisk, ...] = ()) -> None:
    """A snapshot of vm."""
    request = SnapshotRequest(name=name, disks=disks)
    api.take_snapshot(world, "vm", request, api.SnapshotOptions(disk_only=disk_only))


def write(world: World, byte: int) -> None:
    """As a guest would, on every disk."""
    for chain in api.chains(world, "vm").values():
        active = chain.active
        write_pattern(active.path, active.format, 64 * KIB, 4 * KIB, byte)


def _revert(name: str, *, force: bool = False, keep: bool = False) -> Act:
    def act(world: World) -> None:
        api.revert_to(world, "vm", name, api.RevertOptions(force=force, keep=keep))

    return act


def _delete(name: str) -> Act:
    def act(world: World) -> None:
        api.delete_snapshot(world, "vm", name, api.DeleteOptions())

    return act


JOBS: dict[str, Act] = {
    "revert-and-drop": _revert("flat", force=True),
    "revert-and-keep": _revert("mixed", keep=True),
    "delete-last": _delete("last"),  # the active overlays are merged down
    "delete-middle": _delete("flat"),  # inner overlays, in part over images with tags inside
    "delete-first": _delete("mixed"),  # tags and an overlay in one
}
