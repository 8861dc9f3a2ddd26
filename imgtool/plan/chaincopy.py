"""Which layers are copied to another folder so that a mirror there has its chain, and as what."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from imgtool.model.errors import BadRequestError, ChainError, ExistsError
from imgtool.model.image import Chain, Image
from imgtool.model.plan import Pin
from imgtool.plan.undertaking import require_sound


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerCopy:
    """One image that is copied whole, under the name that the layer above it records."""

    targets: tuple[str, ...]  # the disks that need it, as in the domain XML
    source: Image
    copy: Path

    @property
    def target(self) -> str:
        """The first of them, for messages."""
        return self.targets[0]

    @property
    def pin(self) -> Pin:
        """Nobody may write the source meanwhile."""
        return Pin(target=self.target, path=self.source.path, identity=self.source.identity)


def plan_chain_copy(
    chains: Mapping[str, Chain],
    folder: Path,
    domain: str,
    mirrors: Mapping[str, Image] | None = None,
) -> tuple[LayerCopy, ...]:
    """Every layer below the active one of each chain, its base first, and each layer once.

    `folder` is real, without links. What the active layer (or the mirror of the disk, in `folder`)
    records leads to the first copy, what that records to the next. Raises ChainError for a name
    that would not lead there, BadRequestError where there is nothing to copy, ExistsError for two
    layers that want one name.
    """
    found: dict[Path, LayerCopy] = {}
    for target, chain in chains.items():
        if len(chain.images) < 2:
            raise BadRequestError(
                f"{target}: has no layers below {chain.active.spelled}",
                remedy="take an external snapshot first: what it builds on can then be copied",
            )
        mirror = (mirrors or {}).get(target)
        for layer in _layers(target, _under(mirror, chain), folder, domain, mirror):
            known = found.get(layer.copy)
            if known is None:
                found[layer.copy] = layer
            elif known.source.identity.file != layer.source.identity.file:
                raise ExistsError(
                    f"{target}: {layer.source.spelled} and {known.source.spelled} would both "
                    f"become {layer.copy}",
                    remedy="copy these disks to different folders, one after the other",
                )
            elif target not in known.targets:
                found[layer.copy] = replace(known, targets=(*known.targets, target))
    return tuple(found.values())


def _under(mirror: Image | None, chain: Chain) -> Chain:
    """The chain as the mirror will see it."""
    return chain if mirror is None else Chain((*chain.images[:-1], mirror))


def _layers(
    target: str, chain: Chain, folder: Path, domain: str, mirror: Image | None
) -> tuple[LayerCopy, ...]:
    """From the base to the layer below the active one."""
    layers = []
    at = folder  # where the overlay whose base comes next will be
    for image, overlay in reversed(list(zip(chain.images, chain.images[1:], strict=False))):
        require_sound(target, image)
        copied = overlay is not chain.active
        name = _name(target, overlay, domain, kept=copied or mirror is not None)
        copy = Path(os.path.normpath(at / name))
        if not copy.is_relative_to(folder) or copy == folder:
            raise ChainError(
                f"{target}: {overlay.spelled} names its base {name!r}, which leads out of the "
                "folder",
                remedy="move the chain into one folder first, or flatten the disk",
            )
        layers.append(LayerCopy(targets=(target,), source=image, copy=copy))
        at = copy.parent
    return tuple(reversed(layers))


def _name(target: str, overlay: Image, domain: str, *, kept: bool) -> str:
    """How an overlay, or its copy, will find its base: as it does now, from its own folder."""
    name = overlay.backing or ""
    if not Path(name).is_absolute():
        return name
    if not kept:  # the mirror that takes its place will record its base by its last name
        return Path(name).name
    raise ChainError(
        f"{target}: {overlay.spelled} names its base absolutely ({name}), where no copy of it is",
        remedy=f"imgtool rebase {domain} {target} --relative, with the domain shut off",
    )
