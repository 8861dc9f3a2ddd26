"""The file of a domain's open copy jobs: one checksummed line, replaced as a whole."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from imgtool.engine.journal import decode, encode, from_json, to_json
from imgtool.engine.world import failed
from imgtool.host.files import Files
from imgtool.model.errors import NotDurableError, PendingError
from imgtool.model.job import CopyJob

VERSION = 1
MAX_BYTES = 16 * 1024 * 1024  # a job says a few hundred bytes a layer


class JobFile:
    """<state>/<domain uuid>/job. Absent: no job is open. Whoever writes it holds the lock."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files

    def read(self) -> tuple[CopyJob, ...]:
        """The open jobs, oldest first. Raises PendingError if the file cannot be understood."""
        try:
            blob = self._files.read(self.path, limit=MAX_BYTES)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._strange(str(error.strerror)) from error
        records = list(decode(blob))
        if len(records) != 1:  # it is never written in place: the storage has done this
            raise self._strange("is damaged")
        if records[0].get("imgtool") != VERSION:
            raise self._strange("was written by another version of imgtool")
        return tuple(from_json(CopyJob, each) for each in records[0]["jobs"])

    def begin(self, job: CopyJob) -> None:
        """Add a job, durably, and the folders above, whose names may not have reached the disk."""
        self.put(job)
        try:
            for folder in self.path.parent.parents[:2]:
                self._files.sync_dir(folder)
        except OSError as error:
            raise failed("copy job", error, self.path) from error

    def put(self, job: CopyJob) -> None:
        """Add a job, or replace the one of its id, durably. A crash leaves the old or the new."""
        jobs = self.read()
        known = any(each.id == job.id for each in jobs)
        self._write(
            tuple(job if each.id == job.id else each for each in jobs) if known else (*jobs, job)
        )

    def drop(self, job: CopyJob) -> None:
        """The job has ended. Durable, idempotent; a crash leaves it or does not."""
        self._write(tuple(each for each in self.read() if each.id != job.id))

    def tidy(self) -> None:
        """Remove what a crash inside `put` has left, which means nothing."""
        if self._temp.exists():
            with suppress(OSError):  # then the next one does
                self._files.unlink(self._temp)

    @property
    def _temp(self) -> Path:
        return self.path.with_name("job.new")

    def _write(self, jobs: tuple[CopyJob, ...]) -> None:
        """Raises FailedError with nothing changed, NotDurableError if a sync has failed."""
        data = encode({"imgtool": VERSION, "jobs": [to_json(job) for job in jobs]}) if jobs else b""
        try:
            if data:
                self._files.write_atomically(self.path, data, temp=self._temp)
            else:
                self._files.unlink(self.path)
                self._files.sync_dir(self.path.parent)
        except OSError as error:
            if self._content() != data:
                raise failed("copy job", error, self.path) from error
            raise NotDurableError(
                f"copy job: {self.path}: {error.strerror}: a power cut may bring back what it said",
                remedy="look at the storage, then run `imgtool recover`",
            ) from error

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""

    def _strange(self, what: str) -> PendingError:
        return PendingError(
            f"{self.path}: {what}",
            remedy="it lists open copy jobs, and no other data: see what it says, then remove it",
        )
