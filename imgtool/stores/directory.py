"""The embedded store: a folder of NAME.xml files. No daemon, nothing but files.

PATH/
 +- vm.xml                     the domain XML, by hand or from virsh dumpxml
 +- .imgtool/
     +- <uuid of vm>/
         +- snapshots/s1.xml   <domainsnapshot>, as libvirt writes it
         +- current            name of the current snapshot; absent: none is
         +- new                what an atomic write is writing
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgtool.host.files import Files, names_below
from imgtool.model.domain import DomainState, Head
from imgtool.model.errors import (
    BadRequestError,
    NotDurableError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    XmlError,
)
from imgtool.stores.base import require_free, require_no_snapshots, require_pivotal
from imgtool.stores.names import NAME_MAX, SUFFIX, require_file_name
from imgtool.xml import safe
from imgtool.xml.domain import head as head_of
from imgtool.xml.domain import parse_domain, with_uuid


class DirectoryStore:
    """Domains of a folder. They never run, as far as this store can see.

    Comments, order and formatting of the XML are kept: bytes go in as they come. Files are
    replaced atomically, with mode and owner of the old one; new ones are 0600, since domain XML
    may hold passwords. Reading creates nothing, so a read-only folder can be read. Folders
    below `.imgtool` live only while something is in them.
    """

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path.resolve()
        self.uri = f"dir:{self.path}"
        self.state_dir = self.path / ".imgtool"
        self._files = files
        if not self.path.is_dir():
            raise StoreError(f"{self.path} is not a folder", remedy=f"mkdir {self.path}")

    def domains(self) -> tuple[str, ...]:
        """Names of the NAME.xml files that are not hidden; what is in them is not looked at."""
        with _failing(self.path):
            names = sorted(entry.name for entry in self.path.iterdir())
        return tuple(n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX) and n[0] != ".")

    def state(self, domain: str) -> DomainState:
        return self.head(domain).state

    def head(self, domain: str) -> Head:
        """Raises UnsupportedError for a symbolic link, XmlError where the names disagree."""
        if os.path.lexists(self._file(domain)):
            return self._read(domain)
        with suppress(ValueError):
            if head := self._by_uuid(str(uuid.UUID(domain))):
                return head
        raise NotFoundError(
            f"no domain {domain!r} in {self.path}", remedy=f"imgtool -c {self.uri} list"
        )

    def pivot(self, domain: str, *, expected: str, xml: bytes) -> None:
        """One rename(2). A crash leaves the old XML or the new one, and perhaps `new`."""
        head = self.head(domain)
        require_pivotal(head, expected=expected, xml=xml)
        path = self._file(head.domain.name)
        try:
            with _failing(path):
                self._write(path, xml, head.domain.uuid, mode=path.stat().st_mode & 0o777)
        except StoreError as error:
            with suppress(OSError):
                if self._files.read(path, limit=safe.MAX_BYTES) == xml:
                    raise NotDurableError(
                        f"{path} has the new XML, but a power cut may take it back: {error}",
                        remedy="mend the disk, then run: imgtool recover",
                    ) from error
            raise

    def quiesce(self, domain: str) -> None:
        """Nothing to wait for: what has died does nothing any more."""

    def settle(self, domain: str) -> None:
        """Idempotent; a crash inside leaves some of it to do again."""
        head = self.head(domain)
        home = self._home(head)
        with _failing(self.path):
            if os.path.lexists(home / "new"):
                self._files.unlink(home / "new")
            self._files.sync_file(self._file(head.domain.name))
            for folder in (home / "snapshots", home, self.state_dir, self.path):
                if folder.is_dir():
                    self._files.sync_dir(folder)
        self._tidy(head.domain.uuid)

    def snapshots(self, domain: str) -> tuple[bytes, ...]:
        """Raises XmlError for a record whose file has another name than the snapshot."""
        head = self.head(domain)
        return tuple(self._read_record(head, name) for name in self._recorded(head))

    def current(self, domain: str) -> str | None:
        """A name that is written down but not recorded counts for nothing."""
        return self._current(self.head(domain))

    def record(self, domain: str, name: str, xml: bytes, *, current: bool) -> None:
        """One rename for the record, then one for `current`: a crash between leaves the first."""
        head = self.head(domain)
        path = self._record_file(head, name)
        _require_name(xml, name, where=f"snapshot {name} of {domain}")
        with _failing(path):
            self._files.make_dirs(path.parent)
            self._write(path, xml, head.domain.uuid)
        if current:
            self.set_current(domain, name)

    def forget_lost(self, uuid: str, name: str, *, current: str | None) -> None:
        """Whoever removed NAME.xml by hand may put it back: the rest is as it was then."""
        require_file_name(name, "snapshot")
        home = self.state_dir / uuid
        folder, mark = home / "snapshots", home / "current"
        with _failing(home):
            for path in (folder / (name + SUFFIX), home / "new"):
                self._files.unlink(path)
            marked = os.path.lexists(mark) and self._files.read(mark, limit=NAME_MAX + 1)
            if marked == name.encode() + b"\n":
                if current is None:
                    self._files.unlink(mark)
                else:
                    self._write(mark, current.encode() + b"\n", uuid)
            for each in (folder, home):
                if each.is_dir():
                    self._files.sync_dir(each)
        self._tidy(uuid)

    def forget(self, domain: str, name: str) -> None:
        """Moves `current` first, then drops the record: calling again finishes."""
        head = self.head(domain)
        path = self._record_file(head, name)
        with _failing(path):
            if not os.path.lexists(path):
                return
        if self._current(head) == name:
            record = safe.parse(self._read_record(head, name), root="domainsnapshot", where=name)
            parent = record.findtext("parent/name")
            self.set_current(domain, parent if parent in self._recorded(head) else None)
        with _failing(path):
            self._files.unlink(path)
            self._files.sync_dir(path.parent)
        self._tidy(head.domain.uuid)

    def set_current(self, domain: str, name: str | None) -> None:
        """One rename, or one unlink."""
        head = self.head(domain)
        path = self._home(head) / "current"
        if name is not None and name not in self._recorded(head):
            raise NotFoundError(
                f"domain {domain} has no snapshot {name!r}", remedy="see snapshot-list"
            )
        with _failing(path):
            if name is not None:
                self._write(path, name.encode() + b"\n", head.domain.uuid)
            elif os.path.lexists(path):
                self._files.unlink(path)
                self._files.sync_dir(path.parent)
        self._tidy(head.domain.uuid)

    def define(self, xml: bytes) -> str:
        """One rename(2). An XML without UUID gets its `<uuid>` behind `<name>`."""
        name = parse_domain(xml, where="the domain to define").name
        path = self._file(name)
        present = self._read(name) if os.path.lexists(path) else None
        new_uuid = present.domain.uuid if present else str(uuid.uuid4())
        xml = with_uuid(xml, new_uuid, where=f"domain {name}")
        head = head_of(xml, where=f"domain {name}")
        require_free(head.domain, present, *self._readable())
        with _failing(path):
            mode = path.stat().st_mode & 0o777 if present else 0o600
            self._write(path, xml, head.domain.uuid, mode=mode)
        self._tidy(head.domain.uuid)
        return name

    def undefine(self, domain: str, *, snapshots_metadata: bool = False) -> None:
        """Snapshot metadata goes first, so that no later domain inherits it by its UUID."""
        head = self.head(domain)
        names = self._recorded(head)
        if not snapshots_metadata:
            require_no_snapshots(domain, len(names))
        self.set_current(domain, None)
        path = self._file(head.domain.name)
        with _failing(path):
            for name in names:
                self._files.unlink(self._record_file(head, name))
            if names:
                self._files.sync_dir(self._home(head) / "snapshots")
            self._files.unlink(path)
            self._files.sync_dir(self.path)
        self._tidy(head.domain.uuid)

    def volume(self, pool: str, volume: str) -> Path:
        raise UnsupportedError(
            f"volume {volume} of pool {pool}: a folder of domains has no storage pools",
            remedy="give the disk type='file' and the path of its image",
        )

    def close(self) -> None:
        """Nothing is held open."""

    def _file(self, domain: str) -> Path:
        require_file_name(domain, "domain")
        return self.path / (domain + SUFFIX)

    def _home(self, head: Head) -> Path:
        return self.state_dir / head.domain.uuid

    def _record_file(self, head: Head, snapshot: str) -> Path:
        require_file_name(snapshot, "snapshot")
        return self._home(head) / "snapshots" / (snapshot + SUFFIX)

    def _recorded(self, head: Head) -> tuple[str, ...]:
        folder = self._home(head) / "snapshots"
        with _failing(folder):
            names = tuple(names_below(folder))
        return tuple(n.removesuffix(SUFFIX) for n in names if n.endswith(SUFFIX) and n[0] != ".")

    def _read_record(self, head: Head, snapshot: str) -> bytes:
        path = self._record_file(head, snapshot)
        with _failing(path):
            xml = self._files.read(path, limit=safe.MAX_BYTES)
        _require_name(xml, snapshot, where=str(path))
        return xml

    def _current(self, head: Head) -> str | None:
        path = self._home(head) / "current"
        with _failing(path):
            if not os.path.lexists(path):
                return None
            text = self._files.read(path, limit=NAME_MAX + 1)
        name = text.decode(errors="replace").removesuffix("\n")
        return name if name in self._recorded(head) else None

    def _by_uuid(self, wanted: str) -> Head | None:
        """Raises StoreError if it may be that of a file that cannot be read.

        On "not found", recovery would take back what that very file has committed.
        """
        doubt = ""
        for name in self.domains():
            try:
                head = self._read(name)
            except (BadRequestError, StoreError) as error:
                doubt = doubt or error.message
                continue
            if head.domain.uuid == wanted:
                return head
        if doubt:
            raise StoreError(
                f"UUID {wanted} may be that of a domain that cannot be read: {doubt}",
                remedy=f"mend that file, or move it out of {self.path}",
            )
        return None

    def _readable(self) -> Iterator[Head]:
        """The domains that can be read; what is wrong with others is said when they are named."""
        for name in self.domains():
            with suppress(BadRequestError, StoreError):
                yield self._read(name)

    def _read(self, name: str) -> Head:
        path = self._file(name)
        if path.is_symlink():
            raise UnsupportedError(
                f"{path} is a symbolic link, which an atomic write would replace",
                remedy=f"use the folder it leads to: {path.resolve().parent}",
            )
        with _failing(path):
            head = head_of(self._files.read(path, limit=safe.MAX_BYTES), where=str(path))
        if head.domain.name != name:
            raise XmlError(
                f"{path}: is of a domain called {head.domain.name!r}",
                remedy="let file name and <name> agree",
            )
        return head

    def _write(self, path: Path, data: bytes, domain_uuid: str, *, mode: int = 0o600) -> None:
        """Replace `path`. A failure leaves nothing behind; a crash may leave `new`."""
        home = self.state_dir / domain_uuid
        try:
            self._files.make_dirs(home)
            self._files.write_atomically(path, data, temp=home / "new", mode=mode)
        except OSError:
            with suppress(OSError):
                self._files.unlink(home / "new")
            with suppress(StoreError):
                self._tidy(domain_uuid)
            raise

    def _tidy(self, domain_uuid: str) -> None:
        """Remove what is empty of our folders. Looks first: rmdir fails on read-only storage."""
        home = self.state_dir / domain_uuid
        for folder in (home / "snapshots", home, self.state_dir):
            with _failing(folder):
                if folder.is_dir() and not names_below(folder):
                    self._files.remove_empty(folder)


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Turn what the operating system says into StoreError."""
    try:
        yield
    except OSError as error:
        place = error.filename or path
        raise StoreError(
            f"{place}: {error.strerror or error}", remedy="see permissions, space and mounts"
        ) from error


def _require_name(xml: bytes, name: str, *, where: str) -> None:
    found = safe.parse(xml, root="domainsnapshot", where=where).findtext("name")
    if found != name:
        raise XmlError(f"{where}: is of a snapshot called {found!r}", remedy="let names agree")
