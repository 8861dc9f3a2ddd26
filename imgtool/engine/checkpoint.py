"""How far copies of large files have come: one small file each, in the domain's corner.

<state>/<domain uuid>/copy-<digest of the final name>
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.engine.journal import decode, encode, from_json, to_json
from imgtool.engine.room import uuids
from imgtool.host.files import Files, names_below
from imgtool.model.image import Identity

VERSION = 1
MAX_BYTES = 1 << 20  # three paths and some numbers
_PREFIX, _NEW = "copy-", ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What is on the disk, durably, of the copy of one file."""

    source: Path
    identity: Identity  # of the source when copying began
    copy: Path  # its final name
    staged: Path  # beside it; ours as soon as this is written down
    inode: int = 0  # of the staged file; 0: it may not be there yet
    valid: int = 0  # bytes from its beginning that are right
    shared: bool = False  # it is a reflink
    mtime_ns: int = 0  # of the copy, once it is complete and verified; 0: it is not yet

    @property
    def complete(self) -> bool:
        return self.mtime_ns != 0

    def is_of(self, source: Path, identity: Identity) -> bool:
        """Whether the source is still that file. Device numbers may change at boot."""
        now = (source, identity.inode, identity.size, identity.mtime_ns)
        then = self.identity
        return now == (self.source, then.inode, then.size, then.mtime_ns)

    def is_complete_at(self, path: Path) -> bool:
        """Whether `path` is the complete copy that this tells of, and was not written to since."""
        try:
            facts = path.lstat()
        except OSError:
            return False
        made = (self.inode, self.identity.size, self.mtime_ns)
        return self.complete and made == (facts.st_ino, facts.st_size, facts.st_mtime_ns)

    def is_staged(self) -> bool:
        """Whether the staged file is there and ours."""
        try:
            return self.staged.lstat().st_ino == self.inode
        except OSError:
            return False


class Checkpoints:
    """All that one domain has. Its corner is there as long as there is one in it."""

    def __init__(self, folder: Path, files: Files) -> None:
        self.folder = folder
        self._files = files

    def read(self) -> tuple[Checkpoint, ...]:
        """Those that can be read; of another version of imgtool, none."""
        return tuple(self._read())

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace what was said of this copy, durably. A crash leaves the old or the new."""
        path = self._path(checkpoint.copy)
        line = encode({"imgtool": VERSION, "copy": to_json(checkpoint)})
        self._files.write_atomically(path, line, temp=path.with_name(path.name + _NEW))

    def forget(self, copy: Path) -> None:
        """Remove what was said of this copy. Not synced: should it come back, it is still true."""
        self._files.unlink(self._path(copy))

    def tidy(self) -> None:
        """Remove what a crash has left of an atomic write. The domain's lock is held."""
        for name in names_below(self.folder):
            if name.startswith(_PREFIX) and name.endswith(_NEW):
                self._files.unlink(self.folder / name)

    def _path(self, copy: Path) -> Path:
        digest = hashlib.blake2b(os.fsencode(copy), digest_size=8).hexdigest()
        return self.folder / f"{_PREFIX}{digest}"

    def _read(self) -> Iterator[Checkpoint]:
        for name in names_below(self.folder):
            if not name.startswith(_PREFIX) or name.endswith(_NEW):
                continue
            try:
                blob = self._files.read(self.folder / name, limit=MAX_BYTES)
            except OSError:
                continue
            for record in decode(blob):
                if record.get("imgtool") == VERSION:
                    yield from_json(Checkpoint, record["copy"])


def all_checkpoints(state_dir: Path, files: Files) -> dict[str, tuple[Checkpoint, ...]]:
    """Those of every domain in the state folder, by UUID."""
    return {uuid: Checkpoints(state_dir / uuid, files).read() for uuid in uuids(state_dir)}
