"""What every state machine of ours has: a domain with a model of it, checked after every step."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant

from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing.domains import make_domain
from imgtool.testing.images import KIB, make_image, write_pattern
from imgtool.testing.moments import Expected, Place
from imgtool.testing.rig import Rig, recovery
from imgtool.testing.strategies import ImageDraft, small_disks

DOMAIN = "vm"
MAX_DISKS = 3
MAX_SIZE = 512 * KIB  # bytes, of a disk when it is made
MAX_EFFECTS = 120  # of one operation; a snapshot of three disks has about 110


def seldom(event: str) -> Callable[[Stage], bool]:
    """For preconditions: not more often than every sixth step, so that others get their turn."""
    return lambda machine: 6 * machine.rig.events[event] < machine.rig.events["steps"]


class Stage(RuleBasedStateMachine):
    """One domain of up to three disks, some of them overlays from the beginning."""

    rig_type: type[Rig] = Rig
    """How imgtool is called; tests of this machine put broken tools in."""

    rig: Rig

    def __init__(self) -> None:
        super().__init__()
        memory = Path("/dev/shm")
        self.place = Path(
            tempfile.mkdtemp(prefix="machine-", dir=memory if memory.is_dir() else None)
        )
        self._sound = True

    @initialize(drafts=small_disks(max_disks=MAX_DISKS, max_size=MAX_SIZE))
    def make(self, drafts: list[ImageDraft]) -> None:
        """The domain, and one piece of data in each image."""
        folder = self.place / "store"
        scratch = self.place / "scratch"
        folder.mkdir()
        scratch.mkdir()
        chains = {
            f"vd{'abc'[number]}": _make_chain(folder / f"disk,{number}", draft, 0xA0 + number)
            for number, draft in enumerate(drafts)
        }
        active = {target: chain[-1] for target, chain in chains.items()}
        disks = [
            Disk(target=target, source=top.path, format=top.format, format_name=top.format)
            for target, top in active.items()
        ]
        contents = dict(zip(chains, map(_content, drafts, range(0xA0, 0xB0)), strict=False))
        expected = Expected(
            active=active,
            contents=contents,
            files=frozenset(layer.path for chain in chains.values() for layer in chain),
            chains=chains,
        )
        self.rig = self.rig_type(make_domain(folder, DOMAIN, disks), expected, scratch)

    @invariant()
    def all_is_as_expected(self) -> None:
        """XML, snapshots, files, and every byte that can be read."""
        if "rig" in self.__dict__:
            self._sound = False
            self.rig.verify()
            self._sound = True
            self.rig.events["steps"] += 1

    def teardown(self) -> None:
        """Whatever is pending in the end must be recoverable."""
        try:
            if self._sound and "rig" in self.__dict__ and self.rig.disturbed:
                self.rig.perform(recovery())
                self.rig.verify()
        finally:
            shutil.rmtree(self.place)

    @property
    def settled(self) -> bool:
        """Where things are is known, so that what is possible can be foretold."""
        return not self.rig.unlearned

    @property
    def expected(self) -> Expected:
        return self.rig.expected


def _make_chain(stem: Path, draft: ImageDraft, byte: int) -> tuple[Place, ...]:
    """Base first; each layer has 1 KiB of `byte` + 16 for each that is below it."""
    layers: list[Place] = []
    for number in range(draft.layers):
        base = layers[-1] if layers else None
        fmt = Format.QCOW2 if base else draft.format
        path = stem.with_name(f"{stem.name}.{fmt}{number or ''}")
        make_image(
            path,
            fmt,
            draft.size,
            features=draft.features,
            backing=base.path if base else None,
            backing_format=base.format if base else None,
        )
        write_pattern(path, fmt, number * 512, 1024, byte + 16 * number)
        version_2 = draft.features is not None and draft.features.compat == "0.10"
        layers.append(Place(path=path, format=fmt, internal=fmt is Format.QCOW2 and not version_2))
    return tuple(layers)


def _content(draft: ImageDraft, byte: int) -> bytes:
    """What a guest reads through all of these layers."""
    data = b"".join(bytes([byte + 16 * number]) * 512 for number in range(draft.layers))
    data += data[-512:]
    return data + bytes(draft.size - len(data))
