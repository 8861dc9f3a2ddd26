"""Text as XML: what XML holds, it holds faithfully; what it cannot hold is refused by name."""

from __future__ import annotations

import re

from imgtool.model.errors import XmlError

_NEVER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_BLANKS = re.compile("[\t\n\r]")
_MARKUP = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "'": "&apos;", '"': "&quot;"}
_TEXT = str.maketrans(_MARKUP | {"\r": "&#13;"})
_ATTRIBUTE = str.maketrans(_MARKUP | {"\t": "&#9;", "\n": "&#10;", "\r": "&#13;"})


def text(value: str, where: str) -> str:
    """Between tags. Raises XmlError: characters that no XML can hold."""
    return _checked(_NEVER, value, where).translate(_TEXT)


def attribute(value: str, where: str) -> str:
    """Between quotes of either kind. Raises XmlError: characters that no XML can hold."""
    return _checked(_NEVER, value, where).translate(_ATTRIBUTE)


def path(value: str, where: str) -> str:
    """Between quotes, without tab or line break either.

    libvirt prints these as they are, and whoever reads that sees a blank: another path.
    Raises XmlError.
    """
    return attribute(_checked(_BLANKS, value, where), where)


def _checked(refused: re.Pattern[str], value: str, where: str) -> str:
    if refused.search(value):
        raise XmlError(
            f"{where}: {value!r} cannot be written as XML",
            remedy="rename it: UTF-8, no control characters",
        )
    return value
