"""A hypothesis state machine: random operations against real images, and a model of each.

    class TestMine(SnapshotMachine.TestCase):
        settings = settings(max_examples=10, stateful_step_count=30, deadline=None)

After every step all disks, now and at each snapshot, are read through qemu-img and compared. Any
rule may come with trouble: a crash or an error at the n-th effect, or somebody else in between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from imgtool import api
from imgtool.engine.world import World
from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import ChainError, ImgtoolError, LossError, UnsupportedError
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing.mirroring import Mirrors
from imgtool.testing.moments import Expected
from imgtool.testing.rig import Operation, recovery
from imgtool.testing.stage import DOMAIN, MAX_DISKS, MAX_EFFECTS, MAX_SIZE, seldom
from imgtool.testing.strategies import disk_modes, guest_writes, snapshot_prefixes, troubles
from imgtool.testing.trouble import GuestWrite, Trouble

MAX_SNAPSHOTS = 8  # each is read after every step
NO, INTERNAL, EXTERNAL = SnapshotMode.NO, SnapshotMode.INTERNAL, SnapshotMode.EXTERNAL


class SnapshotMachine(Mirrors):
    """Snapshots, too. Another operation is another rule that calls `perform`."""

    def __init__(self) -> None:
        super().__init__()
        self._names = 0

    @precondition(lambda self: self.settled and len(self.expected.moments) < MAX_SNAPSHOTS)
    @rule(
        prefix=snapshot_prefixes(),
        relative=st.booleans(),
        trouble=troubles(max_effects=MAX_EFFECTS),
    )
    def create_external(self, prefix: str, relative: bool, trouble: Trouble) -> None:
        """Of all disks."""
        chosen = self._by_target([EXTERNAL] * MAX_DISKS)
        self.take(self._new_name(prefix), chosen, trouble, relative=relative)

    @precondition(lambda self: self.settled and len(self.expected.moments) < MAX_SNAPSHOTS)
    @rule(
        left_out=st.integers(0, MAX_DISKS - 1),
        prefix=snapshot_prefixes(),
        relative=st.booleans(),
        trouble=troubles(max_effects=MAX_EFFECTS),
    )
    def create_external_of_some(
        self, left_out: int, prefix: str, relative: bool, trouble: Trouble
    ) -> None:
        """Of all disks but one; refused if there is no other."""
        some = [NO if number == left_out else EXTERNAL for number in range(MAX_DISKS)]
        chosen = self._by_target(some)
        self.take(self._new_name(prefix), chosen, trouble, relative=relative)

    @precondition(lambda self: self.settled and len(self.expected.moments) < MAX_SNAPSHOTS)
    @rule(prefix=snapshot_prefixes(), trouble=troubles(max_effects=MAX_EFFECTS))
    def create_internal(self, prefix: str, trouble: Trouble) -> None:
        """Of all disks that can have one; refused if none can."""
        able = [INTERNAL if place.internal else NO for place in self.expected.active.values()]
        self.take(self._new_name(prefix), self._by_target(able), trouble)

    @precondition(lambda self: self.settled and len(self.expected.moments) < MAX_SNAPSHOTS)
    @rule(
        modes=disk_modes(max_disks=MAX_DISKS),
        prefix=snapshot_prefixes(),
        relative=st.booleans(),
        trouble=troubles(max_effects=MAX_EFFECTS),
    )
    def create_mixed(
        self, modes: list[SnapshotMode], prefix: str, relative: bool, trouble: Trouble
    ) -> None:
        """Any mode for any disk, possible or not."""
        self.take(self._new_name(prefix), self._by_target(modes), trouble, relative=relative)

    @precondition(lambda self: self.settled and self.expected.moments and seldom("again")(self))
    @rule(number=st.integers(0, MAX_SNAPSHOTS), trouble=troubles(max_effects=MAX_EFFECTS))
    def create_again(self, number: int, trouble: Trouble) -> None:
        """With a name that is taken: refused."""
        self.rig.events["again"] += 1
        moment = self.expected.moments[number % len(self.expected.moments)]
        self.take(moment.name, self._by_target([EXTERNAL] * 3), trouble)

    @precondition(lambda self: self.settled and self.expected.moments)
    @rule(
        number=st.integers(0, MAX_SNAPSHOTS),
        force=st.booleans(),
        keep=st.booleans(),
        trouble=troubles(max_effects=MAX_EFFECTS),
    )
    def revert(self, number: int, force: bool, keep: bool, trouble: Trouble) -> None:
        """To any snapshot; what was written since is kept, or dropped, or is a reason not to."""
        name = self.expected.moments[number % len(self.expected.moments)].name
        kept = self._new_name("kept") if keep else ""
        options = api.RevertOptions(force=force, keep_as=kept)
        operation = Operation(
            name="revert",
            work=lambda world: api.revert_to(world, DOMAIN, name, options),
            change=partial(Expected.reverted, name=name, keep=kept, force=force),
            may_refuse=(*self._too_large(name), *(() if force or keep else (LossError,))),
            learns=True,
        )
        self.rig.perform(operation, trouble)

    @precondition(lambda self: self.settled and self.expected.moments)
    @rule(number=st.integers(0, MAX_SNAPSHOTS), trouble=troubles(max_effects=MAX_EFFECTS))
    def delete(self, number: int, trouble: Trouble) -> None:
        """Any snapshot: what it froze is merged, pulled or dropped; all else reads as before."""
        name = self.expected.moments[number % len(self.expected.moments)].name
        operation = Operation(
            name="delete",
            work=lambda world: api.delete_snapshot(world, DOMAIN, name, api.DeleteOptions()),
            change=partial(Expected.without, name=name),
            learns=True,
        )
        self.rig.perform(operation, trouble)

    @precondition(lambda self: self.settled and seldom("forget: done")(self))
    @rule(number=st.integers(0, MAX_SNAPSHOTS))
    def forget(self, number: int) -> None:
        """The record of a snapshot; its images stay, and nobody holds them any more.

        What has a state inside would keep a tag that no model knows of.
        """
        names = [
            moment.name for moment in self.expected.moments if INTERNAL not in moment.modes.values()
        ]
        if not names:
            return
        name = names[number % len(names)]
        options = api.DeleteOptions(metadata=True)
        operation = Operation(
            name="forget",
            work=lambda world: api.delete_snapshot(world, DOMAIN, name, options),
            change=partial(Expected.forgotten, name=name),
            pivots=False,
            learns=True,
        )
        self.rig.perform(operation)

    @rule(
        writes=st.lists(
            guest_writes(max_disks=MAX_DISKS, max_size=MAX_SIZE), min_size=1, max_size=4
        )
    )
    def guest_write(self, writes: list[tuple[int, int, int, int]]) -> None:
        """Through the active layer; after a crash, too, wherever QEMU opens the image."""
        for disk, sector, sectors, byte in writes:
            target = list(self.expected.active)[disk % len(self.expected.active)]
            total = len(self.expected.contents[target]) // 512
            first = sector % total
            length = min(sectors, total - first) * 512
            self.rig.write(GuestWrite(target, first * 512, length, byte))

    @precondition(lambda self: self.rig.disturbed or seldom("recover: done")(self))
    @rule(trouble=troubles(max_effects=MAX_EFFECTS))
    def recover(self, trouble: Trouble) -> None:
        """Twice the same is harmless; it may be killed as well."""
        self.rig.perform(recovery(), trouble)

    @precondition(seldom("edit"))
    @rule()
    def edit(self) -> None:
        """Somebody edits the XML, whether a transaction is pending or not."""
        self.rig.edit()

    @precondition(seldom("look: done"))
    @rule(modes=disk_modes(max_disks=MAX_DISKS))
    def look(self, modes: list[SnapshotMode]) -> None:
        """Listing and --dry-run change nothing, whatever state the domain is in."""
        options = api.SnapshotOptions(dry_run=True)
        chosen = self._by_target(modes)

        def work(world: World) -> None:
            api.snapshots(world, DOMAIN)
            api.pending(world, DOMAIN)
            with suppress(*[ChainError] * self.rig.disturbed):  # half overwritten, and blocked
                api.chains(world, DOMAIN)
            if not self.rig.disturbed and self.expected.refusal("", chosen) is None:
                api.take_snapshot(world, DOMAIN, _request("dry", chosen), options)

        self.rig.perform(Operation(name="look", work=work, pivots=False, recovers=False))

    def take(
        self,
        name: str,
        chosen: Mapping[str, SnapshotMode],
        trouble: Trouble,
        *,
        relative: bool = False,
    ) -> None:
        """A snapshot, in trouble."""
        options = api.SnapshotOptions(relative=relative)
        change = partial(Expected.with_snapshot, name=name, modes=chosen, relative=relative)
        operation = Operation(
            name="snapshot",
            work=lambda world: api.take_snapshot(world, DOMAIN, _request(name, chosen), options),
            change=change,
            refusal=self.expected.refusal(name, chosen),
        )
        self.rig.perform(operation, trouble)

    def _too_large(self, name: str) -> tuple[type[ImgtoolError], ...]:
        """What cannot be copied out of an image that has become smaller is refused."""
        sizes: dict[str, set[int]] = {
            target: {len(data)} for target, data in self.expected.contents.items()
        }
        for moment in self.expected.moments:
            for target, data in moment.contents.items():
                sizes[target].add(len(data))
        tagged = [
            target
            for target, place in self.expected.moment(name).places.items()
            if place.tag is not None and len(sizes[target]) > 1
        ]
        return (UnsupportedError,) if tagged else ()

    def _by_target(self, modes: Sequence[SnapshotMode]) -> dict[str, SnapshotMode]:
        return dict(zip(self.expected.active, modes, strict=False))

    def _new_name(self, prefix: str) -> str:
        self._names += 1
        return f"{prefix}{self._names}"


def _request(name: str, chosen: Mapping[str, SnapshotMode]) -> SnapshotRequest:
    disks = tuple(SnapshotDisk(name=target, mode=mode) for target, mode in chosen.items())
    return SnapshotRequest(name=name, disks=disks)
