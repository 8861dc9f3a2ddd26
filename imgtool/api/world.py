"""Connect to a store, and hold the lock of one of its domains."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from imgtool.engine.interrupt import Interrupt
from imgtool.engine.world import World
from imgtool.host.files import Files
from imgtool.model.errors import QemuImgError
from imgtool.stores.open import open_store

if TYPE_CHECKING:
    from imgtool.engine.room import Room


@contextmanager
def open_world(
    connect: str = "",
    *,
    state_dir: Path | None = None,
    jobs: int = 0,
    files: Files | None = None,
    interrupt: Interrupt | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[str, str, float, int], None] | None = None,
) -> Iterator[World]:
    """Connect to the store `connect` (`dir:PATH` or a libvirt URI; empty: as virsh would).

    `state_dir` overrides where journals are kept; `jobs` bounds how many disks are worked on at
    once; `say` receives lines for a person, `progress` what `World.progress` is told.
    """
    files = files or Files()
    store = open_store(connect or default_uri(), files=files)
    try:
        yield World(
            store=store,
            state_dir=state_dir.absolute() if state_dir else store.state_dir,
            files=files,
            jobs=jobs,
            interrupt=interrupt or Interrupt(),
            progress=progress,
            say=say or (lambda _line: None),
        )
    finally:
        store.close()


def default_uri() -> str:
    """$IMGTOOL_CONNECT, else $LIBVIRT_DEFAULT_URI, else virsh's own default."""
    for variable in ("IMGTOOL_CONNECT", "LIBVIRT_DEFAULT_URI"):
        if os.environ.get(variable):
            return os.environ[variable]
    return "qemu:///system" if os.geteuid() == 0 else "qemu:///session"


def locate(domain: str, connect: str) -> tuple[str, str]:
    """A DOMAIN that is a path to an .xml file means that folder and that domain."""
    if domain.endswith(".xml") and (os.sep in domain or Path(domain).is_file()):
        path = Path(domain).absolute()
        return f"dir:{path.parent}", path.stem
    return connect, domain


@contextmanager
def working_on(world: World, domain: str, *, jobs: bool = False) -> Iterator[Room]:
    """Hold the domain's lock, having ended what an earlier transaction left open.

    Inside, signals are noted, and honoured where nothing is left behind by that. Raises
    RefusedError while a copy job of the domain is open, but for those whom `jobs` do not disturb.
    """
    # Commands that only read get along without the engine.
    from imgtool.engine import recovery
    from imgtool.engine.jobs import require_no_jobs, settle
    from imgtool.engine.room import entered
    from imgtool.engine.transaction import Direction, conclude

    uuid = world.store.head(domain).domain.uuid
    world.interrupt.outcome = ""
    with (
        world.interrupt.deferred(world.qemu.cancel),
        entered(world.state_dir, uuid, world.files) as room,
    ):
        before = recovery.waiting(world, uuid)
        direction = conclude(room, world)
        if direction is not None and before is not None:
            way = "finished" if direction is Direction.FORWARD else "undone"
            world.say(f"{before.plan.summary} was interrupted; it is {way} now")
        settle(room, world, uuid)
        if not jobs:
            require_no_jobs(room)
        world.interrupt.check()
        try:
            yield room
        except QemuImgError:
            world.interrupt.check()  # it was cancelled: that is what has gone wrong
            raise
        world.interrupt.outcome = world.interrupt.outcome or "came too late: the work is done"
