"""A domain that is moved again and again while snapshots come and go: nothing is ever lost."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imgtool import api
from imgtool.engine.world import World
from imgtool.model.errors import BadRequestError
from imgtool.model.image import Format
from imgtool.testing import MadeDomain
from tests.crash.command import imgtool

from .asking import disk, domain, take
from .moves import guest_writes, layer, migrate, shown, sources, whole

STEPS = 14


def start(folder: Path) -> MadeDomain:
    """Two disks over one base, and a third by itself."""
    home = folder / "home-0"
    home.mkdir()
    base = layer(home / "base.raw", 1)
    one = layer(home / "one.qcow2", 2, "base.raw", Format.RAW)
    two = layer(home / "two.qcow2", 3, base, Format.RAW)
    alone = layer(home / "alone.qcow2", 4)
    disks = (disk(path, target=f"vd{n}") for n, path in zip("abc", (one, two, alone), strict=True))
    return domain(folder, *disks)


def step(made: MadeDomain, chance: random.Random, number: int) -> str:
    """Something else than a move; what is refused is refused."""
    with api.open_world(made.uri) as world:
        names = [each.name for each in api.snapshots(world, made.name)]
        act = chance.choice(["outside", "inside", "revert", "delete"] if names else ["outside"])
        guest_writes(made, 5 + number % 10)
        try:
            if act in ("outside", "inside"):
                take(made, name=f"s{number}", disk_only=act == "outside")
            else:
                _go(world, made.name, act, chance.choice(names))
        except BadRequestError as error:
            return f"{act}: {error}"
    return act


def _go(world: World, domain: str, act: str, name: str) -> None:
    if act == "revert":
        api.revert_to(world, domain, name, api.RevertOptions(keep=True))
    else:
        api.delete_snapshot(world, domain, name, api.DeleteOptions())


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_it_is_moved_again_and_again(seed: int, tmp_path: Path) -> None:
    made, chance = start(tmp_path), random.Random(seed)
    done: list[str] = []
    for number in range(1, STEPS):
        done.append(step(made, chance, number))
        before = shown(made)
        new = tmp_path / f"home-{number}"
        new.mkdir()
        migrate(made, new, delete_source=True)
        assert shown(made) == before, done
        assert {path.parent for path in sources(made) if path.exists()} == {new}, done
        assert list((tmp_path / f"home-{number - 1}").iterdir()) == [], done
        whole(new)
    checked = imgtool("-c", made.uri, "check", made.name)
    assert checked.returncode == 0, (done, checked.stdout)
    assert {"outside", "inside", "revert", "delete"} <= set(done)
