"""The journal: append-only, checksummed lines. Absent means that nothing is open.

A line is `crc32 json`. The first says what a transaction is about to do, the second what it has
staged, and a third, where no domain XML can say it, that it is done. Torn lines were never acted
upon, so reading stops there.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from imgtool.host.files import Files
from imgtool.model.errors import PendingError
from imgtool.model.image import Identity
from imgtool.model.plan import (
    CarryOver,
    ChangeInPlace,
    CopyImage,
    CopyLayer,
    CreateOverlay,
    DropRecord,
    FlattenImage,
    MergeBitmaps,
    MergeDown,
    Plan,
    PullImage,
    PutRecord,
    ReplaceRecord,
    ResizeRaw,
    SetCurrent,
)

VERSION = 1
MAX_BYTES = 256 * 1024 * 1024  # extents of very large images; read once, on recovery


@dataclass(frozen=True, slots=True)
class Extent:
    """A range of an image that a redo overwrites."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedOverlay:
    """An overlay as it was when its journal line was written: not yet used by anybody."""

    staged: Path
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedChange:
    """What the undo file of an in-place change holds: these ranges, one after the other."""

    image: Path
    old_size: int  # bytes
    new_size: int  # bytes
    extents: tuple[Extent, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """Everything is staged and synced: from here on images that exist may be changed."""

    overlays: tuple[StagedOverlay, ...]
    changes: tuple[StagedChange, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What a journal says of the transaction that it belongs to."""

    plan: Plan
    staged: Staged | None
    done: bool = False  # of a plan of files only: this is its commit record


class Journal:
    """One domain's journal file. Its folder is there and synced."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files

    def begin(self, plan: Plan) -> None:
        """Write down the plan, durably. A crash inside leaves nothing, a torn line, or the plan."""
        self._files.append(self.path, encode({"imgtool": VERSION, "begin": to_json(plan)}))
        # The folders above, too: who made them may have died before their names reached the disk.
        for folder in (self.path.parent, *self.path.parent.parents[:2]):
            self._files.sync_dir(folder)

    def staged(self, staged: Staged) -> None:
        """Write down, durably, what has been staged."""
        self._files.append(self.path, encode({"staged": to_json(staged)}))

    def done(self) -> None:
        """Commit a plan of files only, durably. A crash inside leaves it committed, or not."""
        self._files.append(self.path, encode({"done": True}))

    def settle(self) -> None:
        """Make what `pending` says now survive a power cut (redoes a sync that was lost)."""
        self._files.sync_file(self.path)

    def pending(self) -> Pending | None:
        """The transaction that is open; None if there is none, or none that has begun.

        Raises PendingError for a journal of another version of imgtool.
        """
        try:
            blob = self._files.read(self.path, limit=MAX_BYTES)
        except FileNotFoundError:
            return None
        records = list(decode(blob))
        if not records:
            return None
        if records[0].get("imgtool") != VERSION:
            raise PendingError(
                f"{self.path}: written by another version of imgtool",
                remedy="run `imgtool recover` of the version that wrote it",
            )
        staged = next((record["staged"] for record in records if "staged" in record), None)
        return Pending(
            plan=from_json(Plan, records[0]["begin"]),
            staged=None if staged is None else from_json(Staged, staged),
            done=any("done" in record for record in records),
        )

    def remove(self) -> None:
        """The transaction has ended. Durable; a crash leaves the journal or does not."""
        self._files.unlink(self.path)
        self._files.sync_dir(self.path.parent)


def encode(record: dict[str, Any]) -> bytes:
    """One line; file names that are not UTF-8 survive as escaped surrogates."""
    body = json.dumps(record, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def decode(blob: bytes) -> Iterator[dict[str, Any]]:
    """Yield records up to the first torn line. What a torn line said was not acted upon."""
    for line in blob.splitlines(keepends=True):
        crc, _, body = line.rstrip(b"\n").partition(b" ")
        if not line.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
            return
        yield json.loads(body)


_MADE = (CreateOverlay, CopyImage, CopyLayer, FlattenImage)
_STEPS = (*_MADE, CarryOver, ChangeInPlace, MergeDown, MergeBitmaps, PullImage, ResizeRaw)
_RECORDS = (PutRecord, SetCurrent, ReplaceRecord, DropRecord)
_TAGGED = {kind.__name__: kind for kind in (*_STEPS, *_RECORDS)}


def to_json(value: object) -> Any:
    """A dataclass as plain JSON; members of a union of steps carry their kind."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        kind = type(value).__name__
        return {"kind": kind, **fields} if kind in _TAGGED else fields
    if isinstance(value, tuple):
        return [to_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def from_json(kind: Any, value: Any) -> Any:
    """The inverse of `to_json` for a value of type `kind`."""
    if isinstance(value, dict):
        chosen = _TAGGED.get(value.get("kind", ""), kind)
        hints = typing.get_type_hints(chosen)
        names = {field.name for field in dataclasses.fields(chosen)}
        return chosen(**{name: from_json(hints[name], value[name]) for name in names & set(value)})
    if isinstance(value, list):
        item = typing.get_args(kind)[0]
        return tuple(from_json(item, each) for each in value)
    if value is None or isinstance(kind, types.UnionType):
        return value
    if isinstance(kind, type) and issubclass(kind, Path | StrEnum):
        return kind(value)
    return value
