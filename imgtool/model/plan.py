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
    """Make an empty child of `base`. Undo: unlink the overlay. `base` is not written.

    `unchecked`: what `backing` leads to is not opened. It may not be there yet, or a running
    guest may have it; `base` only lends its owner, mode and labels.
    """

    target: str  # disk, as in the domain XML: 'vda'
    base: Path
    base_format: Format
    backing: str  # what the overlay records as its backing file name
    overlay: Path  # final name
    staged: Path  # beside it
    virtual_size: int  # bytes, equal to the base's
    features: Qcow2Features
    unchecked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One image of a chain that qemu-img will write, read below another, or commit from."""

    path: Path
    format: Format
    block_device: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeInPlace:
    """Run qemu-img commands on a qcow2 image that exists. Undo: write the old bytes back.

    Each of `commands` is a qemu-img subcommand with its arguments, without the image; words after
    a `--` follow the image.
    """

    target: str
    image: Path
    identity: Identity
    block_device: bool
    commands: tuple[tuple[str, ...], ...]
    redo: Path  # scratch image in the workspace
    undo: Path  # the bytes that the redo overwrites, in the workspace
    below: tuple[Node, ...] = ()  # its base, where a command has to know what that shows


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyImage:
    """Copy what one internal snapshot shows into an image of its own. Undo: unlink the copy."""

    target: str
    base: Path  # the image that has the snapshot; it is not written
    base_format: Format
    snapshot_id: str
    overlay: Path  # final name of the copy
    staged: Path  # beside it
    virtual_size: int  # bytes
    features: Qcow2Features


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyLayer:
    """Copy one image file whole, with all that is inside. Undo: unlink the copy.

    Nothing but the name of its base may differ. The source is not written; a block device becomes
    a file.
    """

    target: str
    source: Path  # links resolved
    format: Format
    overlay: Path  # final name of the copy
    staged: Path  # beside it
    size: int  # bytes of the file, or of the block device
    backing: str | None = None  # what the copy records as its base; None: what the source does
    compared: bool = False  # read back, unless it shares the blocks of its source

    @property
    def base(self) -> Path:
        """Whose owner, mode and labels the new file gets."""
        return self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class FlattenImage:
    """Copy all that a guest reads of an image into a qcow2 without a base. Undo: unlink the copy.

    The image and those below it are not written.
    """

    target: str
    source: Path  # as QEMU has to open it, so that it finds the base
    format: Format
    overlay: Path  # final name of the copy
    staged: Path  # beside it
    virtual_size: int  # bytes
    size: int  # bytes to copy, at most
    features: Qcow2Features
    bitmaps: bool  # the image has some, and the copy will, too

    @property
    def base(self) -> Path:
        """Whose owner, mode and labels the new file gets."""
        return self.source


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeDown:
    """Commit the data of all layers above `layers[0]` into it (block commit).

    What the guest sees through the last layer does not change at any moment, and running it
    again completes it, so that there is nothing to undo as long as the last layer is there.
    """

    target: str
    layers: tuple[Node, ...]  # base first; at least two


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeBitmaps:
    """Add what bitmaps of a merged layer have marked to those of the same names in the base.

    The guest sees none of it, and twice is once: nothing to undo.
    """

    target: str
    base: Node
    source: Node
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeRaw:
    """Set the length of a raw image, in bytes.

    A step of a plan only grows, and its undo cuts off what it has added, unless that was written
    to since. Cutting off what was there before has no undo: it belongs to the aftermath.
    """

    target: str
    image: Path
    inode: int
    old_size: int
    new_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PullImage:
    """Copy into an overlay what it has from the layers above its new base, then change its base.

    What is seen through the image does not change at any moment. Undo: record the old base, which
    shows nothing else; the copied data stay.
    """

    target: str
    image: Path
    backing: str  # the name it will record; empty: no base any more
    backing_format: Format | None
    old_backing: str  # the name it records now
    old_backing_format: Format
    below: tuple[Node, ...] = ()  # all its layers, base first, where none of them is to be left


@dataclass(frozen=True, slots=True, kw_only=True)
class CarryOver:
    """Copy what an active layer holds itself into its mirror, which then shows the same.

    Nobody names the mirror yet, and twice is once: nothing to undo.
    """

    target: str
    source: Node  # the active layer
    mirror: Node
    verify: bool  # compare what both show afterwards: the mirror had data already


@dataclass(frozen=True, slots=True, kw_only=True)
class Relink:
    """Record another base with the same content, without copying (an `unsafe` rebase).

    One header write; either name shows the same as long as both images are there.
    """

    target: str
    image: Path
    backing: str
    backing_format: Format


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """Remove an image that nothing needs any more, if it is still that file. After the pivot."""

    target: str
    path: Path
    inode: int


Made = CreateOverlay | CopyImage | CopyLayer | FlattenImage
Rewrite = MergeDown | PullImage | MergeBitmaps | ResizeRaw | CarryOver
Step = Made | ChangeInPlace | Rewrite


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaceRecord:
    """Put other metadata in place of a snapshot's. After the pivot only."""

    name: str
    xml: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DropRecord:
    """Drop a snapshot's metadata, its children having got another parent. After the pivot only."""

    name: str


RecordStep = PutRecord | SetCurrent
LateRecord = ReplaceRecord | DropRecord | SetCurrent


@dataclass(frozen=True, slots=True, kw_only=True)
class Repoint:
    """A disk that changes from one image to another of the same content, after the pivot."""

    target: str
    was: Path
    path: Path
    format: Format
    block_device: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Aftermath:
    """What remains to be done once the pivot has decided: in this order, each step idempotent.

    There is no way back from here, and none is needed: what the domain shows is right throughout.
    """

    merges: tuple[MergeDown, ...] = ()
    relinks: tuple[Relink, ...] = ()
    repoints: tuple[Repoint, ...] = ()
    cuts: tuple[ResizeRaw, ...] = ()
    records: tuple[LateRecord, ...] = ()
    drops: tuple[Drop, ...] = ()

    @property
    def images(self) -> tuple[tuple[str, Path], ...]:
        """Disk and path of each image that will be written."""
        written = [(step.target, node.path) for step in self.merges for node in step.layers]
        written += [(step.target, step.image) for step in self.relinks]
        return (*written, *((step.target, step.image) for step in self.cuts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """An image that must neither change nor be opened for writing until the plan has ended."""

    target: str
    path: Path
    identity: Identity
    exclusive: bool = False  # nobody else may even read it: it is changed, or removed
    written: bool = True  # if exclusive: qemu-img writes it, and opens it without locks of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Bytes that the plan may write in a folder's file system."""

    target: str
    folder: Path
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that one transaction will do, and every path it may create.

    `files_only`: it makes files that no domain names yet, and the domain, which may run, is left
    alone. Its commit record is a line in the journal, written when all of them have their names.
    """

    txid: str
    store: str  # URI of the store
    domain: str
    uuid: str
    summary: str  # for people: 'snapshot s1 of vm'
    steps: tuple[Step, ...]
    records: tuple[RecordStep, ...] = ()
    workspace: Path
    aftermath: Aftermath = Aftermath()
    files_only: bool = False

    @property
    def made(self) -> tuple[Made, ...]:
        """Steps that make a new image, staged beside its final name."""
        return tuple(step for step in self.steps if isinstance(step, Made))

    @property
    def rewrites(self) -> tuple[Rewrite, ...]:
        """Steps that write images that exist, without changing what a guest finds in them."""
        return tuple(step for step in self.steps if isinstance(step, Rewrite))

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
    block_device: bool = False  # libvirt then wants type='block'
    over: bool = True  # an overlay of the image that the XML names until then


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What only the process that made the plan needs: never journalled."""

    expected: str  # digest of the domain XML that was surveyed
    xml: bytes  # the domain XML that the pivot will define
    records: tuple[bytes, ...] = ()  # XML of each PutRecord, in order
    pins: tuple[Pin, ...] = ()
    space: tuple[Space, ...] = ()
