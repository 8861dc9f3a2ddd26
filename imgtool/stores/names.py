"""Which names of domains and snapshots can be names of files."""

from __future__ import annotations

import os
import re

from imgtool.model.errors import BadRequestError

SUFFIX = ".xml"
NAME_MAX = 255  # bytes of one file name
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def require_file_name(name: str, kind: str) -> None:
    """Raises BadRequestError for a name that leads elsewhere, hides, or does not fit."""
    try:
        size = len(os.fsencode(name + SUFFIX))
    except UnicodeEncodeError:
        size = 0
    if not name or "/" in name or name[0] == "." or _CONTROL.search(name) or not size:
        raise BadRequestError(
            f"{name!r} is no name for a {kind}: empty, hidden, or with '/' or control characters",
            remedy="choose another name",
        )
    if size > NAME_MAX:
        raise BadRequestError(
            f"{kind} name of {size} bytes with {SUFFIX}; {NAME_MAX} are possible",
            remedy="choose a shorter name",
        )
