"""The command line as its users run it, and what a refusal looks like."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SECONDS = 120.0
Done = subprocess.CompletedProcess[str]


def imgtool(*words: str | Path) -> Done:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "imgtool", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def start(*words: str | Path) -> subprocess.Popen[bytes]:
    """Begin the command, as the leader of a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "imgtool", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def assert_refused(done: Done, code: int, about: str) -> None:
    """It ended with `code`; on stderr are one sentence, with `about` in it, and a remedy."""
    assert done.returncode == code, (done.returncode, done.stderr)
    sentence, remedy = done.stderr.splitlines()
    assert sentence.startswith("error: "), done.stderr
    assert about in sentence, done.stderr
    assert remedy.startswith("remedy: "), done.stderr
