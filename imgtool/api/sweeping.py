"""Remove what crashes have left beside the images, and nothing that anybody needs."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from imgtool.api.checks import listed_name
from imgtool.api.world import working_on
from imgtool.engine.checkpoint import Checkpoints
from imgtool.engine.inspect import examine, look_around
from imgtool.engine.world import World, naming
from imgtool.host.locks import PinnedImages
from imgtool.model.errors import ImgtoolError
from imgtool.model.plan import Pin
from imgtool.plan.sweep import Rubbish, rubbish_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What was removed (`dry_run`: would be) for one domain, and what was left, with reasons."""

    domain: str
    removed: tuple[Rubbish, ...]
    left: tuple[Rubbish, ...]


def sweep(
    world: World, domain: str = "", *, force: bool = False, dry_run: bool = False
) -> tuple[Swept, ...]:
    """Remove staged files of ours that no transaction knows, and overlays that nothing refers to.

    Of one domain, or of all. Each file is locked against QEMU first, and removed only if it is
    still the one that was looked at. A crash leaves some of them: the same call goes on. Overlays
    with data stay, but with `force`. What cannot be removed is told, never raised.
    """
    around = look_around(world)
    names = (listed_name(world, domain, around),) if domain else tuple(around.glances)
    return tuple(_sweep(world, name, force=force, dry_run=dry_run) for name in names)


def _sweep(world: World, name: str, *, force: bool, dry_run: bool) -> Swept:
    if dry_run:
        return _sorted(name, rubbish_of(examine(name, look_around(world), world), force=force))
    try:
        with working_on(world, name, jobs=True) as room:
            found = rubbish_of(examine(name, look_around(world), world), force=force)
            swept = _sorted(name, tuple(_remove(each, world) for each in found))
            _forget_copies(Checkpoints(room.folder, world.files))
            return swept
    except ImgtoolError as error:
        world.interrupt.check()
        world.say(f"{name}: {error.message}")
        return Swept(domain=name, removed=(), left=())


def _sorted(name: str, found: tuple[Rubbish, ...]) -> Swept:
    return Swept(
        domain=name,
        removed=tuple(each for each in found if not each.reason),
        left=tuple(each for each in found if each.reason),
    )


def _forget_copies(checkpoints: Checkpoints) -> None:
    """Of staged files that are gone, or that were never made."""
    checkpoints.tidy()
    for each in checkpoints.read():
        if not os.path.lexists(each.staged):
            checkpoints.forget(each.copy)


def _remove(rubbish: Rubbish, world: World) -> Rubbish:
    """Unlink it under a lock that QEMU respects, too; returns it with the reason if it stays."""
    if rubbish.reason:
        return rubbish
    world.interrupt.check()
    path = rubbish.path
    try:
        with naming(rubbish.target, path), PinnedImages() as pinned:
            identity = rubbish.identity or world.files.identity(path)
            pinned.pin(
                [
                    Pin(
                        target=rubbish.target,
                        path=path,
                        identity=identity,
                        exclusive=True,
                        written=False,
                    )
                ]
            )
            if path.lstat().st_ino != rubbish.inode:
                return replace(rubbish, reason="it is another file meanwhile")
            world.files.unlink(path)
            world.files.sync_dir(path.parent)
    except ImgtoolError as error:
        return replace(rubbish, reason=error.message)
    return rubbish
