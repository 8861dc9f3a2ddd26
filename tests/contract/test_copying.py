"""Copies of image files, on the file systems they are kept on: equal, sparse, shared, stoppable."""

from __future__ import annotations

import errno
import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import pytest

from imgtool.host.copying import STRIDE
from imgtool.host.files import Files
from tests.crash.disks import fill, small_disk
from tests.power.disk import EXT4, XFS, loop_device, make_file_system, mounted, scratch_folder

MIB = 1 << 20
SIZE = 24 * MIB + 12345  # bytes, not a multiple of anything
# Begin and length: at the start, across a stride, one byte, up to no boundary; then only a hole.
RUNS = ((0, 5000), (STRIDE - 300_000, 700_000), (9 * MIB + 7, 1), (12 * MIB, 6 * MIB))


@dataclass(frozen=True, slots=True)
class Place:
    """Where to copy from and to. `shares`: the two folders' file system has reflinks."""

    source: Path
    target: Path
    shares: bool = False


@pytest.fixture(scope="module")
def places() -> Iterator[dict[str, Place]]:
    with scratch_folder() as scratch, ExitStack() as stack:
        folders = {"tmpfs": scratch / "tmpfs"}
        folders["tmpfs"].mkdir()
        for fs in (EXT4, replace(XFS, mkfs=(*XFS.mkfs, "-m", "reflink=1"))):
            image, folder = scratch / f"{fs.name}.img", scratch / fs.name
            make_file_system(fs, image)
            folder.mkdir()
            stack.enter_context(mounted(fs, image, folder))
            folders[fs.name] = folder
        yield {
            **{name: Place(folder, folder, name == "xfs") for name, folder in folders.items()},
            "ext4 to xfs": Place(folders["ext4"], folders["xfs"]),
            "xfs to tmpfs": Place(folders["xfs"], folders["tmpfs"]),
        }


@pytest.fixture(params=["tmpfs", "ext4", "xfs", "ext4 to xfs", "xfs to tmpfs"])
def place(request: pytest.FixtureRequest, places: dict[str, Place]) -> Iterator[Place]:
    place = places[request.param]
    yield place
    for folder in {place.source, place.target}:
        for path in folder.iterdir():
            if path.is_file():
                path.unlink()


@dataclass
class Watcher:
    """Is told of progress, and stops it once `stop_at` bytes are done."""

    stop_at: int = 1 << 60
    told: list[int] = field(default_factory=list)

    def watch(self, done: int) -> None:
        self.told.append(done)

    def check(self) -> None:
        if self.told and self.told[-1] >= self.stop_at:
            raise KeyboardInterrupt


def make_source(folder: Path) -> Path:
    path = folder / "source, with: odd\nname"
    chance = random.Random(4)
    with path.open("xb") as file:
        file.truncate(SIZE)
        for begin, length in RUNS:
            os.pwrite(file.fileno(), chance.randbytes(length), begin)
        os.fsync(file.fileno())
    return path


def make_target(folder: Path, content: bytes = b"") -> Path:
    path = folder / "-copy"
    path.write_bytes(content)
    return path


def copy(
    source: Path,
    target: Path,
    watcher: Watcher | None = None,
    done: int = 0,
    compare: bool = False,
) -> bool:
    watcher = watcher or Watcher()
    return Files().copy(
        source, target, watch=watcher.watch, check=watcher.check, done=done, compare=compare
    )


def allocation(path: Path) -> int:
    Files().sync_file(path)
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("compare", [False, True])
def test_a_copy_is_equal_and_sparse(compare: bool, place: Place) -> None:
    source, target = make_source(place.source), make_target(place.target)
    watcher = Watcher()
    assert copy(source, target, watcher, compare=compare) is place.shares
    assert target.read_bytes() == source.read_bytes()
    assert allocation(target) <= allocation(source) + 4096 * len(RUNS)
    assert watcher.told == sorted(watcher.told)
    assert watcher.told[-1] == SIZE


def test_a_reflink_takes_no_space_and_is_its_own_afterwards(places: dict[str, Place]) -> None:
    folder = places["xfs"].source
    source, target = make_source(folder), make_target(folder, b"long gone" * MIB)
    before = source.read_bytes()
    assert copy(source, target)
    extents = subprocess.run(["filefrag", "-v", target], check=True, capture_output=True, text=True)
    assert extents.stdout.count("shared") >= len(RUNS) - 1
    with target.open("r+b") as file:
        file.write(b"x")
    assert (source.read_bytes(), target.stat().st_size) == (before, SIZE)
    source.unlink()
    target.unlink()


def test_a_stop_comes_after_few_bytes_and_the_rest_is_copied_later(place: Place) -> None:
    source, target = make_source(place.source), make_target(place.target)
    watcher = Watcher(stop_at=STRIDE + 1)
    if place.shares:
        assert copy(source, target, watcher)  # done before anybody could stop it
        return
    with pytest.raises(KeyboardInterrupt):
        copy(source, target, watcher)
    done = watcher.told[-1]
    assert STRIDE < done < SIZE
    assert target.read_bytes()[:done] == source.read_bytes()[:done]
    assert not copy(source, target, done=done)
    assert target.read_bytes() == source.read_bytes()


def test_it_looks_at_whether_to_stop_before_each_stride(places: dict[str, Place]) -> None:
    """No data between two looks are more than a stride, wherever they lie."""
    folder = places["ext4"].source
    source, target = make_source(folder), make_target(folder)
    seen = []

    def check() -> None:
        seen.append(allocation(target))

    Files().copy(source, target, watch=lambda _done: None, check=check)
    assert len(seen) > 5
    for earlier, later in pairwise(seen):
        assert later - earlier <= STRIDE + 16384
    source.unlink()
    target.unlink()


def test_what_is_done_stays_and_what_is_beyond_goes(places: dict[str, Place]) -> None:
    folder = places["ext4"].source
    done = 10 * MIB + 17
    source, target = make_source(folder), make_target(folder, b"\xa5" * (SIZE + MIB))
    assert not copy(source, target, done=done)
    assert target.read_bytes() == b"\xa5" * done + source.read_bytes()[done:]
    source.unlink()
    target.unlink()


def test_more_is_said_to_be_done_than_there_is(places: dict[str, Place]) -> None:
    folder = places["ext4"].source
    source, target = make_source(folder), make_target(folder)
    assert not copy(source, target, done=SIZE + MIB)
    assert target.read_bytes() == source.read_bytes()
    source.unlink()
    target.unlink()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_there_is_no_space(kind: str, tmp_path: Path) -> None:
    with small_disk(kind, tmp_path) as folder:
        source, target = make_source(tmp_path), make_target(folder)
        fill(folder, leave=3 * MIB)
        with pytest.raises(OSError, match="No space left") as caught:
            copy(source, target)
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.filename == str(target)


def test_a_block_device_becomes_a_sparse_file(tmp_path: Path) -> None:
    image = make_source(tmp_path)
    os.truncate(image, SIZE // 4096 * 4096)
    target = make_target(tmp_path)
    with loop_device(image) as device:
        assert not copy(device, target, compare=True)
    assert target.read_bytes() == image.read_bytes()
    assert allocation(target) < SIZE // 2


def test_a_source_that_becomes_shorter(places: dict[str, Place]) -> None:
    folder = places["tmpfs"].source
    source, target = make_source(folder), make_target(folder)
    with pytest.raises(OSError, match="shorter") as caught:
        Files().copy(
            source, target, watch=lambda _done: os.truncate(source, MIB), check=lambda: None
        )
    assert caught.value.filename == str(source)


@pytest.mark.parametrize("which", ["source", "target"])
def test_a_link_is_not_followed(which: str, tmp_path: Path) -> None:
    paths = {"source": make_source(tmp_path), "target": make_target(tmp_path)}
    link = tmp_path / "link"
    link.symlink_to(paths[which])
    paths[which] = link
    with pytest.raises(OSError, match="symbolic links") as caught:
        copy(paths["source"], paths["target"])
    assert caught.value.filename == str(link)
    assert make_target(tmp_path).read_bytes() == b""
