"""Where these tests work: in memory if they can, since every snapshot waits for its disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOM = 1 << 30  # bytes that must be free there


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """As pytest's own, elsewhere, and removed in any case."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with tempfile.TemporaryDirectory(dir=memory if roomy else None, prefix="effects-") as folder:
        yield Path(folder)
