"""Fixtures and options that more than one folder of tests uses."""

from __future__ import annotations

import ctypes
import signal

import pytest

pytest_plugins = ["tests.crash_points", "tests.libvirt_fixtures"]

# Of <malloc.h>: one arena for all threads; what is large, or free at the end, is given back.
M_ARENA_MAX, M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -8, -3, -1
MALLOC = {M_ARENA_MAX: 1, M_MMAP_THRESHOLD: 128 << 10, M_TRIM_THRESHOLD: 1 << 20}


def pytest_configure() -> None:
    """Keep this process small, and let it be interrupted, wherever it was started.

    It is forked for each qemu-img, and a fork copies its page tables. Left alone, glibc keeps
    what the threads have ever freed: 300 MB, and 10 ms more a fork.
    """
    libc = ctypes.CDLL(None)
    for option, value in MALLOC.items():
        assert libc.mallopt(option, value) == 1
    # A script ignores Ctrl-C in what it starts in its background, and so would all that we start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--machine-steps",
        type=int,
        default=2000,
        help="steps of the state machine in its long run (make soak: 50000)",
    )


@pytest.fixture
def machine_steps(pytestconfig: pytest.Config) -> int:
    """How many steps the long run of the state machine shall have."""
    return int(pytestconfig.getoption("--machine-steps"))
