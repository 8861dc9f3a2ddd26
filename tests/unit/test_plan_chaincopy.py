"""Planning a chain-copy is a function of its arguments; these hold for all relative chains."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.model.errors import BadRequestError, ChainError, ExistsError
from imgtool.model.image import Chain, Format, Identity, Image, Qcow2Features
from imgtool.plan.chaincopy import plan_chain_copy

OLD, NEW = Path("/old"), Path("/new/place")
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)
PLAIN = NAMES.filter(lambda name: name not in (".", ".."))
FOLDERS = st.lists(PLAIN, max_size=2).map("/".join)


def layer(path: Path, number: int, backing: str | None) -> Image:
    return Image(
        path=path,
        format=Format.QCOW2,
        virtual_size=1 << 20,
        allocation=1 << 19,
        identity=Identity(1, number + 1, 1 << 20, 1),
        features=Qcow2Features(),
        backing=backing,
        backing_format=None if backing is None else "qcow2",
    )


def chain_of(paths: list[str]) -> Chain:
    """These layers below OLD, base first, each with a relative name of its base."""
    images = []
    for number, path in enumerate(paths):
        below = os.path.relpath(paths[number - 1], Path(path).parent) if number else None
        images.append(layer(OLD / path, number, below))
    return Chain(tuple(images))


@given(st.lists(st.tuples(FOLDERS, PLAIN).map("/".join), min_size=2, max_size=5, unique=True))
def test_the_copies_lie_to_each_other_as_the_layers_do(paths: list[str]) -> None:
    paths = [path.lstrip("/") for path in paths]
    paths[-1] = "top"  # what has the mirror in its place is in the folder itself
    if len(set(paths)) < len(paths):
        return
    plan = plan_chain_copy({"vda": chain_of(paths)}, NEW, "vm")
    assert [each.copy.relative_to(NEW) for each in plan] == [Path(path) for path in paths[:-1]]
    assert [each.source.path for each in plan] == [OLD / path for path in paths[:-1]]


def test_a_shared_base_comes_once_and_before_what_is_over_it() -> None:
    one, two = chain_of(["base", "mid", "top"]), chain_of(["base", "top2"])
    plan = plan_chain_copy({"vda": one, "vdb": two}, NEW, "vm")
    assert [(each.copy.name, each.targets) for each in plan] == [
        ("base", ("vda", "vdb")),
        ("mid", ("vda",)),
    ]
    assert {each.pin.path for each in plan} == {OLD / "base", OLD / "mid"}


def test_one_name_for_two_images() -> None:
    other = Chain((layer(Path("/elsewhere/base"), 7, None), layer(OLD / "top2", 8, "base")))
    with pytest.raises(ExistsError, match="would both become /new/place/base"):
        plan_chain_copy({"vda": chain_of(["base", "top"]), "vdb": other}, NEW, "vm")


@pytest.mark.parametrize("name", ["../base", "sub/../../base", ".", "sub/.."])
def test_names_that_lead_out(name: str) -> None:
    chain = Chain((layer(OLD / "base", 0, None), layer(OLD / "top", 1, name)))
    with pytest.raises(ChainError, match="leads out of the folder"):
        plan_chain_copy({"vda": chain}, NEW, "vm")


def test_the_name_that_the_mirror_records_counts() -> None:
    chain = chain_of(["base", "old.migrate"])
    mirror = layer(NEW / "m", 9, "./a:b")
    (only,) = plan_chain_copy({"vda": chain}, NEW, "vm", {"vda": mirror})
    assert (only.source.path, only.copy) == (OLD / "base", NEW / "a:b")


def test_there_is_nothing_below() -> None:
    with pytest.raises(BadRequestError, match="vda: has no layers below /old/top"):
        plan_chain_copy({"vda": chain_of(["top"])}, NEW, "vm")
