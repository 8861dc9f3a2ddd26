"""The power goes while imgtool prepares mirrors, takes a mirrored snapshot, and ends one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imgtool import api
from imgtool.host.files import Files
from imgtool.testing import Outcome, State, assert_old_or_new
from tests.crash.mirrors import MIRRORINGS, TARGETS, make_two_places

from .conftest import PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem
from .test_imgtool_power import prove
from .workload import Snapshotting, UnsyncedFiles, uri

pytestmark = pytest.mark.power

FEW, MANY = 12, 200
QUICK = ("files", "pivot")
soak = pytest.mark.soak


class Mirroring(Snapshotting):
    """One thing that is done with mirrors. What it makes of the domain undisturbed is new."""

    def __init__(self, name: str, files: Files | None = None) -> None:
        super().__init__("external", files=files)
        self.name = name
        self._after: State | None = None

    def prepare(self, root: Path) -> None:
        folder = root / "all" / "vms"
        folder.mkdir(parents=True)
        make_two_places(folder)
        MIRRORINGS[self.name][0](folder)
        self._before = self.look(root)

    def act(self, root: Path) -> None:
        with api.open_world(uri(root), files=self.files) as world:
            MIRRORINGS[self.name][1](world)
        self._after = self.look(root)

    def expected(self) -> State:
        assert self._after is not None, "nothing has been done"
        return self._after

    def compared(self, now: State) -> Outcome:
        """A mirror that nobody uses yet may have part of what is carried into it."""
        before, new, now = (_but_mirrors(each) for each in (self.before, self.expected(), now))
        return assert_old_or_new(before, new, now)

    def seems(self, root: Path) -> Outcome:
        """Of files alone, no domain XML says it."""
        if self.name != "files":
            return super().seems(root)
        made = (root / "all/vms/new" / f"{target}.new" for target in TARGETS)
        return Outcome.NEW if all(path.exists() for path in made) else Outcome.OLD


def _but_mirrors(state: State) -> State:
    """The same, whatever the files in the new place hold; those in use are in the chains."""
    entries = (
        replace(entry, content="") if entry.path.endswith(".new") else entry
        for entry in state.entries
    )
    return replace(state, entries=tuple(entries))


@pytest.mark.parametrize(
    ("fs", "name", "subsets"),
    [
        *(pytest.param(XFS, name, FEW, marks=pytest.mark.long) for name in QUICK),
        *(
            pytest.param(fs, name, MANY, marks=soak)
            for fs in (XFS, EXT4, EXT4_BARE, BTRFS)
            for name in MIRRORINGS
        ),
    ],
    ids=str,
)
def test_what_is_mirrored_is_old_or_new(
    power: PowerCuts, fs: FileSystem, name: str, subsets: int
) -> None:
    prove(power, fs, Mirroring(name), subsets, flushes=12)  # an abort only removes things


@pytest.mark.parametrize("name", [pytest.param(name, marks=soak) for name in MIRRORINGS])
def test_without_syncs_it_is_found_torn(power: PowerCuts, name: str) -> None:
    work = Mirroring(name, files=UnsyncedFiles())
    report = power(XFS, prepare=work.prepare, act=work.act, check=work.check, subsets=FEW, seed=1)
    assert report.bad, report.explain()
