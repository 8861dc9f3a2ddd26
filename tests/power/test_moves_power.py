"""The power goes while imgtool moves a domain's images to another folder, and drops the old ones.

Old or new, and at every moment before recovery the chains that the domain XML names are whole.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imgtool import api
from imgtool.host.files import Files
from imgtool.testing import State
from tests.crash.moves import HOWS, grow

from .conftest import PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem
from .test_imgtool_power import prove
from .workload import Snapshotting, UnsyncedFiles, uri

pytestmark = pytest.mark.power

FEW, MANY = 6, 200
long, soak = pytest.mark.long, pytest.mark.soak


class Moving(Snapshotting):
    """One of `HOWS`. What it makes of the domain undisturbed is new."""

    def __init__(self, how: str, files: Files | None = None) -> None:
        super().__init__("external", files=files)
        self.how = how
        self._after: State | None = None

    def prepare(self, root: Path) -> None:
        folder = root / "all" / "vms"
        folder.mkdir(parents=True)
        grow(folder, self.how)
        self._before = self.look(root)

    def act(self, root: Path) -> None:
        options = replace(HOWS[self.how], to=root / "all" / "vms" / "new")
        with api.open_world(uri(root), files=self.files) as world:
            api.migrate(world, "vm", options)
        self._after = self.look(root)

    def expected(self) -> State:
        assert self._after is not None, "nothing has been done"
        return self._after


@pytest.mark.parametrize(
    ("fs", "how", "subsets"),
    [
        pytest.param(EXT4_BARE, "delete-source", FEW, marks=long),
        *(
            pytest.param(fs, how, MANY, marks=soak)
            for fs in (XFS, EXT4, EXT4_BARE, BTRFS)
            for how in HOWS
        ),
    ],
    ids=str,
)
def test_a_move_is_old_or_new(power: PowerCuts, fs: FileSystem, how: str, subsets: int) -> None:
    prove(power, fs, Moving(how), subsets)


@soak
def test_without_syncs_it_is_found_torn(power: PowerCuts) -> None:
    work = Moving("delete-source", files=UnsyncedFiles())
    report = power(XFS, prepare=work.prepare, act=work.act, check=work.check, subsets=FEW, seed=1)
    assert report.bad, report.explain()
