"""Fixtures and options that more than one folder of tests uses."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.crash_points", "tests.libvirt_fixtures"]


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
