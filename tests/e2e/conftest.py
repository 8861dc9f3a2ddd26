"""The machine that these tests work on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .machine import Machine, defined


@pytest.fixture
def machine(libvirtd_uri: str, tmp_path: Path) -> Iterator[Machine]:
    """A stopped domain with three disks, alone in a real libvirtd."""
    folder = tmp_path / "machine"
    folder.mkdir()
    with defined(libvirtd_uri, folder) as made:
        yield made
