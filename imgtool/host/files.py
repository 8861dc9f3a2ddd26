"""The only module that changes files: sync, link, unlink, flock, ranges.

Every method is one durable effect, or says what else must be synced. Tests hand the engine a
subclass that dies at the n-th call.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imgtool.host.copying import copy_image, share
from imgtool.host.image_file import ImageFile
from imgtool.model.image import Identity

CHUNK = 1024 * 1024  # bytes per read and write of a range
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW
_LABEL, _ACL = "security.selinux", "system.posix_acl_access"
_ACL_HEADER, _ACL_ENTRY = struct.Struct("<I"), struct.Struct("<HHI")  # Linux, posix_acl_xattr.h
_ACL_USER_OBJ, _ACL_OTHER = 0x01, 0x20


class Files:
    """Durable primitives. Each may raise OSError; those given a path name it in `filename`."""

    def write_atomically(self, path: Path, data: bytes, *, temp: Path, mode: int = 0o600) -> None:
        """Replace `path` by `data`: write `temp`, sync, rename, sync both folders.

        `temp` is on the same file system and may be a leftover of an earlier crash. A crash
        leaves the old content or the new one under `path`, and perhaps `temp`.
        """
        descriptor = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OPEN, mode)
        with _closing(descriptor, path):
            os.fchmod(descriptor, mode)
            if path.exists():
                _take_owner(descriptor, path.stat())
            _write_all(descriptor, data)
            self.sync(descriptor)
        temp.rename(path)
        self.sync_dir(path.parent)
        if temp.parent != path.parent:
            self.sync_dir(temp.parent)

    def append(self, path: Path, data: bytes) -> None:
        """Add `data` to `path` (created if missing, 0600) and sync the file, not its folder."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _OPEN, 0o600)
        with _closing(descriptor, path):
            _write_all(descriptor, data)
            self.sync(descriptor)

    def read(self, path: Path, *, limit: int) -> bytes:
        """The content of a regular file of at most `limit` bytes.

        Raises OSError (EFBIG) for a larger one, (EINVAL) for anything but a regular file.
        """
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file", str(path))
            data = file.read(limit + 1)
        if len(data) > limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return data

    def sync_file(self, path: Path) -> None:
        """Make the content of `path` survive a power cut (its name: `sync_dir`)."""
        _sync(path, os.O_RDONLY)

    def sync_dir(self, path: Path) -> None:
        """Make the names in `path` survive a power cut."""
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)

    def make_dirs(self, path: Path, *, mode: int = 0o700) -> None:
        """Create `path` and its missing parents, durably. A crash leaves some of them."""
        missing = []
        while not path.is_dir():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir(mode=mode, exist_ok=True)
            self.sync_dir(folder.parent)

    def remove_empty(self, path: Path) -> bool:
        """Remove a folder if it is empty, durably; False if it is not, or is not there."""
        try:
            path.rmdir()
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST):
                return False
            raise
        self.sync_dir(path.parent)
        return True

    def unlink(self, path: Path) -> None:
        """Remove a name, which may be gone already. Not synced: see `sync_dir`."""
        if os.path.lexists(path):  # on read-only storage, unlink fails for what is not there, too
            path.unlink(missing_ok=True)

    def create_like(self, path: Path, like: Path) -> tuple[str, ...]:
        """Create an empty file with owner, mode, ACL and security label of `like`.

        Never readable by others, always writable by its owner. Returns what this user or file
        system could not take over: 'owner', 'ACL', 'security label'; where nobody can tell whom
        the group's rights would then be for, there are none. Raises FileExistsError. A crash
        leaves an empty file.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
        try:
            facts = like.stat()
            missed = [] if _take_owner(descriptor, facts) else ["owner"]
            if stat.S_ISREG(facts.st_mode):
                missed += _take_attributes(descriptor, like)
                group = 0 if {"owner", "ACL"} & set(missed) else facts.st_mode & 0o070
                os.fchmod(descriptor, facts.st_mode & 0o700 | group | 0o600)
            return tuple(missed)
        finally:
            os.close(descriptor)

    def take_rights(self, path: Path, like: Path) -> None:
        """Give a file of `create_like` the ACL and the mode of `like`, all of them. Not synced.

        Where nobody can tell whom the group's rights would then be for, there are none.
        """
        descriptor = os.open(path, os.O_RDONLY | _OPEN)
        with _closing(descriptor, path):
            facts, own = like.stat(), os.fstat(descriptor)
            if not stat.S_ISREG(facts.st_mode):
                return
            acl = _attribute(like, _ACL)
            if acl is not None:
                with suppress(OSError):  # looked at below
                    os.setxattr(descriptor, _ACL, acl)
            known = own.st_gid == facts.st_gid and _attribute(path, _ACL) == acl
            group = facts.st_mode & 0o070 if known else 0
            os.fchmod(descriptor, facts.st_mode & 0o707 | group)

    def publish(self, staged: Path, final: Path) -> None:
        """Give `staged` its final name as well, never replacing anything.

        Both names stay, so that the staged one proves whose file the final one is. Calling it
        again finishes what a crash left. Raises FileExistsError for a foreign `final`.
        """
        try:
            os.link(staged, final, follow_symlinks=False)
        except FileExistsError:
            if not self.same(staged, final):
                raise
        self.sync_dir(final.parent)

    def same(self, one: Path, other: Path) -> bool:
        """Whether both names exist and are one file; symbolic links are not followed."""
        try:
            return os.path.samestat(one.lstat(), other.lstat())
        except OSError as error:
            # A name that the file system cannot have is the name of nothing.
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                return False
            raise

    def identity(self, path: Path) -> Identity:
        """Which file `path` is now (links followed), its size in bytes and its mtime."""
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return ImageFile.of(descriptor, path).inode.identity
        finally:
            os.close(descriptor)

    def free_bytes(self, folder: Path) -> int:
        """Bytes that may be written in the file system of `folder`; of one without a size, many."""
        facts = os.statvfs(folder)
        return facts.f_bavail * facts.f_frsize if facts.f_blocks else sys.maxsize

    def open_image(self, path: Path, *, write: bool) -> int:
        """A descriptor of an image that exists; symbolic links are refused."""
        return os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_NONBLOCK | _OPEN)

    def copy_range(
        self,
        source: int,
        at: int,
        target: int,
        to: int,
        length: int,
        edit: Callable[[int, bytes], bytes],
    ) -> None:
        """Copy `length` bytes between descriptors; `edit(offset in target, data)` may change them.

        Bytes past the end of `source` are zeros. Not synced.
        """
        done = 0
        while done < length:
            size = min(CHUNK, length - done)
            data = os.pread(source, size, at + done).ljust(size, b"\0")
            self.write_at(target, to + done, edit(to + done, data))
            done += size

    def zero_range(self, descriptor: int, offset: int, length: int) -> None:
        """Write zeros. Not synced."""
        zeros = bytes(min(CHUNK, length))
        for done in range(0, length, CHUNK):
            self.write_at(descriptor, offset + done, zeros[: length - done])

    def create(self, path: Path) -> int:
        """A descriptor of a new, empty, private file. Raises FileExistsError. Not synced."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)

    def copy_file(self, source: Path, target: Path) -> None:
        """Copy a small private file to a new name. Not synced."""
        descriptor = self.create(target)
        with _closing(descriptor, target):
            _write_all(descriptor, source.read_bytes())

    def copy(
        self,
        source: Path,
        destination: Path,
        *,
        watch: Callable[[int], None],
        check: Callable[[], None],
        done: int = 0,
        compare: bool = False,
    ) -> bool:
        """Copy all bytes of an image into a file that exists; see `copy_image`. Not synced."""
        return copy_image(source, destination, watch=watch, check=check, done=done, compare=compare)

    def share(self, source: Path, destination: Path) -> bool:
        """Make a file that exists a reflink of another, if that can be; see `copying.share`."""
        return share(source, destination)

    def write_at(self, descriptor: int, offset: int, data: bytes) -> None:
        """Write all of `data` at `offset`. Not synced."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, offset)
            view, offset = view[written:], offset + written

    def truncate(self, descriptor: int, size: int) -> None:
        """Set a regular file's length, if it is not that already. Not synced."""
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, size)

    def has_data(self, descriptor: int, offset: int) -> bool:
        """Whether anything from `offset` on was ever written; where nobody can tell, it was."""
        try:
            os.lseek(descriptor, offset, os.SEEK_DATA)
        except OSError as error:
            return error.errno != errno.ENXIO
        finally:
            os.lseek(descriptor, 0, os.SEEK_SET)
        return True

    def sync(self, descriptor: int) -> None:
        """Make what was written through `descriptor` survive a power cut."""
        os.fsync(descriptor)

    def lock(self, path: Path) -> int | None:
        """Take an exclusive flock on the lock file `path`; None if somebody else has it.

        The name may be removed by its holder (`unlock`), so a lock counts only while the name
        still leads to the locked file. The folder must be there.

        Programs that we start inherit it: should we be killed, nobody else gets the lock while
        one of them still works on staged files.

        Programs that we start inherit it: should we be killed, nobody else gets the lock while
        one of them still works on staged files.
        """
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN, 0o600)
            held = False
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = os.path.samestat(os.fstat(descriptor), path.lstat())
            except BlockingIOError:
                return None
            except FileNotFoundError:
                continue
            finally:
                if not held:
                    os.close(descriptor)
            if held:
                os.set_inheritable(descriptor, True)
                return descriptor

    def unlock(self, path: Path, descriptor: int) -> None:
        """Remove the lock file and let go."""
        try:
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def names_below(folder: Path) -> Iterable[str]:
    """The names in a folder; none if it is not there."""
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    with _closing(descriptor, path):
        os.fsync(descriptor)


@contextmanager
def _closing(descriptor: int, path: Path) -> Iterator[None]:
    """Close it in the end; an OSError from a call that knows no path is given this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _take_owner(descriptor: int, facts: os.stat_result) -> bool:
    """False if this user may not give files away; the group is then tried by itself."""
    own = os.fstat(descriptor)
    if (own.st_uid, own.st_gid) == (facts.st_uid, facts.st_gid):
        return True
    try:
        os.fchown(descriptor, facts.st_uid, facts.st_gid)
    except PermissionError:
        if os.geteuid() == 0:
            raise
        with suppress(PermissionError):
            os.fchown(descriptor, -1, facts.st_gid)
        return False
    return True


def _take_attributes(descriptor: int, like: Path) -> Iterator[str]:
    """Take over label and ACL; yields what could not be."""
    for name, what in ((_LABEL, "security label"), (_ACL, "ACL")):
        value = _attribute(like, name)
        try:
            if value is not None:
                os.setxattr(descriptor, name, _private(value) if name == _ACL else value)
            elif name == _ACL:
                os.removexattr(descriptor, name)  # what the folder gives to all its new files
        except OSError as error:
            if value is None and error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
                continue
            if error.errno not in (errno.EOPNOTSUPP, errno.EPERM):
                raise
            yield what


def _attribute(path: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise


def _private(acl: bytes) -> bytes:
    """The same ACL, with nothing for others: not even until the mode is set, a moment later."""
    at = _ACL_HEADER.size
    entries = [
        _ACL_ENTRY.pack(tag, 0 if tag == _ACL_OTHER else rights | 6 * (tag == _ACL_USER_OBJ), whose)
        for tag, rights, whose in _ACL_ENTRY.iter_unpack(acl[at:])
    ]
    return acl[:at] + b"".join(entries)
