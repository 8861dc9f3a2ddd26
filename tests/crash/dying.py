"""Files and qemu-img that fail, or die, at the n-th call: those that users may import."""

from imgtool.testing.dying import (
    READ_ONLY,
    DeadError,
    Doom,
    DyingFiles,
    DyingQemu,
    Fate,
    close_descriptors,
)

__all__ = [
    "READ_ONLY",
    "DeadError",
    "Doom",
    "DyingFiles",
    "DyingQemu",
    "Fate",
    "close_descriptors",
]
