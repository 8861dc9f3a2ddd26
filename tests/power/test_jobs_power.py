"""The power goes while imgtool commits, resizes or renames bases, and while it recovers.

A commit that is undone leaves data in its base, which no guest sees: what counts is what `sight`
compares. Whatever is pending, each image that QEMU would open shows the old disk or the new one.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool import api
from imgtool.testing import Outcome, State
from tests.crash.jobs import JOBS, make_chains, sight

from .conftest import PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem
from .test_branches_power import Branching
from .test_imgtool_power import prove
from .workload import UnsyncedFiles, uri

pytestmark = pytest.mark.power

FEW, MANY = 6, 100
WORK = ("commit-inner", "commit-all", "grow-qcow2", "rebase")
long, soak = pytest.mark.long, pytest.mark.soak


class Jobbing(Branching):
    """One of the block jobs of the crash matrix. What it makes of that undisturbed is new."""

    def prepare(self, root: Path) -> None:
        folder = root / "all" / "vms"
        folder.mkdir(parents=True)
        make_chains(folder)
        self._before = self.look(root)

    def act(self, root: Path) -> None:
        with api.open_world(uri(root), files=self.files) as world:
            JOBS[self.job](world)
        self._after = self.look(root)

    def compared(self, now: State) -> Outcome:
        seen = sight(now)
        if seen == sight(self.before):
            return Outcome.OLD
        assert seen == sight(self.expected()), f"neither old nor new: {seen}"
        return Outcome.NEW


@pytest.mark.parametrize(
    ("fs", "job", "subsets"),
    [
        (XFS, WORK[0], FEW),
        *(pytest.param(XFS, job, FEW, marks=long) for job in WORK[1:]),
        *(
            pytest.param(fs, job, MANY, marks=soak)
            for fs in (XFS, EXT4, EXT4_BARE, BTRFS)
            for job in WORK
        ),
    ],
    ids=str,
)
def test_a_job_is_old_or_new(power: PowerCuts, fs: FileSystem, job: str, subsets: int) -> None:
    prove(power, fs, Jobbing(job), subsets)


@pytest.mark.parametrize(
    "job", [pytest.param(job, marks=soak if number else long) for number, job in enumerate(WORK)]
)
def test_without_syncs_it_is_found_torn(power: PowerCuts, job: str) -> None:
    work = Jobbing(job, files=UnsyncedFiles())
    report = power(XFS, prepare=work.prepare, act=work.act, check=work.check, subsets=FEW, seed=1)
    assert report.bad, report.explain()
