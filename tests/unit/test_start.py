"""The first milliseconds of the command: quick, and quiet when they are interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_is_all_that_it_prints() -> None:
    from imgtool import __version__

    done = python("-m", "imgtool", "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"imgtool {__version__}\n", "")


def test_the_entry_point_and_the_package_import_nothing_slow() -> None:
    """In modules, not in seconds, which depend on what else the machine does."""
    done = python("-c", "import sys, imgtool.__main__; print(*sys.modules)")
    ours = {name for name in done.stdout.split() if name.startswith("imgtool")}
    assert ours == {"imgtool", "imgtool.__main__"}
    assert not {"lxml", "sh", "libvirt", "argparse", "json", "asyncio"} & set(done.stdout.split())


# A command line that interrupts itself, in each of the places where Ctrl-C can arrive.
MAIN = """
import os, signal, sys
if os.environ["WHEN"] == "import":
    os.kill(os.getpid(), signal.SIGINT)
def main(argv):
    if os.environ["WHEN"] == "work":
        os.kill(os.getpid(), signal.SIGINT)
    import atexit
    if os.environ["WHEN"] == "exit":
        atexit.register(os.kill, os.getpid(), signal.SIGINT)
    return 7
"""
RUN = """
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == "imgtool.cli.main":
            return importlib.util.spec_from_loader(name, self)
    def exec_module(self, module):
        exec(sys.argv[1], vars(module))
sys.meta_path.insert(0, Finder())
from imgtool.__main__ import run
sys.exit(run())
"""


@pytest.mark.parametrize(
    ("when", "code"),
    [("never", 7), ("import", -signal.SIGINT), ("work", 130), ("exit", -signal.SIGINT)],
)
def test_an_interrupt_is_quiet(when: str, code: int) -> None:
    done = python("-c", RUN, MAIN, WHEN=when)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_an_ignored_interrupt_stays_ignored() -> None:
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + RUN
    for when in ("import", "work", "exit"):
        assert python("-c", ignoring, MAIN, WHEN=when).returncode == 7


def test_a_broken_installation_is_said_in_a_sentence() -> None:
    done = python("-c", RUN, "import no_such_library")
    assert done.returncode == 1
    assert "No module named 'no_such_library'" in done.stderr
    assert "Traceback" not in done.stderr
