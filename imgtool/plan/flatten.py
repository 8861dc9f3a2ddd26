"""Plan one image without a base in place of a chain, elsewhere."""

from __future__ import annotations

from pathlib import Path

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import UnsupportedError
from imgtool.model.image import Chain, Qcow2Features
from imgtool.model.plan import FlattenImage
from imgtool.plan.lineage import Lineage
from imgtool.plan.relocation import Layer


def require_flat(target: str, chain: Chain, lineage: Lineage) -> None:
    """Raises UnsupportedError where snapshots need the chain, or are inside its active layer."""
    names = [
        name for name, held in lineage.held.items() if held.mode(target) is not SnapshotMode.NO
    ]
    if names:
        raise UnsupportedError(
            f"{target}: snapshot {', '.join(names)} needs the layers of the chain",
            remedy="leave --flatten out, or delete the snapshots first: imgtool snapshot-delete",
        )
    if chain.active.snapshots and len(chain.images) > 1:
        raise UnsupportedError(
            f"{target}: {chain.active.spelled} has internal snapshots inside, "
            "which a flat copy would not have",
            remedy="leave --flatten out, or delete them first: qemu-img snapshot -d",
        )


def flat_copy(layer: Layer, chain: Chain, final: Path, staged: Path) -> FlattenImage:
    """The step that makes it; always a qcow2, with the features of the active layer."""
    image = layer.image
    features = image.features or Qcow2Features()
    return FlattenImage(
        target=layer.target,
        source=image.spelled,
        format=image.format,
        overlay=final,
        staged=staged,
        virtual_size=image.virtual_size,
        size=sum(each.allocation for each in chain.images),
        features=features,
        bitmaps=bool(image.bitmaps),
    )
