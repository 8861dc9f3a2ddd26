"""Planning mirrors is a function of its arguments; these hold whatever the images are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.model.domain import Domain, Head
from imgtool.model.errors import BadRequestError, ChainError, ExistsError
from imgtool.model.image import Chain, Format, Identity, Image, InternalSnapshot, Qcow2Features
from imgtool.model.plan import CarryOver, CreateOverlay, DropRecord, SetCurrent
from imgtool.model.snapshot import Snapshot
from imgtool.plan.mirror import MirrorFacts, MirrorWish, plan_mirror_files
from imgtool.plan.mirror_end import (
    EndFacts,
    Sides,
    Unwanted,
    plan_mirror_abort,
    plan_mirror_pivot,
)
from imgtool.plan.snapshot import MAX_LAYERS, Place

OLD, NEW = Path("/path1/to"), Path("/path2/to")
TXID = "0123456789abcdef"
SIZE = 1 << 20
names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0"),
    min_size=1,
    max_size=12,
).filter(lambda name: name not in (".", ".."))


def image(path: Path, inode: int, **more: Any) -> Image:
    made = Image(
        path=path,
        format=Format.QCOW2,
        virtual_size=SIZE,
        allocation=4096,
        identity=Identity(1, inode, 4096, 0),
        features=Qcow2Features(),
    )
    return replace(made, **more)


def undertaking() -> dict[str, Any]:
    domain = Domain(name="vm", uuid="u", disks=())
    return {
        "head": Head(domain=domain, xml=b"<domain/>", digest="d"),
        "store": "dir:/store",
        "txid": TXID,
        "workspace": Path("/state/u") / TXID,
    }


def facts(chains: Mapping[str, Chain]) -> MirrorFacts:
    return MirrorFacts(chains=chains, **undertaking())


def end_facts(parent: str | None = None) -> EndFacts:
    snapshot = Snapshot(name="s1", created=0, parent=parent)
    return EndFacts(snapshot=snapshot, current="s1", **undertaking())


def place(path: Path, *, taken: bool = False) -> Place:
    return Place(overlay=path, folder=path.parent, taken=taken)


def sides(
    *, source_data: bool = False, mirror_data: bool = False, mirror: Chain | None = None
) -> Sides:
    return Sides(
        target="vda",
        source=Chain((image(OLD / "old", 1), image(OLD / "migrate", 2))),
        mirror=mirror or Chain((image(NEW / "old", 3), image(NEW / "new", 4))),
        source_data=source_data,
        mirror_data=mirror_data,
    )


@given(name=names, first=names, second=names)
def test_both_overlays_record_one_relative_name(name: str, first: str, second: str) -> None:
    """Which is that of the active layer, and no protocol to QEMU."""
    if name in (first, second):
        return
    chain = Chain((image(OLD / name, 1),))
    wish = MirrorWish(target="vda", file=place(OLD / first), mirror=place(NEW / second))
    plan = plan_mirror_files([wish], facts({"vda": chain})).plan
    assert plan.files_only
    steps = [step for step in plan.steps if isinstance(step, CreateOverlay)]
    assert [step.overlay for step in steps] == [OLD / first, NEW / second]
    assert len({step.staged for step in steps}) == 2
    for step in steps:
        assert step.unchecked
        assert step.staged.parent == step.overlay.parent
        assert Path(step.backing) == Path(name)
        assert ":" not in step.backing.partition("/")[0]
        assert (step.base_format, step.virtual_size) == (Format.QCOW2, SIZE)


@pytest.mark.parametrize(
    ("wish", "kind"),
    [
        (MirrorWish(target="vda", file=place(NEW / "f")), BadRequestError),
        (MirrorWish(target="vda", mirror=place(NEW / "old")), BadRequestError),
        (MirrorWish(target="vda", mirror=place(NEW / "m", taken=True)), ExistsError),
        (
            MirrorWish(target="vda", file=place(OLD / "f"), mirror=place(OLD / "f")),
            BadRequestError,
        ),
    ],
    ids=["not beside", "its base's name", "taken", "twice"],
)
def test_places_that_cannot_be(wish: MirrorWish, kind: type[Exception]) -> None:
    chain = Chain((image(OLD / "old", 1),))
    with pytest.raises(kind, match=r"beside|the name of|exists|twice"):
        plan_mirror_files([wish], facts({"vda": chain}))


def test_disks_that_share_a_base_may_share_its_copy() -> None:
    base = Chain((image(OLD / "old", 1),))
    wishes = [MirrorWish(target=each, mirror=place(NEW / each)) for each in ("vda", "vdb")]
    plan_mirror_files(wishes, facts({"vda": base, "vdb": base}))
    other = Chain((image(Path("/else/old"), 2),))
    with pytest.raises(BadRequestError, match="both look for"):
        plan_mirror_files(wishes, facts({"vda": base, "vdb": other}))


def test_no_mirror_of_what_is_too_deep_or_damaged() -> None:
    wish = MirrorWish(target="vda", mirror=place(NEW / "m"))
    deep = Chain(tuple(image(OLD / str(number), number) for number in range(MAX_LAYERS)))
    for chain in (deep, Chain((image(OLD / "old", 1, corrupt=True),))):
        with pytest.raises(ChainError):
            plan_mirror_files([wish], facts({"vda": chain}))


@given(source_data=st.booleans(), mirror_data=st.booleans(), trust=st.booleans())
def test_what_is_carried_and_verified(source_data: bool, mirror_data: bool, trust: bool) -> None:
    each = sides(source_data=source_data, mirror_data=mirror_data)
    planned = plan_mirror_pivot([each], trust, end_facts("s0"))
    steps = [step for step in planned.plan.steps if isinstance(step, CarryOver)]
    assert bool(steps) == (source_data or mirror_data)
    assert all(step.verify == (mirror_data and not trust) for step in steps)
    moves = [(move.target, move.path, move.over) for move in planned.moves]
    assert moves == [("vda", NEW / "new", False)]
    pinned = {pin.path: pin.exclusive for pin in planned.pins}
    assert set(pinned) == {OLD / "old", OLD / "migrate", NEW / "old", NEW / "new"}
    changed = [path for path, exclusive in pinned.items() if exclusive]
    assert changed == ([NEW / "new"] if steps else [])
    late = planned.plan.aftermath
    assert late.records == (SetCurrent(name="s0", previous="s1"), DropRecord(name="s1"))
    assert late.drops == ()


_BASE, _TOP = sides().mirror.images
_SHAPES = {
    "no base": (_TOP,),
    "size": (_BASE, replace(_TOP, virtual_size=2 * SIZE)),
    "size of the base": (replace(_BASE, virtual_size=2 * SIZE), _TOP),
    "corrupt": (_BASE, replace(_TOP, corrupt=True)),
    "dirty": (replace(_BASE, dirty=True), _TOP),
    "tag": (_BASE, replace(_TOP, snapshots=(InternalSnapshot("1", "tag", 0),))),
    "over the source": (sides().source.active, _TOP),
    "deep": (*[replace(_BASE, path=NEW / str(n)) for n in range(MAX_LAYERS)], _TOP),
}


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize("shape", _SHAPES)
def test_a_shape_that_is_refused(shape: str, trust: bool) -> None:
    with pytest.raises(ChainError, match="vda"):
        plan_mirror_pivot([sides(mirror=Chain(_SHAPES[shape]))], trust, end_facts())


def test_two_disks_need_two_mirrors() -> None:
    one = sides()
    with pytest.raises(BadRequestError, match="another chain"):
        plan_mirror_pivot([one, replace(one, target="vdb")], False, end_facts())


def test_what_both_places_share_is_told() -> None:
    shared = sides(mirror=Chain((sides().source.base, _TOP)))
    notes = plan_mirror_pivot([shared], False, end_facts()).notes
    assert any("used by both places" in note for note in notes)


def test_an_abort_drops_what_is_ours_and_tells_of_the_rest() -> None:
    ours = image(NEW / "new", 4)
    unwanted = [
        Unwanted(target="vda", path=str(ours.path), image=ours),
        Unwanted(target="vdb", path="/b", image=image(Path("/b"), 5), reason="is used"),
        Unwanted(target="vdc", path="/c", image=None),
    ]
    planned = plan_mirror_abort(unwanted, [("vda", sides().source)], end_facts())
    assert [(drop.path, drop.inode) for drop in planned.plan.aftermath.drops] == [(ours.path, 4)]
    assert {pin.path for pin in planned.pins if pin.exclusive} == {ours.path}
    assert [note.split(":")[0] for note in planned.notes] == ["vdb", "vdc"]
    assert planned.moves == ()
