"""Move data between images that exist: down into a base, or up into an overlay.

What a guest sees through the last layer does not change at any moment, so these steps are run
before the pivot and need no undo; only leaked clusters are mended.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from imgtool.engine import raw
from imgtool.engine.world import World, naming
from imgtool.host.handed import handed_on
from imgtool.host.headers import read_image, read_inode
from imgtool.model.errors import ChainError, FailedError, QemuImgError
from imgtool.model.image import Format
from imgtool.model.plan import (
    CarryOver,
    MergeBitmaps,
    MergeDown,
    Node,
    Plan,
    PullImage,
    Relink,
    ResizeRaw,
    Rewrite,
)


def perform(plan: Plan, world: World) -> None:
    """All rewrites of the plan: disks side by side, the steps of one disk in their order."""
    by_disk: dict[str, list[Rewrite]] = {}
    for step in plan.rewrites:
        by_disk.setdefault(step.target, []).append(step)

    def work(steps: list[Rewrite]) -> None:
        for step in steps:
            world.interrupt.check()
            if isinstance(step, MergeDown):
                merge_down(step, world)
                # With many small clusters, qemu-img leaks some even where nobody disturbs it.
                mend_image(step.target, step.layers[0].path, step.layers[0].format, world)
            elif isinstance(step, MergeBitmaps):
                merge_bitmaps(step, world)
            elif isinstance(step, ResizeRaw):
                raw.resize(step, world)
            elif isinstance(step, CarryOver):
                carry_over(step, world)
            else:
                pull(step, world)

    world.each(work, by_disk.values())


def merge_down(step: MergeDown, world: World) -> None:
    """Commit into the base, and sync it. A crash leaves part of the data there: run it again."""
    base = step.layers[0]
    with naming(step.target, base.path):
        size = sum(read_inode(node.path).allocation for node in step.layers[1:])
        world.qemu.merge_down(
            step.layers, watch=world.watch(step.target, f"merging into {base.path.name}", size)
        )
        world.files.sync_file(base.path)


def merge_bitmaps(step: MergeBitmaps, world: World) -> None:
    """Carry bitmaps down into the base, and sync it. Again is the same as once.

    One that cannot be carried is told, and is no reason to stop: backups are then full ones.
    """
    with naming(step.target, step.base.path):
        known = read_image(step.base.path, Format.QCOW2).bitmaps
        for name in step.names:
            try:
                world.qemu.merge_bitmap(step.base, name, step.source, add=name not in known)
            except QemuImgError as error:
                world.interrupt.check()
                world.say(f"{step.target}: bitmap {name} of {step.source.path}: {error.message}")
        world.files.sync_file(step.base.path)


def pull(step: PullImage, world: World) -> None:
    """Copy into the overlay, sync it, then change its base, and sync that.

    qemu-img writes the name of the base before the last of the tables that find the copied data.
    So it is given a name that leads nowhere but in itself: a crash leaves the old base, an image
    that QEMU refuses for want of its base, or the new one, never an image that shows less.
    Nothing is done if the overlay has that base already.
    """
    with naming(step.target, step.image):
        now = read_image(step.image, Format.QCOW2)
        if (now.backing or "") != step.backing:
            with handed_on(step.image.parent / step.backing if step.backing else None) as name:
                fmt, below = step.backing_format or Format.RAW, step.below
                if below and below[0].format is Format.QCOW2:
                    # Over an empty image, qemu-img need not read what no layer has.
                    fmt = Format.QCOW2
                    empty = Node(path=Path(name), format=fmt)
                    world.qemu.create_scratch(empty.path, virtual_size=now.virtual_size)
                    below = (empty, *below)
                world.qemu.rebase(
                    step.image,
                    name,
                    fmt,
                    below=below,
                    watch=world.watch(step.target, f"pulling into {step.image.name}"),
                )
            world.files.sync_file(step.image)
            world.qemu.rebase(step.image, step.backing, step.backing_format, unsafe=True)
        _require_base(step, step.backing_format)
        world.files.sync_file(step.image)


def carry_over(step: CarryOver, world: World) -> None:
    """Copy the active layer's own clusters into its mirror, and sync that.

    *Measured:* qemu-img copies no others, and zeros as zeros, so that again is the same as once. A
    crash leaves some of them there. Nobody sees that: the mirror is not in use yet. Raises
    FailedError if both show different data afterwards.
    """
    mirror = step.mirror.path
    with naming(step.target, mirror):
        size = read_inode(step.source.path).allocation
        backing = read_image(mirror, Format.QCOW2).backing or ""
        world.qemu.convert_into(
            step.source,
            step.mirror,
            backing=backing,
            watch=world.watch(step.target, f"carrying over into {mirror.name}", size),
        )
        world.files.sync_file(mirror)
        if step.verify and not world.qemu.same_as_ours(
            step.source,
            step.mirror,
            watch=world.watch(step.target, f"comparing with {mirror.name}"),
        ):
            raise FailedError(
                f"{mirror} shows other data than {step.source.path}",
                remedy="copy its layers again, or give it up: snapshot-delete --mirror-abort",
            )


def relink(step: Relink, world: World) -> None:
    """Record the other base, and sync. A crash leaves the old name or the new one."""
    with naming(step.target, step.image):
        world.qemu.rebase(step.image, step.backing, step.backing_format, unsafe=True)
        _require_base(step, step.backing_format)
        world.files.sync_file(step.image)


def images(plan: Plan) -> tuple[tuple[str, Path], ...]:
    """Disk and path of each image that the rewrites of a plan write."""
    written: list[tuple[str, Path]] = []
    for step in plan.rewrites:
        if isinstance(step, MergeDown):
            written += [(step.target, node.path) for node in step.layers]
        elif isinstance(step, MergeBitmaps):
            written += [(step.target, step.base.path), (step.target, step.source.path)]
        elif isinstance(step, CarryOver):
            written.append((step.target, step.mirror.path))
        else:
            written.append((step.target, step.image))
    return tuple(written)


def mend(plan: Plan, world: World) -> None:
    """Free what a killed rewrite may have leaked, cut off what it has added.

    Overlays name their old base again. All images are whole in any case.
    """
    for step in plan.rewrites:
        if isinstance(step, MergeDown):
            mend_image(step.target, step.layers[0].path, step.layers[0].format, world)
        elif isinstance(step, ResizeRaw):
            raw.take_back(step, world)
        elif isinstance(step, CarryOver):
            mend_image(step.target, step.mirror.path, Format.QCOW2, world)
        elif isinstance(step, PullImage) and step.image.exists():
            _let_go(step, world)  # first: nothing can open it without a base
            mend_image(step.target, step.image, Format.QCOW2, world)


def _let_go(step: PullImage, world: World) -> None:
    """The old base is still there, and shows through the image just what it showed before."""
    with suppress(ChainError):  # half of a name, if the power went
        if (read_image(step.image, Format.QCOW2).backing or "") == step.old_backing:
            return
    relink(
        Relink(
            target=step.target,
            image=step.image,
            backing=step.old_backing,
            backing_format=step.old_backing_format,
        ),
        world,
    )


def mend_image(target: str, path: Path, fmt: Format, world: World) -> None:
    """Free leaked clusters of one image. Storage that cannot be written has none of ours."""
    if fmt is not Format.QCOW2 or not path.exists():
        return
    if not os.access(path, os.W_OK):
        return
    try:
        world.qemu.repair_leaks(path)
    except QemuImgError as error:
        world.say(f"{target}: {path} may have leaked clusters: {error.message}")
    with naming(target, path):
        world.files.sync_file(path)


def _require_base(step: PullImage | Relink, fmt: Format | None) -> None:
    made = read_image(step.image, Format.QCOW2)
    if (made.backing or "", made.backing_format) != (step.backing, fmt):
        raise FailedError(f"{step.image}: qemu-img recorded another base: {made.backing}")
