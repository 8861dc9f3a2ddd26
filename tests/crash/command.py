"""The command line as its users run it: another process, with exit code and stderr."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NOBODY = 65534  # uid and gid
# Everything is imported before root is given up: not everybody may read where it is installed.
_AS_NOBODY = """
import importlib, os, pkgutil, sys
import sh, imgtool.cli.main
for package in ("cli", "engine", "host", "model", "plan", "stores", "xml"):
    found = importlib.import_module(f"imgtool.{package}")
    for module in pkgutil.iter_modules(found.__path__):
        importlib.import_module(f"imgtool.{package}.{module.name}")
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(imgtool.cli.main.main(sys.argv[1:]))
"""
Done = subprocess.CompletedProcess[str]


def imgtool(*words: str | Path, timeout: float = 60) -> Done:
    """Run the command to its end."""
    return _run([sys.executable, "-m", "imgtool", *map(str, words)], timeout)


def imgtool_as_nobody(*words: str | Path) -> Done:
    """The same, as a user who owns nothing."""
    return _run([sys.executable, "-c", _AS_NOBODY, *map(str, words)], 60)


def start(*words: str | Path) -> subprocess.Popen[str]:
    """Begin the command, and do not wait for it."""
    return subprocess.Popen(
        [sys.executable, "-m", "imgtool", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def assert_refused(done: Done, code: int, *about: str) -> None:
    """It ended with `code`, and one sentence, a remedy, and nothing else on stderr."""
    assert done.returncode == code, (done.returncode, done.stderr)
    lines = done.stderr.splitlines()
    assert len(lines) == 2, done.stderr
    assert re.fullmatch(r"error: \S.*", lines[0]), done.stderr
    assert re.fullmatch(r"remedy: \S.*", lines[1]), done.stderr
    for word in about:
        assert word in lines[0], done.stderr
    assert "Traceback" not in done.stderr
    assert ": :" not in lines[0], "a place without a name"


def children_of(folder: Path) -> list[str]:
    """Command lines of all processes that name something below `folder`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if str(folder) in words:
                found.append(words)
    return found


def _run(command: Sequence[str], timeout: float) -> Done:
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        stdin=subprocess.DEVNULL,
    )
