"""Where the power can go, and what the disk then holds. Pure: entries in, cuts out.

    ... W W F  W  W  W | W F W        F a flush, | the cut
           settled  volatile          each of the volatile ones reached the disk or did not

A disk may keep writes in its cache until it is told to flush, and write them out in any order.
So of the writes since the last flush that completed any subset may be there, and of a write
that was under way any of its sectors.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from .log import Entry, Flag


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a write that reached the disk; `start` and `length` in bytes of its data."""

    entry: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Cut:
    """The power goes when `at` entries were issued: `settled` of them are there, and the pieces."""

    at: int
    settled: int
    kept: tuple[Piece, ...] = ()
    torn: bool = False

    def __str__(self) -> str:
        what = "sectors" if self.torn else "writes"
        where = f"cut at entry {self.at}, flushed up to {self.settled}"
        return f"{where}, {len(self.kept)} later {what} kept"


def flush_cuts(entries: Sequence[Entry], start: int, done: int) -> tuple[Cut, ...]:
    """At the start, right after each flush, the moment the work is `done`, and the very end.

    Only what was flushed is there; except at the very end, where all of it is.
    """
    flushed = [i for i in range(start, len(entries)) if entries[i].is_flush]
    points = sorted({start, done, *(i + 1 for i in flushed)})
    cuts = [_least(entries, start, at) for at in points]
    end = len(entries)
    settled = _settled(entries, start, end)
    everything = tuple(_whole(entries, i) for i in range(settled, end) if entries[i].is_write)
    return (*cuts, Cut(end, settled, everything))


def subset_cuts(
    entries: Sequence[Entry], start: int, count: int, sector: int, dice: random.Random
) -> tuple[Cut, ...]:
    """Up to `count` cuts at random moments with random subsets, no two alike.

    Each moment is right after a write, so that there is something to lose. In one of four cuts
    writes are torn, into sectors of `sector` bytes. There are fewer cuts than asked for when
    nothing new turned up for long: little was written between flushes.
    """
    moments = [i + 1 for i in range(start, len(entries)) if entries[i].is_write]
    if not moments:
        return ()
    draws = (_draw(entries, start, sector, moments, dice) for _ in range(20 * count))
    return tuple(islice(_distinct(draws), count))


def _draw(
    entries: Sequence[Entry], start: int, sector: int, moments: Sequence[int], dice: random.Random
) -> Cut:
    at = dice.choice(moments)
    settled = _settled(entries, start, at)
    torn = dice.random() < 0.25
    luck = dice.random()  # of each piece: few, half or nearly all of them arrive
    kept: list[Piece] = []
    for i in range(settled, at):
        if Flag.FUA in entries[i].flags:
            kept.append(_whole(entries, i))
        elif entries[i].is_write:
            pieces = _sectors(entries, i, sector) if torn else [_whole(entries, i)]
            kept += [piece for piece in pieces if dice.random() < luck]
    return Cut(at, settled, tuple(kept), torn)


def _least(entries: Sequence[Entry], start: int, at: int) -> Cut:
    """Only what must be there: what was flushed, and the later writes that were forced."""
    settled = _settled(entries, start, at)
    forced = (i for i in range(settled, at) if Flag.FUA in entries[i].flags)
    return Cut(at, settled, tuple(_whole(entries, i) for i in forced))


def _distinct(cuts: Iterator[Cut]) -> Iterator[Cut]:
    seen: set[tuple[int, tuple[Piece, ...]]] = set()
    for cut in cuts:
        disk = (cut.settled, cut.kept)
        if disk not in seen:
            seen.add(disk)
            yield cut


def _settled(entries: Sequence[Entry], start: int, at: int) -> int:
    """How many entries the last flush completed before `at` has made safe.

    Not the flush itself: data that comes with one is written after it.
    """
    return max((i for i in range(start, at) if entries[i].is_flush), default=start)


def _whole(entries: Sequence[Entry], i: int) -> Piece:
    return Piece(i, 0, entries[i].length)


def _sectors(entries: Sequence[Entry], i: int, sector: int) -> Iterator[Piece]:
    """The write in pieces that end on the disk's sectors."""
    entry, start = entries[i], 0
    while start < entry.length:
        room = sector - (entry.offset + start) % sector
        length = min(room, entry.length - start)
        yield Piece(i, start, length)
        start += length
