"""What a transaction acts upon, handed in as one value, and its disks worked on side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from imgtool.engine.interrupt import Interrupt
from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
from imgtool.model.errors import FailedError, ImageChangedError, ImgtoolError
from imgtool.stores.base import DomainStore

T = TypeVar("T")
R = TypeVar("R")

REMEDIES = {
    28: "free some space there",  # ENOSPC
    122: "raise the quota, or free some space there",  # EDQUOT
    30: "choose a folder that can be written",  # EROFS
    13: "choose a folder that can be written, or run as its owner",  # EACCES
    36: "choose a shorter name",  # ENAMETOOLONG
    2: "make sure that the folder is there",  # ENOENT
    5: "look at the storage: the kernel log says more",  # EIO
    17: "remove or rename it, or give another name",  # EEXIST
}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """The store and the tools that one command uses."""

    store: DomainStore
    state_dir: Path
    files: Files = field(default_factory=Files)
    qemu: QemuImg = field(default_factory=QemuImg)
    interrupt: Interrupt = field(default_factory=Interrupt)
    jobs: int = 0  # disks worked on at once; 0: by the number of processors
    progress: Callable[[str, str, float, int], None] | None = None
    """Told the disk, what is done to it, the share that is done, 0.0 to 1.0, and all in bytes."""
    say: Callable[[str], None] = lambda _line: None  # what a person should know, a line each

    def watch(self, target: str, what: str, size: int = 0) -> Callable[[float], None] | None:
        """Who to tell how far a long step on a disk is; `size` in bytes, 0 if it is not known."""
        progress = self.progress
        return None if progress is None else lambda share: progress(target, what, share, size)

    def each(self, work: Callable[[T], R], items: Iterable[T]) -> tuple[R, ...]:
        """Do `work` on every item, several at a time; results in order.

        After the first error nothing more is started, and what runs is waited for.
        """
        todo = tuple(items)
        workers = min(len(todo), self.jobs or 2 * (os.cpu_count() or 1))
        if not todo:
            return ()
        # Even one at a time: a KeyboardInterrupt comes to the main thread, never to these, and so
        # never while a child is being started that nobody would know of.
        pool = ThreadPoolExecutor(workers)
        try:
            futures = [pool.submit(work, item) for item in todo]
            _watch(futures)
        except BaseException:
            self.qemu.cancel()  # `conclude` lets it resume
            raise
        finally:
            _wind_up(pool)
        return tuple(future.result() for future in _errors_first(futures))


@contextmanager
def naming(target: str, path: Path) -> Iterator[None]:
    """Turn what goes wrong inside into one sentence that names the disk.

    Raises FailedError for OSError; errors of ours keep their type.
    """
    try:
        yield
    except OSError as error:
        raise failed(target, error, path) from error
    except (FailedError, ImageChangedError) as error:
        if error.message.startswith(f"{target}: "):
            raise
        raise type(error)(f"{target}: {error.message}", remedy=_remedy(error)) from error


def failed(what: str, error: OSError, path: Path) -> FailedError:
    """The sentence for an OSError in the work on `what`; `path` is where it names no other."""
    where = Path(os.fsdecode(error.filename or path))
    if where.name.startswith(".imgtool-"):
        where = path  # the name that it would have got
    return FailedError(
        f"{what}: {where}: {error.strerror or error}",
        remedy=REMEDIES.get(error.errno or 0, "look at the storage: the kernel log may say more"),
    )


def _remedy(error: ImgtoolError) -> str:
    """qemu-img says what went wrong in the words of the C library."""
    for number, remedy in REMEDIES.items():
        if error.message.endswith(os.strerror(number)):
            return remedy
    return error.remedy


def _watch(futures: list[Future[R]]) -> None:
    pending = set(futures)
    while pending:
        # A short wait lets the main thread run signal handlers.
        done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
        if any(not future.cancelled() and future.exception() for future in done):
            for future in pending:
                future.cancel()


def _wind_up(pool: ThreadPoolExecutor) -> None:
    """Return only when nobody works any more, whoever presses Ctrl-C meanwhile, or how often."""
    impatient: BaseException | None = None
    while True:
        try:
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt as error:
            impatient = error
        else:
            break
    if impatient is not None:
        raise impatient


def _errors_first(futures: list[Future[R]]) -> list[Future[R]]:
    for future in futures:
        if not future.cancelled() and (error := future.exception()):
            raise error
    return futures
