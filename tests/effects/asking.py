"""Domains with one peculiarity each, snapshots of them, and proof that a refusal wrote nothing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from imgtool import api
from imgtool.model.domain import Disk, SnapshotMode
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing import AfterSnapshot, MadeDomain, State, capture, make_domain
from tests.crash.scenario import digest

E = TypeVar("E", bound=ImgtoolError)
NAME = "s1"


def disk(path: Path, fmt: Format = Format.QCOW2, *, target: str = "vda", **more: Any) -> Disk:
    """A disk whose format is recorded in the domain XML, as it should be."""
    kind = "block" if path.is_block_device() else "file"
    fields: dict[str, Any] = {"type": kind, "source": path, "format": fmt, "format_name": fmt}
    return Disk(target=target, **(fields | more))


def domain(folder: Path, *disks: Disk) -> MadeDomain:
    """A domain in a directory store of its own, `folder`/store."""
    store = folder / "store"
    store.mkdir(exist_ok=True)
    return make_domain(store, "vm", disks)


def external(target: str = "vda", file: Path | str = "", **more: Any) -> SnapshotDisk:
    return SnapshotDisk(name=target, mode=SnapshotMode.EXTERNAL, source=str(file), **more)


def internal(target: str = "vda") -> SnapshotDisk:
    return SnapshotDisk(name=target, mode=SnapshotMode.INTERNAL)


def skipped(target: str) -> SnapshotDisk:
    return SnapshotDisk(name=target, mode=SnapshotMode.NO)


def take(
    made: MadeDomain,
    *disks: SnapshotDisk,
    name: str = NAME,
    said: list[str] | None = None,
    **how: Any,
) -> api.SnapshotResult:
    """Take a snapshot; `how` are SnapshotOptions, `said` collects the notes."""
    notes: list[str] = [] if said is None else said
    with api.open_world(made.uri, say=notes.append) as world:
        return api.take_snapshot(
            world, made.name, SnapshotRequest(name=name, disks=disks), api.SnapshotOptions(**how)
        )


def refused(
    root: Path,
    kind: type[E],
    made: MadeDomain,
    *disks: SnapshotDisk,
    says: Sequence[str],
    name: str = NAME,
    **how: Any,
) -> E:
    """It is refused with exactly this type and these words; below `root` nothing changed."""
    before = digest(root)
    with pytest.raises(ImgtoolError) as raised:
        take(made, *disks, name=name, **how)
    error = raised.value
    assert digest(root) == before, f"something was written: {error!r}"
    assert type(error) is kind, repr(error)
    assert isinstance(error, kind)
    assert error.remedy, error
    for word in says:
        assert word in error.message, error.message
    return error


def externally(
    made: MadeDomain,
    overlays: Mapping[str, Path],
    *disks: SnapshotDisk,
    inside: frozenset[str] = frozenset(),
    **how: Any,
) -> State:
    """Take it and hold everything below the domain's parent folder against what must be."""
    roots = [made.folder.parent]
    before = capture(made.uri, made.name, roots)
    take(made, *disks, **how)
    now = capture(made.uri, made.name, roots)
    wrong = AfterSnapshot(before=before, name=NAME, overlays=overlays, internal=inside)(now)
    assert wrong == []
    return now


def named(made: MadeDomain, target: str = "vda") -> Disk:
    """The disk as the domain XML describes it now."""
    with api.open_world(made.uri) as world:
        found = world.store.head(made.name).domain.disk(target)
    assert found is not None
    return found


def info(path: Path, fmt: str = "qcow2") -> dict[str, Any]:
    """What qemu-img itself says of one image."""
    facts = json.loads(qemu_img("info", "--output=json", "-f", fmt, path))
    assert isinstance(facts, dict)
    return facts


def chain(path: Path, fmt: str = "qcow2") -> list[str]:
    """The file names that QEMU itself opens for an image, top first."""
    facts = json.loads(qemu_img("info", "--backing-chain", "--output=json", "-f", fmt, path))
    return [layer["filename"] for layer in facts]


def qemu_img(*arguments: str | Path) -> str:
    done = subprocess.run(
        ["qemu-img", *(os.fspath(word) for word in arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@contextmanager
def loop_device(file: Path) -> Iterator[Path]:
    """A block device over a file."""
    done = subprocess.run(
        ["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=True
    )
    device = Path(done.stdout.strip())
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)


@contextmanager
def mounted(kind: str, folder: Path, options: str = "defaults") -> Iterator[Path]:
    """A file system in memory on a new folder."""
    folder.mkdir()
    subprocess.run(["mount", "-t", kind, "-o", options, kind, str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
