"""Copy the layers of chains under their staged names, verify them, and stop as one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from imgtool.engine.making import create_like
from imgtool.engine.world import World, naming
from imgtool.host.comparing import first_difference
from imgtool.host.headers import parse_info, read_image, read_inode
from imgtool.model.errors import FailedError
from imgtool.model.image import Format, Image
from imgtool.model.plan import CopyLayer, FlattenImage, Node, Plan

SYNC_EVERY = 64 * 1024 * 1024  # bytes; the last sync cannot be interrupted, so it has to be short


class _StoppedError(Exception):
    """Another image of the plan could not be made, so this one is not needed any more."""


class LayerCopies:
    """The copies of one plan, several at a time; the first that fails stops the others."""

    def __init__(self, plan: Plan, world: World) -> None:
        self._world = world
        self._tally = _Tally(plan, world)
        self._failed: BaseException | None = None

    def make(self, step: CopyLayer | FlattenImage) -> None:
        """Make and verify one copy. Not synced. A crash leaves a part of it."""
        with self._stopping_others(), naming(step.target, step.overlay):
            create_like(step, self._world)
            if isinstance(step, CopyLayer):
                self._copy(step)
            else:
                _flatten(step, self._world)

    @contextmanager
    def _stopping_others(self) -> Iterator[None]:
        try:
            yield
        except _StoppedError as stopped:
            raise self._failed or FailedError("stopped") from stopped
        except BaseException as error:
            self._failed = self._failed or error
            raise

    def _check(self) -> None:
        """Raise if this should not go on: a signal has come, or another image has failed."""
        self._world.interrupt.check()
        if self._failed is not None or self._world.qemu.cancelled:
            raise _StoppedError

    def _copy(self, step: CopyLayer) -> None:
        """The bytes, then the name of the base; what is seen through it must not differ."""
        world = self._world
        told = self._tally.watch(step, f"copying to {step.overlay.parent}")
        synced = 0

        def watch(done: int) -> None:
            nonlocal synced
            told(done)
            if done - synced >= SYNC_EVERY:
                world.files.sync_file(step.staged)
                synced = done

        shared = world.files.copy(step.source, step.staged, watch=watch, check=self._check)
        if step.compared and not shared:
            compared = self._tally.watch(step, "comparing what is copied")
            at = first_difference(step.source, step.staged, watch=compared, check=self._check)
            if at is not None:
                raise FailedError(
                    f"{step.overlay}: differs from {step.source} at byte {at}",
                    remedy="look at the storage: the kernel log may say more",
                )
        if step.backing is not None:
            fmt = Format.parse(read_image(step.staged, step.format).backing_format or "")
            world.qemu.rebase(step.staged, step.backing, fmt, unsafe=True)
        _verify_copy(step, world)


class _Tally:
    """How far the copies of each disk are, taken together."""

    def __init__(self, plan: Plan, world: World) -> None:
        self._lock = threading.Lock()
        self._done: dict[tuple[str, Path], int] = {}
        self._size: dict[str, int] = {}
        self._world = world
        for step in plan.made:
            if isinstance(step, CopyLayer):
                self._size[step.target] = self._size.get(step.target, 0) + step.size
        self._steps = plan.made

    def watch(self, step: CopyLayer, what: str) -> Callable[[int], None]:
        """Who to tell how many bytes of this copy are done, of what is done to it."""
        size = self._size[step.target]
        told = self._world.watch(step.target, what, size)

        def tell(done: int) -> None:
            if told is None or not size:
                return
            with self._lock:
                self._done[what, step.staged] = done
                own = (each.staged for each in self._steps if each.target == step.target)
                told(sum(self._done.get((what, path), 0) for path in own) / size)

        return tell


def _flatten(step: FlattenImage, world: World) -> None:
    """Have qemu-img write it, then read both: it has made another image of the same data."""
    source = Node(path=step.source, format=step.format)
    world.qemu.convert(
        source,
        step.staged,
        Format.QCOW2,
        features=step.features,
        bitmaps=step.bitmaps,
        watch=world.watch(step.target, f"copying to {step.overlay.parent}", step.size),
    )
    made = read_image(step.staged, Format.QCOW2)
    seen = (made.backing, made.virtual_size, made.features)
    if seen != (None, step.virtual_size, step.features):
        raise FailedError(f"{step.overlay}: qemu-img made something else: {made}")
    watch = world.watch(step.target, f"comparing with {step.source.name}", step.size)
    if not world.qemu.same_content(source, Node(path=step.staged, format=Format.QCOW2), watch):
        raise FailedError(
            f"{step.overlay}: does not show what {step.source} shows",
            remedy="look at the storage: the kernel log may say more",
        )


def _verify_copy(step: CopyLayer, world: World) -> None:
    """Header, size and metadata. The copy still has no base: it is looked at alone."""
    wanted = _described(step.source, step.format, world)
    if step.backing is not None:
        wanted = replace(wanted, backing=step.backing)
    made = _described(step.staged, step.format, world)
    if made != replace(wanted, path=step.staged):
        raise FailedError(f"{step.overlay}: the copy is another image: {made}, not {wanted}")
    if world.files.identity(step.staged).size != step.size:
        raise FailedError(f"{step.overlay}: the copy does not have {step.size} bytes")
    if step.format is not Format.RAW:
        found = world.qemu.check_alone(step.staged, step.format, block_device=False)
        if found.corruptions or found.errors:
            raise FailedError(
                f"{step.overlay}: qemu-img check finds {found.corruptions + found.errors} errors "
                f"in the copy of {step.source}",
                remedy=f"qemu-img check -f {step.format} {step.source}; mend it, then try again",
            )


def _described(path: Path, fmt: Format, world: World) -> Image:
    """What an image is, apart from where."""
    if fmt is Format.VMDK:
        image = parse_info(world.qemu.info_json(path, fmt), path, read_inode(path))
    else:
        image = read_image(path, fmt)
    nowhere = replace(image.identity, device=0, inode=0, size=0, mtime_ns=0)
    return replace(image, identity=nowhere, allocation=0, block_device=False)
