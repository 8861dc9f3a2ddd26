"""Set the length of raw images: all of the file is the disk, so there is nothing else to it."""

from __future__ import annotations

import os

from imgtool.engine.redo import opened
from imgtool.engine.world import World, naming
from imgtool.model.errors import ImageChangedError
from imgtool.model.plan import ResizeRaw


def resize(step: ResizeRaw, world: World) -> None:
    """Give the file its new length, and sync it. Again is the same as once.

    A crash leaves the old length or the new one. Raises ImageChangedError for another file.
    """
    with naming(step.target, step.image), opened(world.files, step.image) as image:
        if os.fstat(image).st_ino != step.inode:
            raise ImageChangedError(
                f"{step.image}: was replaced meanwhile",
                remedy="make sure that nobody uses the disk, then try again",
            )
        world.files.truncate(image, step.new_size)
        world.files.sync(image)


def take_back(step: ResizeRaw, world: World) -> None:
    """Cut off what `resize` has added, unless somebody has written there since."""
    with naming(step.target, step.image), opened(world.files, step.image) as image:
        facts = os.fstat(image)
        if (facts.st_ino, facts.st_size) != (step.inode, step.new_size):
            return  # not grown, or not ours any more
        if world.files.has_data(image, step.old_size):
            world.say(f"{step.image}: was written to meanwhile and keeps its new size")
            return
        world.files.truncate(image, step.old_size)
        world.files.sync(image)
