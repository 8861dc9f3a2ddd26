"""For tests of what uses imgtool, and for imgtool's own: real images, domains, and one checker.

Hypothesis strategies are in `imgtool.testing.strategies`, which alone needs hypothesis: pytest
loads this package with the plugin, also where hypothesis is not installed.
"""

from __future__ import annotations

from imgtool.testing.checker import Outcome, assert_old_or_new, capture
from imgtool.testing.domains import MadeDomain, disk_xml, make_domain, make_three_disks
from imgtool.testing.expected import AfterSnapshot
from imgtool.testing.images import (
    KIB,
    MIB,
    guest_bytes_digest,
    make_image,
    qemu_io,
    read_pattern,
    write_pattern,
)
from imgtool.testing.memory import Memory
from imgtool.testing.state import (
    DiskState,
    Entry,
    Layer,
    Record,
    State,
    Tag,
    differences,
    same,
)

__all__ = [
    "KIB",
    "MIB",
    "AfterSnapshot",
    "DiskState",
    "Entry",
    "Layer",
    "MadeDomain",
    "Memory",
    "Outcome",
    "Record",
    "State",
    "Tag",
    "assert_old_or_new",
    "capture",
    "differences",
    "disk_xml",
    "guest_bytes_digest",
    "make_domain",
    "make_image",
    "make_three_disks",
    "qemu_io",
    "read_pattern",
    "same",
    "write_pattern",
]
