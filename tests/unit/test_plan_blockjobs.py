"""Planning block jobs is a function of its arguments; these hold for all chains."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.model.domain import Disk, Domain, Head, SnapshotMode
from imgtool.model.errors import BadRequestError, ImgtoolError, LossError, UnsupportedError
from imgtool.model.image import Chain, Format, Identity, Image, Qcow2Features
from imgtool.model.plan import ChangeInPlace, MergeDown, PullImage, ResizeRaw
from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.plan.blockcommit import CommitRequest, plan_commit
from imgtool.plan.blockjob import JobFacts, JobPlan
from imgtool.plan.blockpull import PullRequest, plan_pull
from imgtool.plan.lineage import Held, Lineage, Stranger
from imgtool.plan.rebase import RebaseRequest, plan_rebase
from imgtool.plan.resize import ResizeRequest, Shrinking, plan_resize

FOLDER = Path("/images")
SIZE = 1 << 20


def layer(number: int, base: Image | None, *, relative: bool = False, **more: Any) -> Image:
    path = FOLDER / f"layer-{number}"
    name = None if base is None else base.path.name if relative else os.fspath(base.path)
    image = Image(
        path=path,
        format=Format.QCOW2,
        virtual_size=SIZE,
        allocation=SIZE // 2,
        identity=Identity(1, number + 1, SIZE, 0),
        features=Qcow2Features(),
        backing=name,
        backing_format=None if base is None else str(base.format),
    )
    return replace(image, **more)


def chain_of(length: int, *, relative: bool = False) -> Chain:
    images: list[Image] = []
    for number in range(length):
        images.append(layer(number, images[-1] if images else None, relative=relative))
    return Chain(tuple(images))


def facts_of(
    chain: Chain, held: Mapping[str, Held] | None = None, strangers: tuple[Stranger, ...] = ()
) -> JobFacts:
    top = chain.active
    disk = Disk(target="vda", source=top.path, format=top.format, format_name=top.format)
    head = Head(domain=Domain(name="vm", uuid="u", disks=(disk,)), xml=b"<domain/>", digest="d")
    return JobFacts(
        head=head,
        store="dir:/store",
        txid="0123456789abcdef",
        workspace=Path("/state/u/0123456789abcdef"),
        lineage=Lineage(current={"vda": chain}, held=held or {}, strangers=strangers),
        chains={"vda": chain},
        writable=frozenset(image.path for image in chain.images),
        folders={FOLDER: FOLDER},
    )


def snapshot_of(chain: Chain, mode: SnapshotMode) -> Held:
    disks = (SnapshotDisk(name="vda", mode=mode),)
    return Held(
        snapshot=Snapshot(name="s", created=0, disks=disks), disks=(), chains={"vda": chain}
    )


def exclusive(planned: JobPlan) -> set[Path]:
    return {pin.path for pin in planned.pins if pin.exclusive}


@st.composite
def spans(draw: st.DrawFn) -> tuple[Chain, int, int]:
    """A chain, a base in it and a top above."""
    length = draw(st.integers(2, 6))
    top = draw(st.integers(1, length - 1))
    base = draw(st.integers(0, top - 1))
    return chain_of(length, relative=draw(st.booleans())), base, top


def commit(chain: Chain, base: int, top: int, facts: JobFacts, **how: bool) -> JobPlan:
    request = CommitRequest(
        base=chain.images[base].path,
        top=chain.images[top].path,
        active=top == len(chain.images) - 1,
        **how,
    )
    return plan_commit(("vda",), request, facts)


@given(span=spans(), delete=st.booleans(), keep=st.booleans())
def test_a_commit_moves_its_span_and_nothing_else(
    span: tuple[Chain, int, int], delete: bool, keep: bool
) -> None:
    chain, base, top = span
    active = top == len(chain.images) - 1
    planned = commit(chain, base, top, facts_of(chain), delete=delete, keep_overlay=keep and active)
    (merge,) = planned.plan.steps
    assert isinstance(merge, MergeDown)
    merged = [image.path for image in chain.images[base : top + 1]]
    assert [node.path for node in merge.layers] == merged
    late = planned.plan.aftermath
    stays = keep and active
    removed = [drop.path for drop in reversed(late.drops)]
    assert removed == (merged[1:] if delete and not stays else [])
    (move,) = planned.moves
    assert move.path == (merged[0] if active and not stays else chain.active.path)
    assert not move.over
    above = [] if active else [chain.images[top + 1].path]
    assert [relink.image for relink in late.relinks] == above
    for relink in late.relinks:
        assert FOLDER / relink.backing == merged[0]
        was = chain.images[top + 1].backing or ""
        assert Path(relink.backing).is_absolute() is Path(was).is_absolute()
    assert exclusive(planned) == {*merged, *above}
    assert {pin.path for pin in planned.pins} == {image.path for image in chain.images}


@given(span=spans(), data=st.data())
def test_a_commit_that_would_change_a_snapshot_is_refused(
    span: tuple[Chain, int, int], data: st.DataObject
) -> None:
    chain, base, top = span
    frozen = data.draw(st.integers(0, len(chain.images) - 1))
    held = snapshot_of(Chain(chain.images[: frozen + 1]), SnapshotMode.EXTERNAL)
    facts = facts_of(chain, {"s": held})
    if base <= frozen < top:
        with pytest.raises(UnsupportedError, match="snapshot s would change"):
            commit(chain, base, top, facts)
    else:
        planned = commit(chain, base, top, facts, delete=True)
        dropped = {drop.path for drop in planned.plan.aftermath.drops}
        assert not dropped & {image.path for image in held.chains["vda"].images} or frozen > top
        assert bool(dropped) is (frozen != top)


@given(span=spans(), data=st.data())
def test_a_commit_that_would_change_a_stranger_is_refused(
    span: tuple[Chain, int, int], data: st.DataObject
) -> None:
    chain, base, top = span
    forked = data.draw(st.integers(0, len(chain.images) - 1))
    below = chain.images[: forked + 1]
    stranger = Stranger(who="domain other", chain=Chain((*below, layer(99, below[-1]))))
    facts = facts_of(chain, strangers=(stranger,))
    if base <= forked < top:
        with pytest.raises(UnsupportedError, match="domain other would change"):
            commit(chain, base, top, facts)
    else:
        planned = commit(chain, base, top, facts, delete=True)
        assert bool(planned.plan.aftermath.drops) is (forked != top)
        assert bool(planned.notes) is (forked == top)


@given(span=spans(), data=st.data())
def test_what_a_snapshot_names_without_holding_it_stays(
    span: tuple[Chain, int, int], data: st.DataObject
) -> None:
    """Its disk took no part, but virsh would go back to that domain XML."""
    chain, base, top = span
    named = data.draw(st.integers(0, len(chain.images) - 1))
    held = snapshot_of(Chain(chain.images[: named + 1]), SnapshotMode.NO)
    planned = commit(chain, base, top, facts_of(chain, {"s": held}), delete=True)
    dropped = {drop.path for drop in planned.plan.aftermath.drops}
    if named <= top:
        assert not dropped & {image.path for image in held.chains["vda"].images}
    assert bool(planned.notes) is (base < named <= top)


@given(span=spans())
def test_a_tag_in_the_base_is_no_reason_to_refuse(span: tuple[Chain, int, int]) -> None:
    chain, base, top = span
    held = snapshot_of(Chain(chain.images[: base + 1]), SnapshotMode.INTERNAL)
    assert commit(chain, base, top, facts_of(chain, {"s": held})).plan.steps


@given(length=st.integers(2, 6), relative=st.booleans(), data=st.data())
def test_a_pull_writes_the_active_layer_alone(
    length: int, relative: bool, data: st.DataObject
) -> None:
    chain = chain_of(length, relative=relative)
    base = data.draw(st.none() | st.integers(0, length - 2))
    path = None if base is None else chain.images[base].path
    planned = plan_pull(("vda",), PullRequest(base=path), facts_of(chain))
    if base == length - 2:
        assert planned.empty
        return
    (step,) = planned.plan.steps
    assert isinstance(step, PullImage)
    assert step.image == chain.active.path
    assert (FOLDER / step.backing if step.backing else None) == path
    assert step.old_backing == chain.active.backing
    assert exclusive(planned) == {chain.active.path}
    assert not planned.plan.aftermath.drops
    pulled = length - 1 - (0 if base is None else base + 1)
    (space,) = planned.space
    assert 0 < space.size <= pulled * SIZE // 2


@given(
    fmt=st.sampled_from((Format.RAW, Format.QCOW2)),
    size=st.integers(1, 4096).map(lambda n: n * 512),
    shrinking=st.sampled_from(Shrinking),
)
def test_a_resize_never_cuts_unasked(fmt: Format, size: int, shrinking: Shrinking) -> None:
    chain = Chain((layer(0, None, format=fmt),))
    request = ResizeRequest(size=size, shrinking=shrinking)
    if size < SIZE and shrinking is not Shrinking.CUT:
        with pytest.raises((LossError, BadRequestError)):
            plan_resize("vda", request, facts_of(chain))
        return
    planned = plan_resize("vda", request, facts_of(chain))
    assert planned.empty is (size == SIZE)
    late = planned.plan.aftermath
    for cut in late.cuts:
        assert fmt is Format.RAW
        assert (cut.old_size, cut.new_size) == (SIZE, size)
        assert size < SIZE, "what grows must have an undo"
    for step in planned.plan.steps:
        if isinstance(step, ResizeRaw):
            assert step.new_size > step.old_size, "what cuts has no undo"
        else:
            assert isinstance(step, ChangeInPlace)
            assert step.commands[0][-2:] == ("--", str(size))
            assert ("--shrink" in step.commands[0]) is (size < SIZE)


def test_a_resize_sees_the_base_where_it_reaches_further() -> None:
    base = layer(0, None, virtual_size=2 * SIZE)
    chain = Chain((base, layer(1, base)))
    planned = plan_resize("vda", ResizeRequest(size=3 * SIZE), facts_of(chain))
    (step,) = planned.plan.changes
    assert [node.path for node in step.below] == [base.path]


@given(length=st.integers(2, 6), now=st.booleans(), relative=st.booleans())
def test_a_rebase_changes_all_names_or_none(length: int, now: bool, relative: bool) -> None:
    chain = chain_of(length, relative=now)
    planned = plan_rebase("vda", RebaseRequest(relative=relative), facts_of(chain))
    assert planned.empty is (now is relative)
    changed = {step.image: step.commands[0][-1] for step in planned.plan.changes}
    for base, overlay in zip(chain.images, chain.images[1:], strict=False):
        wanted = base.path.name if relative else os.fspath(base.path)
        assert changed.get(overlay.path, overlay.backing) == wanted
    assert exclusive(planned) == set(changed)


@given(length=st.integers(3, 6), data=st.data())
def test_what_blocks_a_chain_is_its_active_layer(length: int, data: st.DataObject) -> None:
    """QEMU opens inner layers read-only, and would not mind one that is half changed."""
    images = list(chain_of(length, relative=True).images)
    odd = data.draw(st.integers(1, length - 2))
    images[odd] = replace(images[odd], backing=os.fspath(images[odd - 1].path))
    chain = Chain(tuple(images))
    planned = plan_rebase("vda", RebaseRequest(relative=True), facts_of(chain))
    changed = {step.image for step in planned.plan.changes}
    assert changed == {images[odd].path, chain.active.path}


JOBS: dict[str, Callable[[JobFacts], JobPlan]] = {
    "commit": lambda facts: plan_commit(("vda",), CommitRequest(active=True), facts),
    "pull": lambda facts: plan_pull(("vda",), PullRequest(), facts),
    "resize": lambda facts: plan_resize("vda", ResizeRequest(size=2 * SIZE), facts),
    "rebase": lambda facts: plan_rebase("vda", RebaseRequest(relative=True), facts),
}


@pytest.mark.parametrize("mark", ["corrupt", "dirty"])
@pytest.mark.parametrize("job", JOBS)
def test_a_damaged_active_layer_is_refused(job: str, mark: str) -> None:
    base = layer(0, None)
    chain = Chain((base, layer(1, base, **{mark: True})))
    with pytest.raises(ImgtoolError, match=f"layer-1 is marked {mark}"):
        JOBS[job](facts_of(chain))


@pytest.mark.parametrize("job", JOBS)
def test_a_part_of_a_file_is_refused(job: str) -> None:
    facts = facts_of(chain_of(2))
    disk = replace(facts.head.domain.disks[0], sliced=True)
    head = replace(facts.head, domain=replace(facts.head.domain, disks=(disk,)))
    with pytest.raises(UnsupportedError, match="slices"):
        JOBS[job](replace(facts, head=head))


@pytest.mark.parametrize("job", JOBS)
def test_an_image_that_is_not_to_be_written_is_refused(job: str) -> None:
    facts = replace(facts_of(chain_of(2)), writable=frozenset())
    with pytest.raises(UnsupportedError, match="cannot be written"):
        JOBS[job](facts)
