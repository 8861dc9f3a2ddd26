"""Block jobs as rules: chains become shorter, disks larger; no disk ever reads as anything else."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from imgtool import api
from imgtool.model.errors import BadRequestError, ImgtoolError, LossError, UnsupportedError
from imgtool.model.image import Format
from imgtool.testing.moments import Expected, Place
from imgtool.testing.rig import Operation
from imgtool.testing.stage import DOMAIN, MAX_DISKS, MAX_EFFECTS, MAX_SIZE, Stage, seldom
from imgtool.testing.strategies import troubles
from imgtool.testing.trouble import Trouble

LAYERS = 12  # more than a chain has, as a rule; numbers are taken modulo
numbers = partial(st.integers, 0)
any_trouble = partial(troubles, max_effects=MAX_EFFECTS)


class BlockJobs(Stage):
    """commit, pull, flatten, resize and rebase of the disks that a stage has."""

    @precondition(lambda self: self.settled and self.committable(0, "commit"))
    @rule(
        disk=numbers(MAX_DISKS),
        base=numbers(LAYERS),
        keep_overlay=st.booleans(),
        delete=st.booleans(),
        trouble=any_trouble(),
    )
    def commit_active(
        self, disk: int, base: int, keep_overlay: bool, delete: bool, trouble: Trouble
    ) -> None:
        """The active layer, with all between, goes down into one below it; or that of all disks."""
        if disk == MAX_DISKS:
            targets = []
            spans = {target: (0, self.depth(target)) for target in self.deeper(1)}
            below = ""
        else:
            able = self.committable(0, "commit")
            targets = [able[disk % len(able)]]
            top = self.depth(targets[0])
            bases = self.free(targets[0], top) or range(top)
            spans = {targets[0]: (bases[base % len(bases)], top)}
            below = str(self.expected.chains[targets[0]][spans[targets[0]][0]].path)
        options = api.CommitOptions(
            base=below, active=True, keep_overlay=keep_overlay, delete=delete
        )
        self._commit("commit", targets, spans, options, trouble)

    @precondition(lambda self: self.settled and self.committable(1, "inner commit"))
    @rule(
        disk=numbers(MAX_DISKS),
        top=numbers(LAYERS),
        base=numbers(LAYERS),
        shallow=st.booleans(),
        relative=st.booleans(),
        delete=st.booleans(),
        trouble=any_trouble(),
    )
    def commit_inner(
        self,
        disk: int,
        top: int,
        base: int,
        shallow: bool,
        relative: bool,
        delete: bool,
        trouble: Trouble,
    ) -> None:
        """An inner layer goes down; the one above it gets another base."""
        able = self.committable(1, "inner commit")
        target = able[disk % len(able)]
        chain = self.expected.chains[target]
        inner = range(1, len(chain) - 1)
        tops = [each for each in inner if self.free(target, each)] or inner
        top = tops[top % len(tops)]
        bases = self.free(target, top) or range(top)
        base = top - 1 if shallow else bases[base % len(bases)]
        options = api.CommitOptions(
            top=str(chain[top].path),
            base="" if shallow else str(chain[base].path),
            shallow=shallow,
            keep_relative=relative,
            delete=delete,
        )
        self._commit("inner commit", [target], {target: (base, top)}, options, trouble)

    @precondition(lambda self: self.settled and self.deeper(1) and seldom("pull: done")(self))
    @rule(
        disk=numbers(MAX_DISKS),
        base=numbers(LAYERS),
        relative=st.booleans(),
        trouble=any_trouble(),
    )
    def pull(self, disk: int, base: int, relative: bool, trouble: Trouble) -> None:
        """Data come up into the active layer, from above some base; which may be next to it."""
        deep = self.deeper(1)
        target = deep[disk % len(deep)]
        top = self.depth(target)
        options = api.PullOptions(
            base=str(self.expected.chains[target][base % top].path), keep_relative=relative
        )
        self._pull("pull", [target], {target: base % top}, options, trouble)

    @precondition(lambda self: self.settled and seldom("flatten: done")(self))
    @rule(disk=numbers(MAX_DISKS), trouble=any_trouble())
    def flatten(self, disk: int, trouble: Trouble) -> None:
        """One disk, or all, until no base is left."""
        targets = [] if disk == MAX_DISKS else [self.target(disk)]
        bases = dict.fromkeys(target for target in targets or self.deeper(1))
        self._pull("flatten", targets, bases, api.PullOptions(), trouble)

    @precondition(lambda self: self.settled)
    @rule(
        disk=numbers(MAX_DISKS),
        sectors=st.integers(8, 2 * MAX_SIZE // 512),
        larger=st.booleans(),
        force=st.sampled_from((True, True, False)),
        trouble=any_trouble(),
    )
    def resize(self, disk: int, sectors: int, larger: bool, force: bool, trouble: Trouble) -> None:
        """To any size; a smaller one is refused unless forced, and where others would see it."""
        target = self.target(disk)
        now, top = len(self.expected.contents[target]), self.expected.active[target]
        size = max(now, sectors * 512) if larger else sectors * 512
        refusal: type[ImgtoolError] | None = None
        if size < now and not force:
            refusal = LossError
        elif size != now and not _changeable(top):
            refusal = UnsupportedError
        options = api.ResizeOptions(size=size, force=force)
        operation = Operation(
            name="resize" if size >= now else "shrink",
            work=lambda world: api.resize(world, DOMAIN, target, options),
            change=partial(Expected.resized, target=target, size=size),
            pivots=size != now,
            refusal=refusal,
            may_refuse=(UnsupportedError,) if size < now else (),
        )
        self.rig.perform(operation, trouble)

    @precondition(
        lambda self: (
            self.settled and (self.deeper(1) or seldom("rename bases: BadRequestError")(self))
        )
    )
    @rule(disk=numbers(MAX_DISKS), relative=st.booleans(), trouble=any_trouble())
    def rename_bases(self, disk: int, relative: bool, trouble: Trouble) -> None:
        """All overlays of a chain, which no reader notices."""
        target = self.target(disk)
        overlays = self.expected.chains[target][1:]
        options = api.RebaseOptions(relative=relative)
        operation = Operation(
            name="rename bases",
            work=lambda world: api.rebase(world, DOMAIN, target, options),
            change=partial(Expected.renamed, target=target, relative=relative),
            pivots=None,
            refusal=None if overlays else BadRequestError,
            may_refuse=() if all(map(_changeable, overlays)) else (UnsupportedError,),
        )
        self.rig.perform(operation, trouble)

    @precondition(
        lambda self: (
            self.settled
            and self.deeper(1)
            and self.expected.moments
            and seldom("rebase: UnsupportedError")(self)
        )
    )
    @rule(disk=numbers(MAX_DISKS), number=numbers(LAYERS), trouble=any_trouble())
    def rebase(self, disk: int, number: int, trouble: Trouble) -> None:
        """Onto any other state of the disk, which may be longer, shorter, or above this one."""
        deep = self.deeper(1)
        target = deep[disk % len(deep)]
        states = [
            moment.places[target] for moment in self.expected.moments if target in moment.places
        ]
        states += self.expected.chains[target]
        base = states[number % len(states)]
        options = api.RebaseOptions(base=str(base.path), format=base.format)
        operation = Operation(
            name="rebase",
            work=lambda world: api.rebase(world, DOMAIN, target, options),
            change=partial(Expected.rebased, target=target),
            may_refuse=(UnsupportedError,),
            learns=True,
        )
        self.rig.perform(operation, trouble)

    def target(self, number: int) -> str:
        """Any disk."""
        targets = list(self.expected.chains)
        return targets[number % len(targets)]

    def depth(self, target: str) -> int:
        """How many layers are below the active one."""
        return len(self.expected.chains[target]) - 1

    def deeper(self, layers: int) -> list[str]:
        """The disks with so many layers, or more, below the active one."""
        return [target for target in self.expected.chains if self.depth(target) >= layers]

    def committable(self, above: int, name: str) -> list[str]:
        """The disks that can have a commit with so many layers above it; others only seldom."""
        able = []
        for target in self.deeper(1 + above):
            top = self.depth(target)
            if any(self.free(target, each) for each in (range(1, top) if above else [top])):
                able.append(target)
        if not able and seldom(f"{name}: UnsupportedError")(self):
            return self.deeper(1 + above)
        return able

    def free(self, target: str, top: int) -> Sequence[int]:
        """Which layers `top` may be merged into: no snapshot is of them, or of one between."""
        held = {
            place.path
            for moment in self.expected.moments
            for place in moment.places.values()
            if place.tag is None
        }
        chain = self.expected.chains[target]
        lowest = top
        while lowest and chain[lowest - 1].path not in held:
            lowest -= 1
        return range(lowest, top)

    def _commit(
        self,
        name: str,
        targets: list[str],
        spans: dict[str, tuple[int, int]],
        options: api.CommitOptions,
        trouble: Trouble,
    ) -> None:
        change = partial(
            Expected.committed,
            spans=spans,
            stay=options.keep_overlay,
            delete=options.delete,
            relative=options.keep_relative,
        )
        operation = Operation(
            name=name,
            work=lambda world: api.block_commit(world, DOMAIN, targets, options),
            change=change,
            may_refuse=(UnsupportedError,),
            learns=True,
        )
        self.rig.perform(operation, trouble)

    def _pull(
        self,
        name: str,
        targets: list[str],
        bases: dict[str, int | None],
        options: api.PullOptions,
        trouble: Trouble,
    ) -> None:
        bases = {
            target: base
            for target, base in bases.items()
            if _left_below(base) != self.depth(target)  # else it has that base already
        }
        tagged = [each for each in bases if self.expected.tags(self.expected.active[each].path)]
        operation = Operation(
            name=name,
            work=lambda world: api.block_pull(world, DOMAIN, targets, options),
            change=partial(Expected.pulled, bases=bases, relative=options.keep_relative),
            pivots=bool(bases),
            refusal=UnsupportedError if tagged else None,
            learns=True,
        )
        self.rig.perform(operation, trouble)


def _left_below(base: int | None) -> int:
    """How many layers are left below the active one."""
    return 0 if base is None else base + 1


def _changeable(place: Place) -> bool:
    """It can be changed in place: qcow2 of version 3, or raw, which has nothing inside."""
    return place.internal or place.format is Format.RAW
