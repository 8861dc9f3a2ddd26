"""Mirrored snapshots as rules: taken, guarded, and left by one of the two ways out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from imgtool import api
from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import RefusedError, UnsupportedError
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing.jobs import BlockJobs
from imgtool.testing.moments import Expected
from imgtool.testing.rig import NO_TROUBLE, Operation, recovery
from imgtool.testing.stage import DOMAIN, MAX_DISKS, MAX_EFFECTS, seldom
from imgtool.testing.strategies import troubles
from imgtool.testing.trouble import GuestWrite, Trouble


class Mirrors(BlockJobs):
    """The mirror lies beside the chain, where the layers that it looks for are already."""

    def __init__(self) -> None:
        super().__init__()
        self._mirrors = 0

    @precondition(lambda self: self.settled and seldom("mirror: done")(self))
    @rule(
        disk=st.integers(0, MAX_DISKS),
        pivot=st.booleans(),
        written=st.none() | st.integers(1, 255),
        trouble=troubles(max_effects=MAX_EFFECTS),
        in_the_end=troubles(max_effects=MAX_EFFECTS),
    )
    def mirror(
        self, disk: int, pivot: bool, written: int | None, trouble: Trouble, in_the_end: Trouble
    ) -> None:
        """Take it; a guest may write meanwhile; then go over, or stay. Each in trouble."""
        target = list(self.expected.active)[disk % len(self.expected.active)]
        self._mirrors += 1
        name = f"mirrored{self._mirrors}"
        mirror = self.expected.active[target].path.with_name(f"new{self._mirrors}.qcow2")
        self._in_trouble(self._taking(name, target, mirror), trouble)
        if not self._is_there(name):
            return
        self.rig.perform(self._refused(target))
        if written is not None:
            self.rig.write(GuestWrite(target, 512 * (written % 8), 512, written))
        old = self.expected.active[target].path
        ending = self._ending(name, target, mirror, pivot=pivot)
        self._in_trouble(ending, in_the_end)
        if self._is_there(name):
            self._in_trouble(ending, NO_TROUBLE)
        if pivot:
            self._remove(old)
        self.rig.perform(self._merged(target))

    def _merged(self, target: str) -> Operation:
        """The chain as it was: layers that no snapshot holds would count as somebody else's."""
        top = len(self.expected.chains[target]) - 1
        options = api.CommitOptions(shallow=True, active=True, delete=True)
        return Operation(
            name="commit after a mirror",
            work=lambda world: api.block_commit(world, DOMAIN, [target], options),
            change=partial(Expected.committed, spans={target: (top - 1, top)}, delete=True),
            may_refuse=(UnsupportedError,),  # a snapshot is of the layer below
            learns=True,
        )

    def _remove(self, image: Path) -> None:
        """What was left behind in the old place: it would count as somebody else's overlay."""
        image.unlink()
        expected = self.expected
        self.rig.expected = replace(expected, files=expected.files - {image})

    def _in_trouble(self, operation: Operation, trouble: Trouble) -> None:
        """Until the domain is at rest: what follows is about one that is."""
        self.rig.perform(operation, trouble)
        if self.rig.disturbed:
            self.rig.perform(recovery())

    def _is_there(self, name: str) -> bool:
        return name in {moment.name for moment in self.expected.moments}

    def _taking(self, name: str, target: str, mirror: Path) -> Operation:
        modes = dict.fromkeys(self.expected.active, SnapshotMode.NO)
        modes[target] = SnapshotMode.EXTERNAL
        disks = tuple(
            SnapshotDisk(
                name=each, mode=mode, mirror="" if mode is SnapshotMode.NO else str(mirror)
            )
            for each, mode in modes.items()
        )
        request = SnapshotRequest(name=name, disks=disks)
        options = api.SnapshotOptions(disk_only=True)

        def change(expected: Expected) -> Expected:
            after = expected.with_snapshot(name, modes, relative=True)
            both = {mirror, after.active[target].path}
            return replace(after, files=after.files | both, relative=after.relative | both)

        return Operation(
            name="mirror",
            work=lambda world: api.take_snapshot(world, DOMAIN, request, options),
            change=change,
            refusal=self.expected.refusal(name, modes),
        )

    def _refused(self, target: str) -> Operation:
        """What would make the two places differ."""
        return Operation(
            name="pull of a mirrored disk",
            work=lambda world: api.block_pull(world, DOMAIN, [target], api.PullOptions()),
            pivots=False,
            refusal=RefusedError,
        )

    def _ending(self, name: str, target: str, mirror: Path, *, pivot: bool) -> Operation:
        options = api.MirrorEndOptions(pivot=pivot)
        return Operation(
            name="mirror pivot" if pivot else "mirror abort",
            work=lambda world: api.end_mirror(world, DOMAIN, name, options),
            change=partial(_ended, name=name, target=target, mirror=mirror, pivot=pivot),
            learns=True,
        )


def _ended(expected: Expected, *, name: str, target: str, mirror: Path, pivot: bool) -> Expected:
    """Without the snapshot. After a pivot all files of the old place stay, else the mirror goes."""
    after = replace(expected.forgotten(name), spare=expected.spare)
    if not pivot:
        return replace(after, files=after.files - {mirror})
    top = replace(after.active[target], path=mirror)
    chain = (*after.chains[target][:-1], top)
    return replace(
        after, active={**after.active, target: top}, chains={**after.chains, target: chain}
    )
