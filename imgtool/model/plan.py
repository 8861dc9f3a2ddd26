"""Plans: frozen steps, as data. The engine knows how to run and undo them.

A plan is journalled before anything happens, so it holds all that a later process needs to undo
or finish it, and nothing that only the first process needs (the new XML: see `Commit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from imgtool.model.image import Format, Identity, Qcow2Features


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateOverlay:
    """Make an empty child of `base`. Undo: unlink the overlay. `base` is not written."""

    target: str  # disk, as in the domain XML: 'vda'
    base: Path
    base_format: Format
    backing: str  # what the overlay records as its backing file name
    overlay: Path  # final name
    staged: Path  # beside it
    virtual_size: int  # bytes, equal to the base's
    features: Qcow2Features


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeInPlace:
    """Run one qemu-img command on a qcow2 image that exists. Undo: write the old bytes back.

    `command` is a qemu-img subcommand with its arguments, without the image.
    """

    target: str
    image: Path
    identity: Identity
    block_device: bool
    command: tuple[str, ...]
    redo: Path  # scratch image in the workspace
    undo: Path  # the bytes that the redo overwrites, in the workspace


Step = CreateOverlay | ChangeInPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class PutRecord:
    """Keep snapshot metadata. Undo: put `previous` back, or drop what carries our id."""

    name: str
    previous: str | None = None  # the XML it replaces


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCurrent:
    """Mark a snapshot as the current one. Undo: mark `previous`."""

    name: str | None
    previous: str | None


RecordStep = PutRecord | SetCurrent


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """An image that must neither change nor be opened for writing until the plan has ended."""

    target: str
    path: Path
    identity: Identity
    exclusive: bool = False  # changed in place by this plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Bytes that the plan may write in a folder's file system."""

    target: str
    folder: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that one transaction will do, and every path it may create."""

    txid: str
    store: str  # URI of the store
    domain: str
    uuid: str
    summary: str  # for people: 'snapshot s1 of vm'
    steps: tuple[Step, ...]
    records: tuple[RecordStep, ...] = ()
    workspace: Path

    @property
    def overlays(self) -> tuple[CreateOverlay, ...]:
        return tuple(step for step in self.steps if isinstance(step, CreateOverlay))

    @property
    def changes(self) -> tuple[ChangeInPlace, ...]:
        return tuple(step for step in self.steps if isinstance(step, ChangeInPlace))


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A disk whose domain XML will name another image."""

    target: str
    path: Path
    format: Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What only the process that made the plan needs: never journalled."""

    expected: str  # digest of the domain XML that was surveyed
    xml: bytes  # the domain XML that the pivot will define
    records: tuple[bytes, ...] = ()  # XML of each PutRecord, in order
    pins: tuple[Pin, ...] = ()
    space: tuple[Space, ...] = ()
