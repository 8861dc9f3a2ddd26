"""A chain-copy to be disturbed: two disks that share a base, again and again."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool import api
from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, make_domain, make_image, write_pattern

SIZE = 9 * MIB  # of the raw base: several strides, a checkpoint after each


@dataclass(frozen=True, slots=True)
class ChainCopy:
    """vda: raw base <- mid <- top; vdb: the same base <- other. Copied to `new`."""

    folder: Path  # holds `store`, with the images, and `new`

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def new(self) -> Path:
        return self.folder / "new"

    def take(self, world: World) -> None:
        options = api.ChainCopyOptions(to=self.new, checkpoint=2 * MIB)
        api.copy_chain(world, "vm", [], options)

    @contextmanager
    def world(self, files: Files | None = None, qemu: QemuImg | None = None) -> Iterator[World]:
        with api.open_world(f"dir:{self.store}", files=files, jobs=1) as world:
            yield replace(world, qemu=qemu) if qemu else world

    def fresh(self) -> None:
        shutil.rmtree(self.new)
        shutil.rmtree(self.store / ".imgtool", ignore_errors=True)
        self.new.mkdir()

    def names(self) -> set[str]:
        return {path.name for path in self.new.iterdir()}

    def assert_complete(self, struck: str) -> None:
        """Both layers are there, equal, and nothing else is left."""
        assert self.names() == {"base.raw", "mid"}, struck
        for name in ("base.raw", "mid"):
            assert (self.new / name).read_bytes() == (self.store / name).read_bytes(), struck
        assert not (self.store / ".imgtool").exists(), struck

    def assert_never_half(self, struck: str) -> None:
        """Whoever looks at a final name sees all of it."""
        for name in {"base.raw", "mid"} & self.names():
            assert (self.new / name).read_bytes() == (self.store / name).read_bytes(), struck


def make_chain_copy(folder: Path) -> ChainCopy:
    made = ChainCopy(folder)
    made.store.mkdir()
    made.new.mkdir()
    base = made.store / "base.raw"
    make_image(base, Format.RAW, SIZE)
    for at in range(0, SIZE, 3 * MIB):
        write_pattern(base, Format.RAW, at, 2 * MIB, 1 + at // MIB)
    for name, below, fmt in (
        ("mid", "base.raw", Format.RAW),
        ("top", "mid", Format.QCOW2),
        ("other", "base.raw", Format.RAW),
    ):
        path = make_image(made.store / name, size=SIZE, backing=below, backing_format=fmt)
        write_pattern(path, Format.QCOW2, 0, 192 * KIB, len(name))
    disks = (
        Disk(target=target, source=made.store / name, format=Format.QCOW2, format_name="qcow2")
        for target, name in (("vda", "top"), ("vdb", "other"))
    )
    make_domain(made.store, "vm", disks)
    return made
