"""Planning a snapshot is a function of its arguments; these hold for all of them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imgtool.model.domain import Disk, Domain, DomainState, Head, SnapshotMode
from imgtool.model.errors import BadRequestError, ExistsError, ImgtoolError
from imgtool.model.image import Chain, Format, Identity, Image, InternalSnapshot, Qcow2Features
from imgtool.model.plan import ChangeInPlace, CreateOverlay, PutRecord, SetCurrent
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.plan.names import MAX_NAME, backing_name, check_snapshot_name, overlay_path
from imgtool.plan.select import select
from imgtool.plan.snapshot import MAX_LAYERS, Facts, Place, SnapshotPlan, plan_snapshot
from imgtool.testing.strategies import qcow2_features, snapshot_names

TARGETS = ("vda", "vdb", "vdc", "vdd")
TXID = "0123456789abcdef"
FOLDER = Path("/images")

modes = st.sampled_from((SnapshotMode.NO, SnapshotMode.INTERNAL, SnapshotMode.EXTERNAL))
asked_modes = st.dictionaries(st.sampled_from(TARGETS), modes, max_size=4)
paths = st.lists(
    st.text(st.sampled_from("ab:,. é-"), min_size=1, max_size=4).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=4,
).map(lambda parts: Path("/", *parts))


def image(
    number: int,
    *,
    size: int = 1 << 20,
    features: Qcow2Features | None = None,
    tags: tuple[str, ...] = (),
    bitmaps: tuple[str, ...] = (),
) -> Image:
    return Image(
        path=FOLDER / f"disk-{number}.qcow2",
        format=Format.QCOW2,
        virtual_size=size,
        allocation=size,
        identity=Identity(1, number, size, 0),
        features=features or Qcow2Features(),
        snapshots=tuple(InternalSnapshot(str(i), tag, 0) for i, tag in enumerate(tags, start=1)),
        bitmaps=bitmaps,
    )


def facts_of(
    images: Mapping[str, Image], name: str, *, current: str | None = None, metadata: bool = True
) -> Facts:
    disks = tuple(
        Disk(target=target, source=one.path, format=one.format, format_name=one.format)
        for target, one in images.items()
    )
    head = Head(domain=Domain(name="vm", uuid="u", disks=disks), xml=b"<domain/>", digest="d")
    return Facts(
        head=head,
        store="dir:/store",
        txid=TXID,
        workspace=Path("/state/u") / TXID,
        created=1_700_000_000,
        chains={target: Chain((one,)) for target, one in images.items()},
        places={
            target: Place(overlay=FOLDER / f"{target}.{name}", folder=FOLDER, taken=False)
            for target in images
        },
        current=current,
        metadata=metadata,
    )


def plan(
    facts: Facts, name: str, asked: Mapping[str, SnapshotMode], *, disk_only: bool = False
) -> SnapshotPlan:
    specs = tuple(SnapshotDisk(name=target, mode=mode) for target, mode in asked.items())
    request = SnapshotRequest(name=name, disks=specs)
    choices = select(request, facts.head.domain, DomainState.SHUTOFF, disk_only=disk_only)
    return plan_snapshot(request, choices, facts)


def four(features: Qcow2Features | None = None) -> dict[str, Image]:
    return {target: image(number, features=features) for number, target in enumerate(TARGETS)}


@given(asked=asked_modes, disk_only=st.booleans(), name=snapshot_names())
def test_every_disk_that_takes_part_has_one_step(
    asked: dict[str, SnapshotMode], disk_only: bool, name: str
) -> None:
    assume(set(asked.values()) != {SnapshotMode.NO} or len(asked) < len(TARGETS))
    default = SnapshotMode.EXTERNAL if disk_only else SnapshotMode.INTERNAL
    made = plan(facts_of(four(), name), name, asked, disk_only=disk_only)
    wanted = {target: asked.get(target, default) for target in TARGETS}
    steps = {step.target: type(step) for step in made.plan.steps}
    kinds = {SnapshotMode.INTERNAL: ChangeInPlace, SnapshotMode.EXTERNAL: CreateOverlay}
    assert steps == {t: kinds[mode] for t, mode in wanted.items() if mode in kinds}
    assert len(made.plan.steps) == len(steps)
    assert {disk.name: disk.mode for disk in made.snapshot.disks} == wanted
    moved = {t for t, mode in wanted.items() if mode is SnapshotMode.EXTERNAL}
    assert {move.target for move in made.moves} == moved
    assert {disk.name for disk in made.snapshot.disks if disk.source} == moved
    assert {pin.target for pin in made.pins} == set(steps)
    changed = {pin.target for pin in made.pins if pin.exclusive}
    assert changed == {t for t, kind in steps.items() if kind is ChangeInPlace}
    assert {space.target for space in made.space} == set(steps)
    assert all(space.size > 0 for space in made.space)


@given(asked=asked_modes, name=snapshot_names())
def test_nothing_the_plan_creates_shares_a_path(asked: dict[str, SnapshotMode], name: str) -> None:
    assume(set(asked.values()) != {SnapshotMode.NO} or len(asked) < len(TARGETS))
    images = four()
    made = plan(facts_of(images, name), name, asked).plan
    created = [path for step in made.overlays for path in (step.staged, step.overlay)]
    created += [path for change in made.changes for path in (change.redo, change.undo)]
    assert len(set(created)) == len(created)
    assert not set(created) & {one.path for one in images.values()}
    for step in made.overlays:
        assert step.staged.parent == step.overlay.parent  # one file system, for link(2)
        assert TXID in step.staged.name
        assert len(os.fsencode(step.staged.name)) <= MAX_NAME
    for change in made.changes:
        assert change.redo.parent == change.undo.parent == made.workspace


@given(
    features=qcow2_features().filter(lambda one: one.refcount_bits > 1),
    size=st.integers(0, 1 << 30).map(lambda n: n * 512),
    name=snapshot_names(),
)
def test_an_overlay_takes_over_what_the_guest_and_qemu_see(
    features: Qcow2Features, size: int, name: str
) -> None:
    base = image(0, size=size, features=features)
    made = plan(facts_of({"vda": base}, name), name, {"vda": SnapshotMode.EXTERNAL})
    (step,) = made.plan.overlays
    assert (step.virtual_size, step.features) == (size, features)
    assert (step.base, step.base_format, step.backing) == (base.path, "qcow2", str(base.path))


@given(name=snapshot_names(), current=st.none() | snapshot_names(), metadata=st.booleans())
def test_the_record(name: str, current: str | None, metadata: bool) -> None:
    facts = facts_of(four(), name, current=current, metadata=metadata)
    made = plan(facts, name, {})
    assert (made.snapshot.name, made.snapshot.parent) == (name, current)
    assert (made.snapshot.state, made.snapshot.memory) == ("shutoff", "no")
    assert made.snapshot.transaction == TXID
    wanted = (PutRecord(name=name), SetCurrent(name=name, previous=current)) if metadata else ()
    assert made.plan.records == wanted


@given(name=snapshot_names(), target=st.sampled_from(TARGETS), mode=modes)
def test_a_tag_anywhere_in_the_plan_is_taken(name: str, target: str, mode: SnapshotMode) -> None:
    images = four() | {target: image(TARGETS.index(target), tags=(name,))}
    facts = facts_of(images, name)
    if mode is SnapshotMode.NO:
        plan(facts, name, {target: mode})  # that disk is not in the plan
        return
    with pytest.raises(ExistsError, match=target):
        plan(facts, name, {target: mode})


@given(pair=st.permutations(TARGETS).map(lambda order: order[:2]), mode=modes)
def test_no_disk_in_the_plan_shares_its_file(pair: list[str], mode: SnapshotMode) -> None:
    one, other = pair
    images = four()
    facts = facts_of(images, "s1")
    shared = Chain((images[one], images[other]))  # an overlay over the other's active layer
    chains = {**facts.chains, other: shared}
    with pytest.raises(BadRequestError, match=f"{one} and {other} use one file"):
        plan(replace(facts, chains=chains), "s1", {other: mode})


@given(layers=st.integers(1, MAX_LAYERS + 3), mode=modes)
def test_no_chain_gets_deeper_than_qemu_opens(layers: int, mode: SnapshotMode) -> None:
    assume(mode is not SnapshotMode.NO)
    facts = facts_of({"vda": image(0)}, "s1")
    chain = Chain(tuple(image(number) for number in range(layers)))
    facts = replace(facts, chains={"vda": chain})
    if mode is SnapshotMode.EXTERNAL and layers >= MAX_LAYERS:
        with pytest.raises(BadRequestError, match=r"vda: .* 200 layers deep"):
            plan(facts, "s1", {"vda": mode})
        return
    made = plan(facts, "s1", {"vda": mode})
    assert len(made.pins) == layers


@given(bitmaps=st.lists(st.text("ab-1", min_size=1, max_size=5), unique=True, max_size=3))
def test_bitmaps_that_stay_behind_are_noted(bitmaps: list[str]) -> None:
    facts = facts_of({"vda": image(0, bitmaps=tuple(bitmaps))}, "s1")
    external = plan(facts, "s1", {"vda": SnapshotMode.EXTERNAL})
    assert len(external.notes) == bool(bitmaps)
    assert all(name in external.notes[0] for name in bitmaps)
    assert plan(facts, "s1", {"vda": SnapshotMode.INTERNAL}).notes == ()


@given(base=paths, folder=paths)
def test_a_relative_backing_name_leads_back(base: Path, folder: Path) -> None:
    name = backing_name(base, folder, relative=True)
    assert not name.startswith("/")
    assert ":" not in name.partition("/")[0]  # QEMU would take that for a protocol
    assert os.path.normpath(f"{folder}/{name}") == str(base)
    assert backing_name(base, folder, relative=False) == str(base)


@given(
    stem=st.text(st.sampled_from("ab.é -"), min_size=1, max_size=8).filter(
        lambda text: text not in (".", "..")
    ),
    name=snapshot_names(),
)
def test_generated_names_follow_libvirt(stem: str, name: str) -> None:
    source = Path("/images.d") / stem
    path = overlay_path(Disk(target="vda", source=source), name, regular_file=True)
    wanted = stem[: stem.rindex(".")] if "." in stem else stem
    assert str(path) == f"/images.d/{wanted}.{name}"


@pytest.mark.parametrize(
    ("source", "overlay"),
    [
        ("/a.b/root.qcow2", "/a.b/root.s1"),
        ("/a.b/raw", "/a.b/raw.s1"),
        ("/a/x.tar.gz", "/a/x.tar.s1"),
        ("/a/.hidden", "/a/.s1"),
        ("/a/end.", "/a/end.s1"),
    ],
)
def test_libvirt_s_examples(source: str, overlay: str) -> None:
    made = overlay_path(Disk(target="vda", source=Path(source)), "s1", regular_file=True)
    assert made == Path(overlay)


@given(name=st.text(max_size=300))
def test_names_are_refused_or_safe(name: str) -> None:
    try:
        check_snapshot_name(name)
    except ImgtoolError:
        return
    assert 0 < len(name.encode()) <= MAX_NAME - len(".xml")
    assert "/" not in name
    assert name[0] not in ".-"
    assert all(ord(each) >= 32 for each in name)
