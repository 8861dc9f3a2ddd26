"""Copy layers to another folder: staged, verified, published one by one, and resumable.

Nothing that exists is written, and no domain is changed. What a crash leaves is staged files and
checkpoints: the next copy goes on from them, and `gc` removes them.
"""

from __future__ import annotations

import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from threading import Event
from typing import TypeVar

from imgtool.engine import likeness
from imgtool.engine.checkpoint import Checkpoint, Checkpoints
from imgtool.engine.world import World, naming
from imgtool.host.comparing import first_difference
from imgtool.host.locks import PinnedImages, check_unchanged
from imgtool.model.errors import ExistsError, FailedError, ImgtoolError, Interrupted
from imgtool.model.image import Identity
from imgtool.plan.chaincopy import LayerCopy

T = TypeVar("T")

CHECKPOINT = 256 << 20  # bytes from one to the next: what a crash can make us copy again


class Action(StrEnum):
    """What became of a layer."""

    COPIED = "copied"
    REFLINKED = "reflinked"
    KEPT = "kept"  # its equal was there already


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """One layer in its new place."""

    layer: LayerCopy
    action: Action
    resumed: int = 0  # bytes that an earlier run had copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Copier:
    """Copies layers for one domain, whose lock is held.

    `trust`: data are not compared, structure always is.
    """

    world: World
    checkpoints: Checkpoints
    trust: bool = False
    checkpoint: int = CHECKPOINT
    _stop: Event = field(default_factory=Event)
    _errors: list[BaseException] = field(default_factory=list)

    def look(self, layers: Sequence[LayerCopy]) -> tuple[Copied, ...]:
        """What `run` would do. Reads only; raises as that does before it writes anything."""
        with PinnedImages() as pinned:
            pinned.pin(layer.pin for layer in layers)
            there = self._each(self._is_there, layers)
        return tuple(map(_looked, layers, there))

    def run(self, layers: Sequence[LayerCopy]) -> tuple[Copied, ...]:
        """Copy what is not there yet.

        Raises ImageInUseError or ImageChangedError of a source, ExistsError for a name that is
        taken by something else: then nothing was written. Any later error, a signal or a crash
        leaves the layers that are complete, and of others what the last checkpoint says: the
        same call goes on from there.
        """
        with PinnedImages() as pinned:
            pinned.pin(layer.pin for layer in layers)
            there = self._each(self._is_there, layers)
            self._check()
            try:
                done = self._copy_all(list(zip(layers, there, strict=True)), pinned)
            except BaseException as error:
                self._give_up(layers, error)
                raise
            self._forget({layer.copy for layer in layers})
        return done

    def _copy_all(
        self, layers: Sequence[tuple[LayerCopy, bool]], pinned: PinnedImages
    ) -> tuple[Copied, ...]:
        known = {each.copy: each for each in self.checkpoints.read()}
        todo = [layer for layer, there in layers if not there]
        begun = dict(
            self._each(lambda layer: (layer.copy, self._begin(layer, known.get(layer.copy))), todo)
        )
        pinned.seize(((layer.target, begun[layer.copy].staged) for layer in todo), written=False)
        self._require_space([(layer, begun[layer.copy]) for layer in todo])
        brought = self._each(lambda layer: self._bring(layer, begun[layer.copy]), todo)
        for folder in {layer.copy.parent for layer in todo}:
            with naming(todo[0].target, folder):
                self.world.files.sync_dir(folder)
        copied = {each.layer.copy: each for each in brought}
        return tuple(copied.get(layer.copy) or _looked(layer, True) for layer, _ in layers)

    def _is_there(self, layer: LayerCopy) -> bool:
        """Whether its equal is there. Raises ExistsError if something else is."""
        with naming(layer.target, layer.copy):
            try:
                facts = layer.copy.lstat()
            except (FileNotFoundError, NotADirectoryError):
                return False
            for known in self.checkpoints.read():
                of_it = known.copy == layer.copy and known.is_of(layer.source.path, _id(layer))
                if of_it and known.is_complete_at(layer.copy):
                    return True
            if self.world.files.same(layer.copy, layer.source.path):
                return True
            equal = stat.S_ISREG(facts.st_mode) and facts.st_size == _id(layer).size
            if not (equal and self._is_equal(layer)):
                raise ExistsError(
                    f"{layer.target}: {layer.copy} exists, and is not {layer.source.spelled}",
                    remedy="remove or rename it, or choose another folder",
                )
            return True

    def _is_equal(self, layer: LayerCopy) -> bool:
        if not likeness.is_like(layer.copy, layer.source):
            return False
        watch = self._progress(layer, "comparing")
        paths = (layer.source.path, layer.copy)
        return self.trust or first_difference(*paths, check=self._check, watch=watch) is None

    def _begin(self, layer: LayerCopy, known: Checkpoint | None) -> Checkpoint:
        """Have a staged file for it: the one of an earlier run, or a new one, shared if possible.

        A crash leaves a checkpoint without an inode, which names the staged file, there or not.
        """
        self._check()
        files = self.world.files
        with naming(layer.target, layer.copy):
            if known is not None:
                if known.valid and known.is_of(layer.source.path, _id(layer)) and known.is_staged():
                    return known
                self._discard(known)
            checkpoint = Checkpoint(
                source=layer.source.path,
                identity=_id(layer),
                copy=layer.copy,
                staged=layer.copy.parent / f".imgtool-{secrets.token_hex(8)}-0",
            )
            self.checkpoints.write(checkpoint)
            files.make_dirs(layer.copy.parent, mode=layer.source.path.parent.stat().st_mode & 0o777)
            for missed in files.create_like(checkpoint.staged, layer.source.path):
                self.world.say(
                    f"{layer.target}: {layer.copy} could not be given the {missed} of "
                    f"{layer.source.spelled}"
                )
            return replace(
                checkpoint,
                inode=checkpoint.staged.lstat().st_ino,
                shared=files.share(layer.source.path, checkpoint.staged),
            )

    def _require_space(self, todo: Iterable[tuple[LayerCopy, Checkpoint]]) -> None:
        """Before the first byte is copied. Raises FailedError."""
        needed: dict[int, int] = {}
        for layer, begun in todo:
            if begun.shared or begun.complete:
                continue
            with naming(layer.target, layer.copy):
                facts = begun.staged.lstat()
                source = layer.source
                size = source.identity.size if source.block_device else source.allocation
                more = max(0, size - 512 * facts.st_blocks)
                needed[facts.st_dev] = needed.get(facts.st_dev, 0) + more
                free = self.world.files.free_bytes(layer.copy.parent)
            if needed[facts.st_dev] > free:
                raise FailedError(
                    f"{layer.target}: {layer.copy.parent}: {needed[facts.st_dev]} bytes are "
                    f"needed, {free} free",
                    remedy="free some space there",
                )

    def _bring(self, layer: LayerCopy, begun: Checkpoint) -> Copied:
        """Copy, verify, sync and publish one layer. A crash leaves what the checkpoint says."""
        files, kept = self.world.files, begun.valid
        with naming(layer.target, layer.copy):
            if not begun.complete:
                kept = self._copy(layer, begun)
                self._verify(layer, begun)
                files.take_rights(begun.staged, layer.source.path)
                files.sync_file(begun.staged)
                self._check()
                check_unchanged([layer.pin])
            if not (begun.complete or begun.shared):  # sharing again costs nothing
                made = files.identity(begun.staged)
                self._mark(replace(begun, valid=made.size, mtime_ns=made.mtime_ns))
            files.publish(begun.staged, layer.copy)
            files.unlink(begun.staged)
        action = Action.REFLINKED if begun.shared else Action.COPIED
        return Copied(layer=layer, action=action, resumed=kept)

    def _copy(self, layer: LayerCopy, begun: Checkpoint) -> int:
        """All bytes; unless they are trusted, each is read back and compared.

        Returns how many of them an earlier run has copied.
        """
        if begun.shared:
            return 0
        marked = kept = self._kept(layer, begun)
        progress = self._progress(layer, "copying")

        def watch(done: int) -> None:
            nonlocal marked
            progress(done)
            if done - marked >= self.checkpoint:
                self.world.files.sync_file(begun.staged)
                self._mark(replace(begun, valid=done))
                marked = done

        self.world.files.copy(
            layer.source.path,
            begun.staged,
            watch=watch,
            check=self._check,
            done=marked,
            compare=not self.trust,
        )
        return kept

    def _kept(self, layer: LayerCopy, begun: Checkpoint) -> int:
        """How many bytes of an earlier run are to be kept: all, or none if they are not right."""
        if not begun.valid or self.trust:
            return begun.valid
        watch = self._progress(layer, "comparing")
        paths = (layer.source.path, begun.staged)
        at = first_difference(*paths, check=self._check, watch=watch, end=begun.valid)
        return begun.valid if at is None else 0

    def _mark(self, checkpoint: Checkpoint) -> None:
        """Write down how far the staged file is, which is synced; now its name is, too."""
        self.world.files.sync_dir(checkpoint.staged.parent)
        self.checkpoints.write(checkpoint)

    def _verify(self, layer: LayerCopy, begun: Checkpoint) -> None:
        """The structure; data have been compared. Raises FailedError."""
        source = layer.source
        problem = likeness.flaw_of(begun.staged, source, self.world.qemu)
        if problem:
            self._discard(begun)
            raise FailedError(
                f"{layer.target}: the copy of {source.spelled} is bad: {problem}",
                remedy=f"look at the storage, and at qemu-img check {source.spelled}",
            )

    def _forget(self, copies: set[Path]) -> None:
        """Drop staged files of these copies, and what is known of them.

        What cannot be dropped is left for the next one, or `gc`: it means nothing any more.
        """
        with suppress(OSError):
            self.checkpoints.tidy()
            for known in self.checkpoints.read():
                if known.copy in copies:
                    self._discard(known)

    def _discard(self, known: Checkpoint) -> None:
        """Drop a staged file, if it is there and ours, then what was said of it. Durable."""
        files = self.world.files
        if known.is_staged() or not known.inode:
            files.unlink(known.staged)
            if known.staged.parent.is_dir():
                files.sync_dir(known.staged.parent)
        self.checkpoints.forget(known.copy)

    def _give_up(self, layers: Sequence[LayerCopy], error: BaseException) -> None:
        """Drop what is not worth to be kept, and say what is. Raises Interrupted for a signal."""
        wanted = {layer.copy for layer in layers}
        kept = {each.copy for each in self.checkpoints.read() if each.copy in wanted and each.valid}
        self._forget(wanted - kept)
        signum = self.world.interrupt.signum
        what = f"what is copied of {len(kept)} layers is kept: the same command goes on from there"
        if signum is not None and isinstance(error, Exception):
            outcome = f"stopped; {what}" if kept else "rolled back, nothing has changed"
            raise Interrupted(signum, outcome) from error
        if kept and isinstance(error, ImgtoolError):
            self.world.say(what)

    def _check(self) -> None:
        """Raises if somebody has asked to stop, or another layer has failed."""
        self.world.interrupt.check()
        if self._stop.is_set() or self.world.qemu.cancelled:
            raise FailedError("stopped", remedy="run it again")

    def _progress(self, layer: LayerCopy, what: str) -> Callable[[int], None]:
        size = _id(layer).size
        watch = self.world.watch(f"{layer.target} {layer.copy.name}", what, size)
        if watch is None or not size:
            return lambda _done: None
        return lambda done: watch(done / size)

    def _each(self, work: Callable[[LayerCopy], T], layers: Sequence[LayerCopy]) -> tuple[T, ...]:
        """Several at a time; the first error stops the others, and is raised."""

        def stoppable(layer: LayerCopy) -> T:
            try:
                return work(layer)
            except BaseException as error:
                self._errors.append(error)
                self._stop.set()
                raise self._errors[0] from None

        return self.world.each(stoppable, layers)


def _looked(layer: LayerCopy, there: bool) -> Copied:
    return Copied(layer=layer, action=Action.KEPT if there else Action.COPIED)


def _id(layer: LayerCopy) -> Identity:
    return layer.source.identity
