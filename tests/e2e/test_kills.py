"""SIGKILL at random moments of a snapshot in libvirt: afterwards it is old or new."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from imgtool.testing import Outcome
from tests.crash_points import CrashPoints

from .command import start
from .scenario import KINDS, Scenario, made

SECONDS = 60.0  # for recovery, should it have to wait for an orphaned qemu-img


@pytest.mark.libvirtd
@pytest.mark.xdist_group("libvirtd-kills")
@pytest.mark.parametrize(
    "count", [20, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(3600)])]
)
def test_random_moments(
    count: int, libvirtd_uri: str, place: Path, crash_points: CrashPoints
) -> None:
    """External, internal and mixed in turn; every fifth after its pivot, the others at any time."""
    chance = random.Random(seed := time.time_ns())
    seen: Counter[tuple[str, Outcome]] = Counter()
    with made(libvirtd_uri, place) as scenario:
        for number in range(count):
            kind = list(KINDS)[number % len(KINDS)]
            try:
                seen[kind, _strike(scenario, kind, chance, late=number % 5 == 4)] += 1
            except AssertionError as error:
                raise AssertionError(f"kill {number} of {count}, {kind}, seed {seed}") from error
    for outcome in Outcome:
        assert sum(seen[kind, outcome] for kind in KINDS), f"never {outcome}: proves too little"
    for (kind, outcome), times in seen.items():
        crash_points(f"SIGKILL in libvirt, {kind}, {outcome}", times)


def _strike(scenario: Scenario, kind: str, chance: random.Random, *, late: bool) -> Outcome:
    """Kill it at some moment: alone, or with every qemu-img that it has started."""
    scenario.fresh()
    with start(*scenario.words(kind)) as process:
        scenario.wait(process, scenario.pivoted if late else scenario.begun)
        time.sleep(chance.random() * scenario.seconds[kind] * (0.2 if late else 1))
        if chance.random() < 0.5:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        code = process.wait()
    _recover(scenario)
    outcome = scenario.outcome(kind)
    assert code == -signal.SIGKILL or outcome is Outcome.NEW, f"exit code {code}, but {outcome}"
    assert outcome is Outcome.NEW or not late, "the new XML was there, and is gone"
    return outcome


def _recover(scenario: Scenario) -> None:
    """As whoever comes next; a qemu-img that has lost its imgtool still holds the lock."""
    end = time.monotonic() + SECONDS
    while (ended := scenario.machine.imgtool("recover")).returncode == 3:
        assert time.monotonic() < end, ended.stderr
    assert ended.returncode == 0, ended.stderr
