"""The power goes while imgtool reverts to a snapshot or deletes one, and while it recovers.

Data moves between images after the pivot, and records and images go: whatever is pending, what
the guest would read is right at every moment, and in the end all is old or all is new.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool import api
from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, DiskState, State, guest_bytes_digest, write_pattern
from tests.crash.branches import JOBS, grow, take

from .conftest import PROPERTY, PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem, scratch_folder
from .replay import run_with_two_cuts
from .test_imgtool_power import prove
from .workload import Snapshotting, UnsyncedFiles, is_blocked, make_disks, uri

pytestmark = pytest.mark.power

FEW, MANY = 12, 200
LEAKS = re.compile(r"\d+ leaks")  # space, until it is mended; no guest sees them
PULL = "pull"
ACTS = {**JOBS, PULL: JOBS["delete-last"]}
QUICK = ("delete-last", PULL)  # data go down, data go up
long, soak = pytest.mark.long, pytest.mark.soak


class Branching(Snapshotting):
    """One of `ACTS` in a tree of snapshots. What it makes of that undisturbed is new."""

    def __init__(self, job: str, files: Files | None = None) -> None:
        super().__init__("mixed", files=files)
        self.job = job
        self._after: State | None = None

    def prepare(self, root: Path) -> None:
        (root / "all" / "vms").mkdir(parents=True)
        make_disks(root / "all" / "vms")
        with api.open_world(uri(root)) as world:
            (_grow_heavier if self.job == PULL else grow)(world)
        self._before = self.look(root)

    def act(self, root: Path) -> None:
        with api.open_world(uri(root), files=self.files) as world:
            ACTS[self.job](world)
        self._after = self.look(root)

    def expected(self) -> State:
        assert self._after is not None, "nothing has been done"
        return self._after

    def spoilt(self, now: State) -> list[str]:
        """The domain XML decides which disks a guest would find; each is blocked, or right."""
        old = now.transaction == self.before.transaction
        right = self.before if old else self.expected()
        found = []
        for disk in now.disks:
            if any(is_blocked(layer) for layer in disk.layers if not layer.error):
                continue  # QEMU refuses it
            shown = disk.top.guest
            if any(layer.error for layer in disk.layers):
                shown = _as_qemu_reads(disk)
                if not shown:
                    continue  # so does it here, for want of a base
            else:
                problems = [LEAKS.sub("", layer.check) for layer in disk.layers]
                found += [f"{disk.target}: {problem}" for problem in problems if problem]
            if shown != right.disk(disk.target).top.guest:
                found.append(f"{disk.target}: the guest would read something else")
        return found


def _as_qemu_reads(disk: DiskState) -> str:
    """What a guest would read from a chain that imgtool cannot read; empty if QEMU cannot."""
    assert disk.source is not None
    try:
        return guest_bytes_digest(Path(disk.source), Format(disk.format))
    except ImgtoolError:
        return ""


def _grow_heavier(world: World) -> None:
    """Two snapshots; what is in the active layers is more than what the last of them froze."""
    for number, name in enumerate(("flat", "last"), start=1):
        take(world, name, disk_only=True)
        for chain in api.chains(world, "vm").values():
            top = chain.active
            write_pattern(top.path, top.format, number * MIB, number * 512 * KIB, 0xC0 + number)


@pytest.mark.parametrize(
    ("fs", "job", "subsets"),
    [
        *((XFS, job, FEW) for job in QUICK),
        *(
            pytest.param(fs, job, MANY, marks=soak)
            for fs in (XFS, EXT4, EXT4_BARE, BTRFS)
            for job in ACTS
        ),
    ],
    ids=str,
)
def test_a_branch_is_old_or_new(power: PowerCuts, fs: FileSystem, job: str, subsets: int) -> None:
    prove(power, fs, Branching(job), subsets)


@pytest.mark.parametrize(
    "job", [pytest.param(job, marks=long if job == "delete-last" else soak) for job in ACTS]
)
def test_without_syncs_it_is_found_torn(power: PowerCuts, job: str) -> None:
    work = Branching(job, files=UnsyncedFiles())
    report = power(XFS, prepare=work.prepare, act=work.act, check=work.check, subsets=FEW, seed=1)
    assert report.bad, report.explain()


@pytest.mark.parametrize(
    ("fs", "job", "firsts", "subsets"),
    [
        (XFS, "delete-middle", 1, 3),
        pytest.param(XFS, "delete-middle", 3, 3, marks=long),
        *(
            pytest.param(fs, job, 12, FEW, marks=soak)
            for fs in (XFS, EXT4, EXT4_BARE)
            for job in ACTS
        ),
    ],
    ids=str,
)
def test_the_power_goes_again_in_recovery(
    fs: FileSystem,
    job: str,
    firsts: int,
    subsets: int,
    record_property: Callable[[str, object], None],
) -> None:
    """Recovery of what one cut has left is cut as well; the next one still ends in old or new."""
    work = Branching(job)

    def recover(root: Path) -> None:
        work.recover(root)
        work.promised = work.seems(root)

    with scratch_folder() as folder:
        reports = run_with_two_cuts(
            fs,
            folder,
            prepare=work.prepare,
            act=work.act,
            recover=recover,
            check=work.check,
            check_done=work.check_done,
            firsts=firsts,
            subsets=subsets,
            seed=1,
        )
    for report in reports:
        record_property(PROPERTY, str(report))
    assert len(reports) == firsts
    assert [report.explain() for report in reports if report.bad] == []
