"""Every effect of chain-copy fails or is the last one; the same call completes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from imgtool import api
from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
from imgtool.model.domain import Disk
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, make_domain, make_image, write_pattern

from .conftest import CrashPoints
from .disks import small_disk
from .dying import Doom, DyingFiles, DyingQemu, Fate
from .matrix import run_into
from .scenario import digest

SOME = 8  # effects of each fate in a quick run
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


@contextmanager
def copying_on(kind: str, place: Path) -> Iterator[ChainCopy]:
    """Within a file system without reflinks, or on xfs, which has them."""
    if kind == "xfs":
        with small_disk("xfs", place) as folder:
            yield make_chain_copy(folder)
    else:
        yield make_chain_copy(place)


FATES = [Fate.DIE, Fate.FAIL_BEFORE, Fate.FAIL_AFTER]


WHERE = pytest.mark.parametrize(
    ("kind", "fate"),
    [("folder", fate) for fate in FATES] + [("xfs", Fate.DIE)],
    ids=["die", "fail_before", "fail_after", "xfs-die"],
)


@WHERE
def test_some_effects(kind: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    with copying_on(kind, place) as copying:
        total = _calls(copying)
        points = range(1 + FATES.index(fate), total + 1, max(1, total // SOME))
        _strike(copying, fate, points)
    crash_points(f"chain-copy on {kind}, {fate.name.lower()}", len(points))


@WHERE
@pytest.mark.long
def test_every_effect(kind: str, fate: Fate, place: Path, crash_points: CrashPoints) -> None:
    with copying_on(kind, place) as copying:
        total = _calls(copying)
        _strike(copying, fate, range(1, total + 1))
    crash_points(f"chain-copy on {kind}, every effect, {fate.name.lower()}", total)


@pytest.mark.long
def test_dying_again_and_again(place: Path, crash_points: CrashPoints) -> None:
    """Each process gets a little further than the one before, and the last one is done."""
    copying = make_chain_copy(place)
    for at in range(4, 2 * _calls(copying)):
        if at == 4:
            copying.fresh()
        ended = run_into(copying, Doom(fate=Fate.DIE, at=at))
        copying.assert_never_half(f"process {at}")
        if ended is None:
            break
    copying.assert_complete("in the end")
    crash_points("chain-copy, again and again", at)


def test_what_a_crash_leaves_can_be_swept(place: Path, crash_points: CrashPoints) -> None:
    copying = make_chain_copy(place)
    total = _calls(copying)
    points = range(2, total + 1, max(1, total // SOME))
    for at in points:
        copying.fresh()
        doom = Doom(fate=Fate.DIE, at=at)
        run_into(copying, doom)
        with copying.world() as world:
            api.sweep(world, "vm")
        struck = f"call {at}: {doom.trace[at - 1]}"
        assert copying.names() <= {"base.raw", "mid"}, struck
        assert not (copying.store / ".imgtool").exists(), struck
        copying.assert_never_half(struck)
    crash_points("chain-copy, swept", len(points))


def _calls(copying: ChainCopy) -> int:
    doom = Doom()
    with copying.world(DyingFiles(doom), DyingQemu(doom)) as world:
        copying.take(world)
    copying.assert_complete("undisturbed")
    return doom.calls


def _strike(copying: ChainCopy, fate: Fate, points: range) -> None:
    copying.fresh()
    before = digest(copying.store)
    for at in points:
        copying.fresh()
        doom = Doom(fate=fate, at=at)
        ended = run_into(copying, doom)
        struck = f"call {at}: {doom.trace[at - 1]}; {ended!r}"
        assert not isinstance(ended, OSError), struck
        copying.assert_never_half(struck)
        if ended is None:
            # What failed was tidying up, and all is there.
            assert copying.names() == {"base.raw", "mid"}, struck
        elif isinstance(ended, ImgtoolError):
            assert ended.exit_code == 1, struck
        with copying.world() as world:
            copying.take(world)
        copying.assert_complete(struck)
        assert digest(copying.store) == before, struck
