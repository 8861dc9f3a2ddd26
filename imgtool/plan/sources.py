"""Which images may go once a domain uses copies of them, and who still needs the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import SnapshotMode
from imgtool.model.image import Chain
from imgtool.plan.lineage import FileId, Lineage
from imgtool.plan.relocation import Layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A source that stays, and why."""

    target: str
    path: Path
    reason: str


def reason_to_keep(layer: Layer, moved: Collection[str], lineage: Lineage) -> str:
    """Who needs this image although the disks `moved` do not; empty: nobody."""
    if layer.image.block_device:
        return "it is a block device"
    users = [*_staying(layer.file, moved, lineage), *lineage.strangers_to(layer.file)]
    return f"needed by {', '.join(dict.fromkeys(users))}" if users else ""


def _staying(file: FileId, moved: Collection[str], lineage: Lineage) -> Iterator[str]:
    """Disks of the domain that do not move, and their snapshots, if they read this file."""
    for target, chain in lineage.current.items():
        if target not in moved and _reads(chain, file):
            yield f"disk {target}"
    for name, held in lineage.held.items():
        for target, chain in held.chains.items():
            stays = target not in moved and held.mode(target) is not SnapshotMode.NO
            if stays and _reads(chain, file):
                yield f"disk {target} at snapshot {name}"


def _reads(chain: Chain, file: FileId) -> bool:
    return any(image.identity.file == file for image in chain.images)
