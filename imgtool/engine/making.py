"""Make new images under their staged names. Nothing that exists is written."""

from __future__ import annotations

from imgtool.engine.journal import StagedOverlay
from imgtool.engine.world import World, naming
from imgtool.host.headers import read_image
from imgtool.model.errors import FailedError
from imgtool.model.image import Format
from imgtool.model.plan import CopyImage, CreateOverlay, Made


def create_like(step: Made, world: World) -> None:
    """An empty staged file with owner, mode and labels of the image it is made of."""
    for missed in world.files.create_like(step.staged, step.base):
        world.say(f"{step.target}: {step.overlay} could not be given the {missed} of its base")


def create_overlay(step: CreateOverlay, world: World) -> None:
    """Make the overlay under its staged name. A crash leaves that, empty or whole, unsynced."""
    with naming(step.target, step.overlay):
        create_like(step, world)
        world.qemu.create_overlay(
            step.staged,
            base=step.backing,  # no Path: it would take ./ off ./a:b
            base_format=step.base_format,
            virtual_size=step.virtual_size,
            features=step.features,
            unchecked=step.unchecked,
        )
        made = read_image(step.staged, Format.QCOW2)
        seen = (made.backing, made.backing_format, made.virtual_size, made.features)
        if seen != (step.backing, step.base_format, step.virtual_size, step.features):
            raise FailedError(f"{step.overlay}: qemu-img made something else: {made}")


def copy_image(step: CopyImage, world: World) -> None:
    """Make the copy under its staged name. A crash leaves a part of it."""
    with naming(step.target, step.overlay):
        create_like(step, world)
        world.qemu.convert_snapshot(
            step.base,
            step.base_format,
            step.snapshot_id,
            step.staged,
            step.features,
            watch=world.watch(step.target, f"copying to {step.overlay.name}"),
        )
        if read_image(step.staged, Format.QCOW2).virtual_size > step.virtual_size:
            world.qemu.shrink(step.staged, step.virtual_size)  # the image has grown since
        made = read_image(step.staged, Format.QCOW2)
        if (made.backing, made.virtual_size) != (None, step.virtual_size):
            raise FailedError(f"{step.overlay}: qemu-img made something else: {made}")


def sync(step: Made, world: World) -> StagedOverlay:
    """Make the staged file survive a power cut; what it is then goes into the journal."""
    with naming(step.target, step.overlay):
        world.files.sync_file(step.staged)
        return StagedOverlay(staged=step.staged, identity=world.files.identity(step.staged))
