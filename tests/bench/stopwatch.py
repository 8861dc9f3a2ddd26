"""Run commands for `measure.py`: one JSON list of words a line in, one JSON object a line out.

A process of its own, because until its exec a child has the memory of who started it, and Linux
counts that into the child's peak: this one is small, and imports nothing large.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    """Serve until stdin ends."""
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(argv: list[str]) -> dict[str, object]:
    """Seconds from fork to end; wait4(2) counts the children that it has waited for, too."""
    with tempfile.TemporaryFile() as said, Path(os.devnull).open("rb") as nothing:
        begun = time.perf_counter()
        pid = os.posix_spawnp(
            argv[0],
            argv,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, said.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, said.fileno(), 2),
            ],
        )
        _, status, usage = os.wait4(pid, 0)
        seconds = time.perf_counter() - begun
        said.seek(0)
        return {
            "seconds": seconds,
            "cpu": usage.ru_utime + usage.ru_stime,
            "peak": usage.ru_maxrss * 1024,
            "code": os.waitstatus_to_exitcode(status),
            "said": said.read().decode(errors="replace"),
        }


if __name__ == "__main__":
    main()
