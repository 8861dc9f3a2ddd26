"""Copy the layers below a disk's active one to another folder, where a mirror waits for them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.api.disks import chosen_chains
from imgtool.api.world import working_on
from imgtool.engine import guard, survey
from imgtool.engine.chaincopy import CHECKPOINT, Copied, Copier
from imgtool.engine.checkpoint import Checkpoints
from imgtool.engine.world import World
from imgtool.model.domain import Head
from imgtool.model.errors import BadRequestError
from imgtool.model.image import Image
from imgtool.plan.chaincopy import LayerCopy, plan_chain_copy


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCopyOptions:
    """Where layers go, and how they are verified."""

    to: Path
    trust: bool = False  # do not compare data; structure always is
    checkpoint: int = CHECKPOINT  # bytes that a crash may make us copy again
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainCopyResult:
    """What was copied, or (`dry_run`) would be."""

    domain: str
    to: Path
    layers: tuple[Copied, ...]


def copy_chain(
    world: World, domain: str, disks: Sequence[str], options: ChainCopyOptions
) -> ChainCopyResult:
    """Copy every layer below the active one of each disk (target or source path; none: all).

    Also of a running domain: what is below its active layers is only read, and a layer that
    somebody has open for writing is refused. The domain is not changed. A crash or a signal
    leaves complete layers, and staged ones that the same call goes on with.
    """
    if options.dry_run:
        head = world.store.head(domain)
        layers = _layers(world, head, disks, options.to)
        checkpoints = Checkpoints(world.state_dir / head.domain.uuid, world.files)
        done = _copier(world, checkpoints, options).look(layers)
        return _result(head, options, done)
    with working_on(world, domain, jobs=True) as room:
        head = world.store.head(domain)
        layers = _layers(world, head, disks, options.to)
        checkpoints = Checkpoints(room.folder, world.files)
        return _result(head, options, _copier(world, checkpoints, options).run(layers))


def _copier(world: World, checkpoints: Checkpoints, options: ChainCopyOptions) -> Copier:
    return Copier(
        world=world,
        checkpoints=checkpoints,
        trust=options.trust,
        checkpoint=options.checkpoint,
    )


def _result(head: Head, options: ChainCopyOptions, done: tuple[Copied, ...]) -> ChainCopyResult:
    return ChainCopyResult(domain=head.domain.name, to=_folder(options.to), layers=done)


def _layers(world: World, head: Head, disks: Sequence[str], to: Path) -> tuple[LayerCopy, ...]:
    folder = _folder(to)
    waiting = _mirrors(world, head)
    chains = chosen_chains(world, head, disks or tuple(waiting))
    if not chains:
        raise BadRequestError(
            f"{head.domain.name}: no disk has layers below its active one",
            remedy="take an external snapshot first: what it builds on can then be copied",
        )
    mirrors = {
        target: _mirror(target, path, folder, world)
        for target, path in waiting.items()
        if target in chains
    }
    layers = plan_chain_copy(chains, folder, head.domain.name, mirrors)
    for layer in layers:
        _require_plain_folders(layer, folder)
    return layers


def _mirrors(world: World, head: Head) -> dict[str, Path]:
    """Where mirrors wait for their layers: of the disks that the current snapshot mirrors."""
    snapshot = guard.mirrored(world, head)
    disks = snapshot.disks if snapshot is not None else ()
    return {disk.name: Path(disk.mirror) for disk in disks if disk.mirror}


def _mirror(target: str, path: Path, folder: Path, world: World) -> Image:
    """Raises BadRequestError if it looks for its layers in another folder."""
    if Path(os.path.realpath(path.parent)) != folder:
        raise BadRequestError(
            f"{target}: its mirror {path} looks for its layers in {path.parent}, not in {folder}",
            remedy=f"copy them there: --to {path.parent}",
        )
    return survey.prepared(target, path, world).image


def _folder(to: Path) -> Path:
    """The folder with its links resolved. Raises BadRequestError if it is none."""
    try:
        folder = to.absolute().resolve(strict=True)
        reason = "" if folder.is_dir() else "is no folder"
    except (OSError, RuntimeError, ValueError) as error:
        folder, reason = to, getattr(error, "strerror", None) or str(error)
    if reason:
        raise BadRequestError(f"--to {to}: {reason}", remedy="create it, or choose another")
    return folder


def _require_plain_folders(layer: LayerCopy, folder: Path) -> None:
    """No link may lead a copy, or what looks for it, elsewhere. Raises BadRequestError."""
    for parent in layer.copy.parents:
        if parent == folder:
            return
        if os.path.lexists(parent) and (parent.is_symlink() or not parent.is_dir()):
            raise BadRequestError(
                f"{layer.target}: {parent} is no folder of its own",
                remedy="remove or rename it, or choose another folder",
            )
