"""Two files are the same only if every byte is, holes or not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imgtool.host.comparing import first_difference
from imgtool.model.errors import Interrupted

MIB = 1 << 20


def sparse(path: Path, size: int, *pieces: tuple[int, bytes]) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
        for at, data in pieces:
            os.pwrite(file.fileno(), data, at)
    return path


def differ(one: Path, other: Path) -> int | None:
    there, back = (
        first_difference(*pair, watch=lambda _done: None, check=lambda: None)
        for pair in ((one, other), (other, one))
    )
    assert there == back
    return there


def test_what_is_equal(tmp_path: Path) -> None:
    one = sparse(tmp_path / "one", 9 * MIB, (0, b"a"), (5 * MIB, b"b" * MIB))
    other = sparse(tmp_path / "other", 9 * MIB, (0, b"a"), (5 * MIB, b"b" * MIB))
    assert differ(one, other) is None
    written = sparse(tmp_path / "zeros", 9 * MIB, (0, b"a" + bytes(MIB)), (5 * MIB, b"b" * MIB))
    assert differ(one, written) is None, "zeros are as good as a hole"
    assert differ(sparse(tmp_path / "x", 0), sparse(tmp_path / "y", 0)) is None


@pytest.mark.parametrize("at", [0, 1, 4 * MIB - 1, 4 * MIB, 7 * MIB + 12345, 9 * MIB - 1])
def test_one_byte_that_differs(tmp_path: Path, at: int) -> None:
    one = sparse(tmp_path / "one", 9 * MIB, (2 * MIB, b"b" * MIB))
    other = sparse(tmp_path / "other", 9 * MIB, (2 * MIB, b"b" * MIB), (at, b"!"))
    assert differ(one, other) == at


def test_a_file_that_goes_on(tmp_path: Path) -> None:
    one = sparse(tmp_path / "one", MIB, (0, b"abc"))
    other = sparse(tmp_path / "other", MIB + 1, (0, b"abc"))
    assert differ(one, other) == MIB


def test_it_can_be_stopped(tmp_path: Path) -> None:
    one = sparse(tmp_path / "one", 9 * MIB, (0, bytes(9 * MIB)))

    told: list[int] = []

    def stop() -> None:
        if told:
            raise Interrupted(2, "stopped")

    with pytest.raises(Interrupted):
        first_difference(one, one, watch=told.append, check=stop)
    assert told == [4 * MIB]


@pytest.mark.parametrize(
    ("end", "found"), [(4 * MIB, None), (5 * MIB, None), (5 * MIB + 1, 5 * MIB)]
)
def test_only_the_beginning(end: int, found: int | None, tmp_path: Path) -> None:
    one = sparse(tmp_path / "one", 9 * MIB, (0, b"abc"))
    other = sparse(tmp_path / "other", 6 * MIB, (0, b"abc"), (5 * MIB, b"!"))
    assert first_difference(one, other, check=lambda: None, end=end) == found
