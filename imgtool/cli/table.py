"""Tables as virsh draws them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from imgtool.cli.visible import visible_cell, visible_line, width


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, heading: bool = True) -> str:
    """Rows below headings and a line of dashes; without `heading` the rows alone.

    The last column is not filled up. No rows and no heading: an empty string.
    """
    lines = [[visible_cell(text) for text in row] for row in rows]
    if heading:
        lines.insert(0, list(headings))
    widths = [max(map(width, column)) for column in zip(*lines, strict=True)]
    drawn = [_line(line, widths) for line in lines]
    if heading:
        drawn.insert(1, "-" * sum(columns + 3 for columns in widths))
    return "\n".join(drawn)


def fields(facts: Iterable[tuple[str, str]]) -> str:
    """Names and values below each other, as virsh shows the facts of one thing."""
    return "\n".join(f"{name + ':':<15} {visible_line(value)}" for name, value in facts)


def _line(texts: Sequence[str], widths: Sequence[int]) -> str:
    *filled, last = zip(texts, widths, strict=True)
    cells = [f" {text}{' ' * (columns - width(text))}  " for text, columns in filled]
    return "".join([*cells, f" {last[0]}"])


def local_time(seconds: int) -> str:
    """A time since the epoch as virsh writes it, in the local time zone."""
    try:
        moment = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):  # beyond any calendar
        return f"@{seconds}"
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")
