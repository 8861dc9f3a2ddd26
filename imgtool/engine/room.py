"""One domain's corner of the state folder: lock, journal, workspace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from imgtool.engine.jobfile import JobFile
from imgtool.engine.journal import Journal
from imgtool.host.files import Files, names_below
from imgtool.model.errors import BusyError, FailedError


@dataclass(frozen=True, slots=True)
class Room:
    """
    <state>/<domain uuid>/lock       flock, held for the life of the transaction
    <state>/<domain uuid>/journal    absent = nothing is open
    <state>/<domain uuid>/job        absent = no copy job is open
    <state>/<domain uuid>/<txid>/    redo and undo of images changed in place
    """

    folder: Path
    files: Files
    lock: int  # descriptor

    @property
    def journal(self) -> Journal:
        return Journal(self.folder / "journal", self.files)

    @property
    def jobs(self) -> JobFile:
        return JobFile(self.folder / "job", self.files)

    def clear(self, workspace: Path) -> None:
        """Remove a workspace and the files in it, durably, if it is there."""
        for name in names_below(workspace):
            self.files.unlink(workspace / name)
        self.files.remove_empty(workspace)


@contextmanager
def entered(state_dir: Path, uuid: str, files: Files) -> Iterator[Room]:
    """Hold the lock of a domain. Leaves no empty folder behind.

    Raises BusyError if another process has it. A crash leaves the folder and the lock file, both
    without meaning, for the next one to enter and tidy.
    """
    folder = state_dir / uuid
    try:
        descriptor = _acquire(folder, files)
    except BusyError:
        raise
    except BaseException:
        tidy(state_dir, uuid, files)
        raise
    try:
        yield Room(folder=folder, files=files, lock=descriptor)
    finally:
        with suppress(OSError):  # the descriptor is closed in any case, and the lock with it
            files.unlock(folder / "lock", descriptor)
        tidy(state_dir, uuid, files)


def tidy(state_dir: Path, uuid: str, files: Files) -> None:
    """Remove the folders that are empty. What fails is left for the next one: it means nothing."""
    with suppress(OSError):
        if files.remove_empty(state_dir / uuid) or not (state_dir / uuid).exists():
            files.remove_empty(state_dir)


def uuids(state_dir: Path) -> tuple[str, ...]:
    """Domains that have a corner in the state folder."""
    return tuple(name for name in names_below(state_dir) if (state_dir / name).is_dir())


def _acquire(folder: Path, files: Files) -> int:
    for _ in range(100):  # whoever left just now may have removed the folder under us
        try:
            files.make_dirs(folder)
            descriptor = files.lock(folder / "lock")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise FailedError(
                f"{error.filename or folder}: {error.strerror}",
                remedy="choose a state folder that can be written with --state-dir",
            ) from error
        if descriptor is None:
            raise BusyError(
                f"another imgtool is working on this domain ({folder / 'lock'})",
                remedy="wait for it, then try again",
            )
        return descriptor
    raise BusyError(f"{folder}: comes and goes", remedy="try again")
