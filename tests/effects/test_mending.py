"""A repair is a transaction: it dies anywhere, and the machine is as it was or mended."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from imgtool import api
from imgtool.model.errors import ImgtoolError
from imgtool.testing import MadeDomain, Outcome, assert_old_or_new, capture, make_three_disks
from tests.crash.dying import DeadError, Doom, DyingFiles, DyingQemu, Fate
from tests.crash.scenario import digest
from tests.crash_points import CrashPoints
from tests.effects.breaking import (
    close_new,
    descriptors,
    forget_format,
    kinds,
    leak,
    record,
    snapshot,
    tag,
)

CONSENT = api.RepairOptions(drop_orphan_tags=True, adopt=True)
STRIDES = [29, pytest.param(13, marks=pytest.mark.long)]  # each fate begins at another call


def broken(folder: Path) -> MadeDomain:
    """Everything that a repair mends, at once."""
    made = make_three_disks(folder)
    snapshot(made, "e1")
    snapshot(made, "e2")
    record(made, "e2").unlink()
    (mark,) = folder.glob(".imgtool/*/current")
    mark.unlink()
    leak(made.image("vdb"))
    forget_format(folder / "vm-vda.e1")
    tag(folder / "vm-vda.e1", "lost")
    return made


def repair(made: MadeDomain, doom: Doom) -> None:
    with api.open_world(made.uri, files=DyingFiles(doom), jobs=1) as world:
        api.repair(replace(world, qemu=DyingQemu(doom)), "vm", CONSENT)


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("fate", Fate, ids=lambda fate: fate.name.lower())
def test_old_or_mended_after_effects(
    fate: Fate, stride: int, place: Path, crash_points: CrashPoints
) -> None:
    folder, template = place / "store", place / "template"
    folder.mkdir()
    made = broken(folder)
    shutil.copytree(folder, template, symlinks=True)
    before = capture(made.uri, "vm", [folder])
    doom = Doom()
    repair(made, doom)
    assert kinds(made) == []
    new, total = capture(made.uri, "vm", [folder]), doom.calls
    # A look at an image that fails is a finding, so what is known after it is another plan.
    begun = next(at for at, call in enumerate(doom.trace, start=1) if call.startswith("append("))
    seen = dict.fromkeys(Outcome, 0)
    for at in range(begun + list(Fate).index(fate), total + 1, stride):
        shutil.rmtree(folder)
        shutil.copytree(template, folder, symlinks=True)
        _die(made, Doom(fate=fate, at=at))
        same = digest(folder) == digest(template)
        outcome = (
            Outcome.OLD
            if same
            else assert_old_or_new(before, new, capture(made.uri, "vm", [folder]))
        )
        seen[outcome] += 1
    assert all(seen.values()), seen
    crash_points(f"repair, {fate.name.lower()}", sum(seen.values()))


def _die(made: MadeDomain, doom: Doom) -> None:
    opened = descriptors()
    try:
        repair(made, doom)
    except (ImgtoolError, DeadError):
        close_new(opened)
    with api.open_world(made.uri) as world:
        recovery = api.recover(world)
    assert (recovery.pending, recovery.problems) == ((), ())
