"""The pure half of the harness: logs that are made up, and the cuts chosen from them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from .cuts import Cut, Piece, flush_cuts, subset_cuts
from .log import (
    ENTRY,
    MAGIC,
    SUPERBLOCK,
    VERSION,
    Entry,
    Flag,
    LogError,
    count_entries,
    read_data,
    read_log,
)

SECTOR = 512


def entry(flags: int, sector: int = 0, sectors: int = 0, data: bytes = b"") -> bytes:
    return ENTRY.pack(sector, sectors, flags, 0).ljust(SECTOR, b"\0") + data


def log_of(*entries: bytes) -> bytes:
    start = SUPERBLOCK.pack(MAGIC, VERSION, len(entries), SECTOR)
    return start.ljust(SECTOR, b"\0") + b"".join(entries)


LOG = log_of(
    entry(0, 8, 2, b"a" * 1024),
    entry(Flag.FLUSH),
    entry(Flag.DISCARD, 16, 4),
    entry(Flag.MARK),
    entry(Flag.FUA, 24, 1, b"b" * 512),
)


def test_reads_every_kind_of_entry(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_bytes(LOG)
    entries = read_log(log, count_entries(log))
    assert [(e.flags, e.offset, e.length) for e in entries] == [
        (Flag(0), 4096, 1024),
        (Flag.FLUSH, 0, 0),
        (Flag.DISCARD, 8192, 2048),
        (Flag.MARK, 0, 0),
        (Flag.FUA, 12288, 512),
    ]
    with log.open("rb") as file:
        assert read_data(file.fileno(), entries[0], 512, 512) == b"a" * 512
        assert read_data(file.fileno(), entries[2], 0, 2048) == bytes(2048)
        assert read_data(file.fileno(), entries[4], 0, 512) == b"b" * 512


def test_a_log_may_still_be_empty(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    assert count_entries(log) == 0


@pytest.mark.parametrize(
    "blob",
    [LOG[:20], b"x" + LOG[1:], LOG[:2000], log_of(entry(16))],
    ids=["short", "magic", "cut", "flags"],
)
def test_refuses_what_is_no_log(tmp_path: Path, blob: bytes) -> None:
    log = tmp_path / "log"
    log.write_bytes(blob)
    with pytest.raises(LogError):
        read_log(log, 1 if len(blob) == 2 * SECTOR else 5)


requests = st.builds(
    Entry,
    flags=st.sampled_from([Flag(0), Flag(0), Flag.FUA, Flag.DISCARD]),
    offset=st.integers(0, 64).map(lambda n: n * SECTOR),
    length=st.integers(1, 20).map(lambda n: n * SECTOR),
    data_at=st.just(0),
)
flushes = st.just(Entry(Flag.FLUSH, 0, 0, 0))
logs = st.lists(requests | flushes, max_size=30)


@given(entries=logs, data=st.data())
def test_a_cut_keeps_what_was_flushed_and_nothing_from_later(
    entries: list[Entry], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(entries)), label="start")
    done = data.draw(st.integers(start, len(entries)), label="done")
    dice = random.Random(data.draw(st.integers(0, 99), label="seed"))
    for cut in (
        *flush_cuts(entries, start, done),
        *subset_cuts(entries, start, 10, 4096, dice),
    ):
        flushed = [i for i in range(start, cut.at) if entries[i].is_flush]
        assert cut.settled == max(flushed, default=start)
        assert start <= cut.at <= len(entries)
        assert all(_lies_in_its_write(piece, entries, cut) for piece in cut.kept)
        forced = {i for i in range(cut.settled, cut.at) if Flag.FUA in entries[i].flags}
        assert forced <= {piece.entry for piece in cut.kept}


@given(entries=logs, seed=st.integers(0, 99))
def test_random_cuts_differ_and_a_seed_repeats_them(entries: list[Entry], seed: int) -> None:
    cuts = subset_cuts(entries, 0, 10, SECTOR, random.Random(seed))
    assert cuts == subset_cuts(entries, 0, 10, SECTOR, random.Random(seed))
    assert len({(cut.settled, cut.kept) for cut in cuts}) == len(cuts) <= 10
    assert bool(cuts) == any(entry.is_write for entry in entries)


def test_a_torn_write_ends_on_the_sectors_of_the_disk() -> None:
    write = Entry(Flag(0), 3 * SECTOR, 16 * SECTOR, 0)  # bytes 1536 to 9728
    cuts = subset_cuts([write], 0, 30, 4096, random.Random(1))
    parts = {(piece.start, piece.length) for cut in cuts if cut.torn for piece in cut.kept}
    assert parts == {(0, 2560), (2560, 4096), (6656, 1536)}


def _lies_in_its_write(piece: Piece, entries: list[Entry], cut: Cut) -> bool:
    whole = entries[piece.entry].length
    return (
        cut.settled <= piece.entry < cut.at
        and 0 <= piece.start < piece.start + piece.length <= whole
    )
