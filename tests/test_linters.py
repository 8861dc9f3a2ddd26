"""The linters are tests: one way to run them, on a laptop and in CI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def linter(name: str) -> str:
    """The path of `name`, the one beside this Python first; without one, skip or fail (CI)."""
    found = shutil.which(name, path=os.fspath(Path(sys.executable).parent)) or shutil.which(name)
    if found is None and os.environ.get("IMGTOOL_CI") == "1":
        pytest.fail(f"{name} is not installed: pip install 'imgtool[dev]'")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.mark.parametrize("command", ["ruff check", "ruff format --check --diff", "mypy"])
def test_finds_nothing(command: str) -> None:
    name, *options = command.split()
    done = subprocess.run(
        [linter(name), *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
