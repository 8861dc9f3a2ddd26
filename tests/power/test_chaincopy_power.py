"""The power goes while chain-copy copies: a final name is whole, and the same call completes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.host.files import Files
from tests.crash.chaincopy import ChainCopy, make_chain_copy

from .conftest import PowerCuts
from .disk import BTRFS, EXT4, EXT4_BARE, XFS, FileSystem
from .workload import UnsyncedFiles

pytestmark = pytest.mark.power

FEW, MANY = 4, 100
long, soak = pytest.mark.long, pytest.mark.soak


class Copying:
    """Two layers to another folder. On xfs and btrfs they are reflinked, on ext4 copied."""

    def __init__(self, files: Files | None = None) -> None:
        self.files = files

    def prepare(self, root: Path) -> None:
        folder = root / "all"
        folder.mkdir()
        make_chain_copy(folder)

    def act(self, root: Path) -> None:
        copying = ChainCopy(root / "all")
        with copying.world(self.files) as world:
            copying.take(world)

    def check(self, root: Path) -> str | None:
        """What is wrong, if anything, before the same call and after it."""
        copying = ChainCopy(root / "all")
        try:
            copying.assert_never_half("after the cut")
            with copying.world() as world:
                copying.take(world)
            copying.assert_complete("again")
        except AssertionError as error:
            return str(error)
        return None

    def check_done(self, root: Path) -> str | None:
        """Of what was promised, nothing is missing."""
        copying = ChainCopy(root / "all")
        missing = {"base.raw", "mid"} - copying.names()
        return f"{missing} are gone" if missing else self.check(root)


@pytest.mark.parametrize(
    ("fs", "subsets"),
    [
        pytest.param(EXT4_BARE, FEW, marks=long),
        pytest.param(XFS, FEW, marks=long),
        *(pytest.param(fs, MANY, marks=soak) for fs in (XFS, EXT4, EXT4_BARE, BTRFS)),
    ],
    ids=str,
)
def test_the_same_call_completes_it(power: PowerCuts, fs: FileSystem, subsets: int) -> None:
    work = Copying()
    report = power(
        fs,
        prepare=work.prepare,
        act=work.act,
        check=work.check,
        check_done=work.check_done,
        subsets=subsets,
        seed=1,
    )
    assert not report.bad, report.explain()
    assert report.flushes > 8, "the syncs did not reach the disk"


@long
def test_without_syncs_it_is_found_torn(power: PowerCuts) -> None:
    work = Copying(UnsyncedFiles())
    report = power(
        EXT4_BARE,
        prepare=work.prepare,
        act=work.act,
        check=work.check,
        check_done=work.check_done,
        subsets=FEW,
        seed=1,
    )
    assert report.bad, report.explain()
