"""Whether a copy would be a reflink is found out without leaving anything."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.host.copying import copy_image
from imgtool.host.sharing import can_share


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small xfs, where files can share blocks."""
    place = tmp_path_factory.mktemp("sharing")
    image, folder = place / "disk.img", place / "disk"
    with image.open("wb") as file:
        file.truncate(320 << 20)
    folder.mkdir()
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", [0, 1, 4096, 65536, 65537, 1 << 20, (1 << 20) + 7])
def test_it_is_right(disk: Path, size: int) -> None:
    source, folder = disk / f"source-{size}", disk / f"new-{size}"
    source.write_bytes(b"x" * size)
    folder.mkdir()
    assert can_share(source, folder)
    assert list(folder.iterdir()) == []
    copy = folder / "copy"
    copy.touch()
    assert copy_image(source, copy, watch=lambda _done: None, check=lambda: None)


def test_where_it_cannot_be(disk: Path, tmp_path: Path) -> None:
    source = disk / "source"
    source.write_bytes(b"x" * 8192)
    for folder in (Path("/dev/shm"), tmp_path, tmp_path / "none"):
        assert not can_share(source, folder)
    assert not can_share(disk / "gone", disk)
