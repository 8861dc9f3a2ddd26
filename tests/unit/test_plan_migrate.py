"""Planning a migration is a function of its arguments; these hold for all trees of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.model.domain import Disk, Domain, Head, SnapshotMode
from imgtool.model.errors import BadRequestError, ChainError, UnsupportedError
from imgtool.model.image import Chain, Format, Identity, Image, Qcow2Features
from imgtool.model.plan import CopyLayer, FlattenImage
from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.plan.lineage import Held, Lineage, Stranger
from imgtool.plan.migrate import MigrateFacts, MigratePlan, MigrateRequest, plan_migrate
from imgtool.plan.repointing import Settled, repointed

TO = Path("/new")
NAMES = ("disk", "disk.qcow2", "a:b", "-x", "base,1", "top.s1")
RECORD = b"<domain><name>vm</name></domain>"


@st.composite
def trees(draw: st.DrawFn) -> list[Image]:
    """Images, each over an earlier one or none; several have one name, in different folders."""
    images: list[Image] = []
    for number in range(draw(st.integers(1, 8))):
        base = draw(st.sampled_from([None, *images]))
        folder = Path(draw(st.sampled_from(["/a", "/b", "/c/d"]))) / str(number)
        image = image_at(folder / draw(st.sampled_from(NAMES)), number, base)
        images.append(image)
    return images


def image_at(path: Path, number: int, base: Image | None, **more: Any) -> Image:
    relative = number % 2
    name = None
    if base is not None:
        name = os.path.relpath(base.path, path.parent) if relative else str(base.path)
    fields: dict[str, Any] = {
        "path": path,
        "format": Format.QCOW2,
        "virtual_size": 1 << 20,
        "allocation": 1000 + number,
        "identity": Identity(1, number + 1, 1 << 20, 0),
        "features": Qcow2Features(),
        "backing": name,
        "backing_format": None if base is None else "qcow2",
    }
    return Image(**(fields | more))


def chain_to(image: Image, images: list[Image]) -> Chain:
    layers = [image]
    while (recorded := layers[-1].backing) is not None:
        path = Path(os.path.normpath(layers[-1].path.parent / recorded))
        layers.append(next(each for each in images if each.path == path))
    return Chain(tuple(reversed(layers)))


def facts_of(
    chains: dict[str, Chain],
    held: dict[str, Held] | None = None,
    *,
    moving: list[str] | None = None,
    strangers: tuple[Stranger, ...] = (),
    folder: Path = TO,
) -> MigrateFacts:
    disks = tuple(
        Disk(target=target, source=chain.active.path, format=chain.active.format)
        for target, chain in chains.items()
    )
    head = Head(domain=Domain(name="vm", uuid="u", disks=disks), xml=b"<domain/>", digest="d")
    return MigrateFacts(
        head=head,
        store="dir:/store",
        txid="0123456789abcdef",
        workspace=Path("/state/u/0123456789abcdef"),
        lineage=Lineage(current=chains, held=held or {}, strangers=strangers),
        chains={target: chains[target] for target in moving or chains},
        folder=folder,
        taken=frozenset(),
        files={},
        records=dict.fromkeys(held or {}, "<domainsnapshot/>"),
        inactive={},
    )


def snapshot_of(name: str, target: str, chain: Chain, mode: SnapshotMode) -> Held:
    snapshot = Snapshot(
        name=name, created=0, disks=(SnapshotDisk(name=target, mode=mode),), domain_xml=RECORD
    )
    return Held(snapshot=snapshot, disks=(), chains={target: chain})


def copies(planned: MigratePlan) -> list[CopyLayer]:
    return [step for step in planned.plan.steps if isinstance(step, CopyLayer)]


@given(images=trees(), data=st.data())
def test_every_layer_is_copied_once_and_leads_to_its_base(
    images: list[Image], data: st.DataObject
) -> None:
    tops = data.draw(st.lists(st.sampled_from(images), min_size=1, max_size=3))
    frozen = data.draw(st.lists(st.sampled_from(images), max_size=3))
    chains = {f"vd{n}": chain_to(top, images) for n, top in enumerate(tops)}
    held = {
        f"s{n}": snapshot_of(f"s{n}", "vd0", chain_to(image, images), SnapshotMode.EXTERNAL)
        for n, image in enumerate(frozen)
    }
    planned = plan_migrate(MigrateRequest(to=TO), facts_of(chains, held))
    needed = {each.path for image in (*tops, *frozen) for each in chain_to(image, images).images}
    made = copies(planned)
    assert {step.source for step in made} == needed
    assert len(made) == len(needed)
    places = {step.source: step.overlay for step in made}
    assert len(set(places.values())) == len(made)
    assert {place.parent for place in places.values()} == {TO}
    by_path = {image.path: image for image in images}
    for step in made:
        recorded = step.backing or by_path[step.source].backing
        below = chain_to(by_path[step.source], images).images[:-1]
        if below:
            assert recorded is not None
            assert not recorded.startswith("/")
            assert ":" not in recorded.partition("/")[0], "QEMU would take it for a protocol"
            assert Path(os.path.normpath(TO / recorded)) == places[below[-1].path]
    moved = {move.target: move.path for move in planned.moves}
    assert moved == {target: places[chain.active.path] for target, chain in chains.items()}
    for each in planned.snapshots:
        chain = held[each.snapshot.name].chains["vd0"]
        assert [move.path for move in each.moves] == [places[chain.active.path]]
    assert len(planned.snapshots) == len(planned.plan.records) == len(held)
    assert not planned.dropped
    assert len(planned.kept) == len(made)


@given(images=trees(), data=st.data())
def test_only_what_nobody_needs_is_dropped(images: list[Image], data: st.DataObject) -> None:
    tops = data.draw(st.lists(st.sampled_from(images), min_size=2, max_size=3))
    chains = {f"vd{n}": chain_to(top, images) for n, top in enumerate(tops)}
    other = chain_to(data.draw(st.sampled_from(images)), images)
    facts = facts_of(chains, moving=["vd0"], strangers=(Stranger(who="somebody", chain=other),))
    planned = plan_migrate(MigrateRequest(to=TO, delete_source=True), facts)
    staying = [chain for target, chain in chains.items() if target != "vd0"]
    needed = {image.path for chain in (*staying, other) for image in chain.images}
    dropped = list(planned.dropped)
    assert set(dropped) == {image.path for image in chains["vd0"].images} - needed
    assert {each.path for each in planned.kept}.isdisjoint(dropped)
    paths = [image.path for image in chains["vd0"].images]
    assert dropped == [path for path in reversed(paths) if path in dropped], "overlays first"
    assert {pin.path for pin in planned.pins if pin.exclusive} == set(dropped)
    assert all(step.compared for step in copies(planned)), "what goes was read back"


def test_a_disk_that_took_no_part_needs_nothing_of_a_snapshot() -> None:
    images = [image_at(Path("/a/base"), 0, None)]
    images += [image_at(Path(f"/a/{name}"), n, images[0]) for n, name in enumerate("xy", start=1)]
    old, now = (chain_to(image, images) for image in images[1:])
    held = {"s": snapshot_of("s", "vda", old, SnapshotMode.NO)}
    planned = plan_migrate(MigrateRequest(to=TO), facts_of({"vda": now}, held))
    assert [step.source.name for step in copies(planned)] == ["base", "y"]
    assert not planned.snapshots


def test_who_shares_a_disk_is_named() -> None:
    chain = Chain((image_at(Path("/a/shared"), 0, None),))
    facts = facts_of({"vda": chain}, strangers=(Stranger(who="domain two", chain=chain),))
    (note,) = plan_migrate(MigrateRequest(to=TO), facts).notes
    assert note == "vda: domain two uses /a/shared, too, and stays on it"


def test_what_is_flattened() -> None:
    base = image_at(Path("/a/base"), 0, None)
    top = image_at(Path("/a/top"), 2, base, bitmaps=("b",))
    alone = image_at(Path("/a/alone"), 3, None, format=Format.RAW, features=None)
    facts = facts_of({"vda": Chain((base, top)), "vdb": Chain((alone,))})
    planned = plan_migrate(MigrateRequest(to=TO, flatten=True, delete_source=True), facts)
    flat, copy = planned.plan.steps
    assert isinstance(flat, FlattenImage)
    assert (flat.source, flat.overlay, flat.bitmaps) == (top.path, TO / "top", True)
    assert isinstance(copy, CopyLayer), "one layer is copied as it is"
    assert [space.size for space in planned.space] == [2002, 1003]
    assert set(planned.dropped) == {top.path, base.path, alone.path}
    assert [move.format for move in planned.moves] == [Format.QCOW2, Format.RAW]


def test_what_cannot_be_planned() -> None:
    base = image_at(Path("/a/base"), 0, None)
    top = image_at(TO / "top", 2, base)
    with pytest.raises(UnsupportedError, match="is in /new already"):
        plan_migrate(MigrateRequest(to=TO), facts_of({"vda": Chain((base, top))}))
    dirty = image_at(Path("/a/top"), 2, None, dirty=True)
    with pytest.raises(ChainError, match="marked dirty"):
        plan_migrate(MigrateRequest(to=TO), facts_of({"vda": Chain((dirty,))}))
    odd = Path(os.fsdecode(b"/\xff"))
    with pytest.raises(BadRequestError, match="XML cannot hold"):
        plan_migrate(MigrateRequest(to=odd), facts_of({"vda": Chain((base,))}, folder=odd))
    twice = image_at(Path("/a/base2"), 5, None)
    other = Chain((twice, image_at(Path("/a/top"), 2, base)))
    one = Chain((base, image_at(Path("/a/top"), 2, base)))
    with pytest.raises(ChainError, match="has another base"):
        plan_migrate(MigrateRequest(to=TO), facts_of({"vda": one, "vdb": other}))


def test_every_path_in_a_record_goes_along() -> None:
    base, top = image_at(Path("/a/base"), 0, None), image_at(Path("/a/top"), 1, None)
    settled = {base.identity.file: Settled(path=TO / "base", format=Format.RAW)}
    settled[top.identity.file] = Settled(path=TO / "top", format=Format.QCOW2)
    files = {base.path: base.identity.file, top.path: top.identity.file}
    external = SnapshotMode.EXTERNAL
    disks = (
        SnapshotDisk(name="vda", mode=external, driver="qcow2", source="/a/top"),
        SnapshotDisk(name="vda", mode=external, driver="qcow2", source="/a/gone"),
        SnapshotDisk(name="vda", mode=external, driver="qcow2", source="/elsewhere/gone"),
        SnapshotDisk(name="vdb", mode=external, driver="qcow2", source="/a/gone"),
        SnapshotDisk(name="vda", mode=SnapshotMode.INTERNAL),
    )
    held = Held(
        snapshot=Snapshot(name="s", created=0, disks=disks, revert_disks=disks[:1]),
        disks=(),
        chains={"vda": Chain((base,))},
    )
    inactive = (Disk(target="vdx", source=top.path), Disk(target="vdy", source=Path("/other")))
    changed = repointed(held, settled, files, inactive)
    assert changed is not None
    paths = ["/new/top", "/new/gone", "/elsewhere/gone", "/a/gone", ""]
    assert [disk.source for disk in changed.snapshot.disks] == paths
    assert [disk.source for disk in changed.snapshot.revert_disks] == ["/new/top"]
    assert [(move.target, move.path) for move in changed.moves] == [("vda", TO / "base")]
    assert [(move.target, move.path) for move in changed.inactive_moves] == [("vdx", TO / "top")]
    assert repointed(held, {}, files) is None
