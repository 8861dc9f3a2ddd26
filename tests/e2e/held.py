"""imgtool, brought to a halt or to its death at one system call, by strace."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """After the n-th of these calls in one thread, or of those that concern a path."""

    syscall: str
    path: Path | None = None
    when: int = 1


@dataclass(frozen=True, slots=True)
class Held:
    """The command, stopped."""

    process: subprocess.Popen[str]

    def go_on(self, kill_if: Callable[[], bool] | None = None) -> tuple[int, str]:
        """Let it run to its end, or until it is to be killed; returns exit code and stderr."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < end, "it never ends"
            os.killpg(self.process.pid, signal.SIGCONT)  # other threads may have such calls, too
            if kill_if is not None and kill_if():
                self.process.kill()
            time.sleep(0.005)
        _, stderr = self.process.communicate(timeout=SECONDS)
        return self.process.returncode, stderr


@contextmanager
def held(arguments: Sequence[str], moment: Moment, log: Path) -> Iterator[Held]:
    """The command, stopped at a moment; `log` is what strace writes."""
    with _start(arguments, moment, "STOP", log) as process:
        try:
            _wait(process, log)
            yield Held(process)
        finally:
            process.kill()


def killed(arguments: Sequence[str], moment: Moment, log: Path) -> None:
    """Run the command until SIGKILL takes it at a moment."""
    with _start(arguments, moment, "KILL", log) as process:
        outcome = process.communicate(timeout=SECONDS)
        assert process.returncode == -signal.SIGKILL, (process.returncode, outcome)


def _wait(process: subprocess.Popen[str], log: Path) -> None:
    end = time.monotonic() + SECONDS
    while "stopped by SIGSTOP" not in (log.read_text() if log.exists() else ""):
        ended = process.poll() is not None
        assert not ended, f"it ended without getting there: {process.communicate()}"
        assert time.monotonic() < end, "it never gets there"
        time.sleep(0.005)


def _start(arguments: Sequence[str], moment: Moment, name: str, log: Path) -> subprocess.Popen[str]:
    """strace in the background (-D): the process that was started is imgtool itself."""
    inject = f"inject={moment.syscall}:signal={name}:when={moment.when}"
    trace = ["strace", "-D", "-f", "-qq", "-o", os.fspath(log), "-e", f"trace={moment.syscall}"]
    trace += ["-e", inject, *([] if moment.path is None else ["-P", os.fspath(moment.path)])]
    return subprocess.Popen(
        [*trace, sys.executable, "-m", "imgtool", "--jobs", "1", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
