"""Sizes as virsh reads them: 10G, 10GiB, 10GB, 512B; a bare number is KiB."""

from __future__ import annotations

import re

from imgtool.model.errors import BadRequestError

_WORD = re.compile(r"\s*(\d+)\s*([A-Za-z]*)\s*", re.ASCII)
_PREFIXES = "kmgtpe"
_LARGEST = 2**63 - 1


def scaled(text: str, *, unit: int = 1024) -> int:
    """Bytes. K and KiB are 1024, KB is 1000, and so on for M, G, T, P, E; `unit`: without one.

    Raises BadRequestError in virsh's words.
    """
    match = _WORD.fullmatch(text)
    factor = None if match is None else _factor(match[2].lower(), unit)
    if match is None or factor is None:
        raise BadRequestError(
            f"Scaled numeric value '{text}' for <--size> option is malformed or out of range",
            remedy="give a number of KiB, or a number with a suffix: B, K, KB, M, MB, G, GB, T ...",
        )
    size = int(match[1]) * factor
    if size > _LARGEST:
        raise BadRequestError(
            f"Scaled numeric value '{text}' for <--size> option is malformed or out of range",
            remedy="no disk is that large",
        )
    return size


def _factor(suffix: str, unit: int) -> int | None:
    if not suffix:
        return unit
    if suffix in ("b", "byte", "bytes"):
        return 1
    power = _PREFIXES.find(suffix[0]) + 1
    if power == 0 or suffix[1:] not in ("", "ib", "b"):
        return None
    return int((1000 if suffix[1:] == "b" else 1024) ** power)
