"""Block jobs to be disturbed: two chains and a raw disk, again and again.

A commit or a pull that is rolled back leaves data where they were moved to: the base of an old
chain may differ. What counts is what the guest sees, which layers it sees it through, and that
there is nothing else.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing import (
    KIB,
    MIB,
    Outcome,
    State,
    capture,
    make_domain,
    make_image,
    write_pattern,
)

from .scenario import Scenario, digest

SIZE = 2 * MIB
Act = Callable[[World], object]
Sight = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Scenario):
    """One block job."""

    act: Act

    @property
    def command(self) -> list[str]:
        """Of 'commit-all'."""
        return ["blockcommit", "vm", "--all-disks", "--active", "--pivot", "--delete"]

    def take(self, world: World) -> None:
        self.act(world)

    def outcome(self) -> Outcome:
        """Old or new in what a guest, QEMU and `ls` can see, or AssertionError."""
        if digest(self.folder) == digest(self.template):
            return Outcome.OLD
        now = sight(self.state())
        if now == sight(self.before):
            return Outcome.OLD
        assert now == sight(self.new), f"neither {sight(self.before)} nor the new, but {now}"
        return Outcome.NEW


def sight(state: State) -> Sight:
    """What is compared."""
    disks = []
    for disk in state.disks:
        assert all(layer.error == layer.check == "" for layer in disk.layers), disk
        assert not any(layer.corrupt or layer.dirty for layer in disk.layers), disk
        layers = tuple(
            (layer.path, layer.format, layer.virtual_size, layer.backing, layer.backing_format)
            for layer in disk.layers
        )
        disks.append((disk.target, disk.source, disk.format, layers, disk.top.guest))
    names = tuple(entry.path for entry in state.entries)
    return (*disks, names, state.xml)


def make_job(name: str, parent: Path) -> Job:
    """Make the domain below `parent`, and find out what an undisturbed run makes of it."""
    folder, template = parent / "store", parent / "template"
    folder.mkdir()
    make_chains(folder)
    shutil.copytree(folder, template, symlinks=True)
    shutil.rmtree(folder)
    shutil.copytree(template, folder, symlinks=True)  # copies are less sparse, and a plan counts
    before = capture(f"dir:{folder}", "vm", [folder])
    with api.open_world(f"dir:{folder}") as world:
        JOBS[name](world)
    new = capture(f"dir:{folder}", "vm", [folder])
    job = Job(kind=name, folder=folder, template=template, before=before, new=new, act=JOBS[name])
    job.fresh()
    return job


def make_chains(folder: Path) -> None:
    """vda: base <- mid <- top; vdb: raw base <- top; vdc: raw. All with data of their own."""
    paths = [
        _layer(folder / "a-base", Format.QCOW2, 1),
        _layer(folder / "a-mid", Format.QCOW2, 2, "a-base", Format.QCOW2),
        _layer(folder / "a-top", Format.QCOW2, 3, "a-mid", Format.QCOW2),
        _layer(folder / "b-base", Format.RAW, 4),
        _layer(folder / "b-top", Format.QCOW2, 5, "b-base", Format.RAW),
        _layer(folder / "c-raw", Format.RAW, 6),
    ]
    tops = {"vda": paths[2], "vdb": paths[4], "vdc": paths[5]}
    disks = []
    for target, path in tops.items():
        fmt = Format.RAW if target == "vdc" else Format.QCOW2
        disks.append(Disk(target=target, source=path, format=fmt, format_name=fmt))
    make_domain(folder, "vm", disks)


def _layer(
    path: Path, fmt: Format, byte: int, base: str = "", base_format: Format | None = None
) -> Path:
    backing = path.parent / base if base else None
    make_image(path, fmt, SIZE, backing=backing, backing_format=base_format)
    write_pattern(path, fmt, byte * 64 * KIB, 256 * KIB, byte)
    return path


def _commit_all(world: World) -> object:
    return api.block_commit(world, "vm", [], api.CommitOptions(active=True, delete=True))


def _commit_inner(world: World) -> object:
    mid = api.chains(world, "vm", ["vda"])["vda"].images[1]  # or the base, once it is done
    options = api.CommitOptions(top=str(mid.path), delete=True)
    return api.block_commit(world, "vm", ["vda"], options)


def _keep(world: World) -> object:
    options = api.CommitOptions(active=True, keep_overlay=True)
    return api.block_commit(world, "vm", ["vda"], options)


def _pull(world: World) -> object:
    base = api.chains(world, "vm", ["vda"])["vda"].base
    return api.block_pull(world, "vm", ["vda"], api.PullOptions(base=str(base.path)))


def _flatten(world: World) -> object:
    return api.block_pull(world, "vm", [], api.PullOptions())


def _resize(target: str, size: int) -> Act:
    def act(world: World) -> object:
        return api.resize(world, "vm", target, api.ResizeOptions(size=size, force=True))

    return act


def _rebase(world: World) -> object:
    return api.rebase(world, "vm", "vda", api.RebaseOptions(relative=True))


JOBS: dict[str, Act] = {
    "commit-all": _commit_all,
    "commit-inner": _commit_inner,
    "commit-keep-overlay": _keep,
    "pull": _pull,
    "flatten-all": _flatten,
    "grow-qcow2": _resize("vda", 2 * SIZE),
    "shrink-qcow2": _resize("vda", SIZE // 2),
    "grow-raw": _resize("vdc", 2 * SIZE),
    "shrink-raw": _resize("vdc", SIZE // 2),
    "rebase": _rebase,
}
