"""What every plan begins with: whose it is, where its workspace is, what it may rely on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import Head
from imgtool.model.errors import ChainError, UnsupportedError
from imgtool.model.image import Format, Image
from imgtool.model.plan import Aftermath, ChangeInPlace, Node, Plan, RecordStep, Step


@dataclass(frozen=True, slots=True, kw_only=True)
class Undertaking:
    """One transaction on one domain, before its steps are known."""

    head: Head
    store: str  # URI
    txid: str
    workspace: Path

    def plan(
        self,
        summary: str,
        steps: Sequence[Step],
        *,
        records: Sequence[RecordStep] = (),
        aftermath: Aftermath | None = None,
        files_only: bool = False,
    ) -> Plan:
        """The plan of these steps; `summary` is for people."""
        domain = self.head.domain
        return Plan(
            txid=self.txid,
            store=self.store,
            domain=domain.name,
            uuid=domain.uuid,
            summary=summary,
            steps=tuple(steps),
            records=tuple(records),
            workspace=self.workspace,
            aftermath=aftermath or Aftermath(),
            files_only=files_only,
        )

    def staged(self, final: Path, number: int) -> Path:
        """Where an image waits for its final name: beside it, so that relative names hold."""
        return final.parent / f".imgtool-{self.txid}-{number}"

    def change(
        self,
        target: str,
        image: Image,
        commands: Sequence[tuple[str, ...]],
        number: int | str,
        *,
        below: tuple[Node, ...] = (),
    ) -> ChangeInPlace:
        """A staged change of an image that exists.

        Raises ChainError for a damaged image, UnsupportedError for one that cannot be blocked.
        """
        require_sound(target, image)
        if image.format is not Format.QCOW2 or image.features is None:
            raise UnsupportedError(
                f"{target}: {image.spelled} is a {image.format} image", remedy="convert it to qcow2"
            )
        if image.features.compat == "0.10":
            raise UnsupportedError(
                f"{target}: {image.spelled} is a compat=0.10 image, which cannot be blocked",
                remedy=f"qemu-img amend -f qcow2 -o compat=1.1 {image.spelled}",
            )
        return ChangeInPlace(
            target=target,
            image=image.path,
            identity=image.identity,
            block_device=image.block_device,
            commands=tuple(commands),
            redo=self.workspace / f"redo-{number}",
            undo=self.workspace / f"undo-{number}",
            below=below,
        )


def require_sound(target: str, image: Image) -> None:
    """Raises ChainError for an image that must be recovered or repaired first."""
    if image.corrupt or image.dirty:
        word = "corrupt" if image.corrupt else "dirty"
        raise ChainError(
            f"{target}: {image.spelled} is marked {word}",
            remedy=f"imgtool recover; else qemu-img check -r all -f {image.format} {image.spelled}",
        )


def node(image: Image) -> Node:
    """The image as a layer of a chain that qemu-img opens."""
    return Node(path=image.path, format=image.format, block_device=image.block_device)
