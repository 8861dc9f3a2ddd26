"""Text that is safe to show: what would steer a terminal is spelled out, as virsh's tables do."""

from __future__ import annotations

import unicodedata

_SAFE = frozenset({"Zs", "Mn", "Mc", "Me"})  # blanks, and marks that go onto a letter


def visible(text: str) -> str:
    r"""Lines of text, with control and format characters and stray bytes as \xNN."""
    return "\n".join(map(visible_line, text.split("\n")))


def visible_line(text: str) -> str:
    r"""One line, whatever is in it: a line break is \x0a."""
    return text if text.isprintable() else "".join(map(_shown, text))


def visible_cell(text: str) -> str:
    r"""One line that can be read back: \x itself becomes \x5cx."""
    return visible_line(text.replace("\\x", "\\x5cx"))


def width(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _shown(char: str) -> str:
    if char.isprintable() or unicodedata.category(char) in _SAFE:
        return char
    data = char.encode(
        "utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass"
    )
    return "".join(f"\\x{byte:02x}" for byte in data)


def _columns(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
