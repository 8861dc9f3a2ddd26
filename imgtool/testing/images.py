"""Temporary disk images, made, written and read by the real qemu-img and qemu-io."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from imgtool.model.image import Format, Qcow2Features
from imgtool.testing.tool import PlainQemuImg

KIB = 1024
MIB = 1024 * KIB
_BLOCK = 128 * KIB
_ZEROS = bytes(_BLOCK)


def make_image(
    path: Path,
    fmt: Format = Format.QCOW2,
    size: int = 8 * MIB,
    *,
    features: Qcow2Features | None = None,
    backing: str | Path | None = None,
    backing_format: Format | None = None,
    options: str = "",
) -> Path:
    """Create an image of `size` bytes at `path` (absolute); returns `path`.

    `backing` is recorded as it is given, a relative one meant from the folder of `path`; it needs
    a `backing_format`. `options` are more of qemu-img's `-o`, as in 'preallocation=metadata'.
    Raises QemuImgError.
    """
    words = [*_feature_options(features), *([options] if options else [])]
    arguments = ["create", "-q", "-f", str(fmt)]
    if words:
        arguments += ["-o", ",".join(words)]
    if backing is not None:
        if backing_format is None:
            raise ValueError("a backing file without its format: QEMU would guess")
        arguments += ["-F", str(backing_format), "-b", str(backing)]
    PlainQemuImg().run(*arguments, path, str(size))
    return path


def _feature_options(features: Qcow2Features | None) -> list[str]:
    if features is None:
        return []
    words = [f"cluster_size={features.cluster_size}", f"compat={features.compat}"]
    if features.compat != "0.10":  # version 2 has none of these
        words.append(f"lazy_refcounts={'on' if features.lazy_refcounts else 'off'}")
        words.append(f"extended_l2={'on' if features.extended_l2 else 'off'}")
        words.append(f"refcount_bits={features.refcount_bits}")
    return words


def qemu_io(path: Path, fmt: Format, *commands: str) -> str:
    """Run qemu-io commands on an image and return what they print.

    Raises AssertionError with their output if one fails, a pattern that differs included.
    """
    arguments = [word for command in commands for word in ("-c", command)]
    done = subprocess.run(
        ["qemu-io", "-f", str(fmt), *arguments, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise AssertionError(f"qemu-io {path}: {'; '.join(commands)}: {done.stdout}")
    return done.stdout


def write_pattern(path: Path, fmt: Format, offset: int, length: int, byte: int) -> None:
    """What a guest would do: write `length` times `byte` at `offset`; both in bytes."""
    qemu_io(path, fmt, f"write -q -P {byte} {offset} {length}")


def read_pattern(path: Path, fmt: Format, offset: int, length: int) -> bytes:
    """The bytes that a guest would read there, through the whole chain."""
    with tempfile.TemporaryDirectory() as folder:
        with _raw_copy(path, fmt, Path(folder)).open("rb") as raw:
            raw.seek(offset)
            return raw.read(length)


def guest_bytes_digest(path: Path, fmt: Format, *, snapshot_id: str | None = None) -> str:
    """A `file_digest` of all that a guest would read, through the whole chain.

    `snapshot_id`: of an internal snapshot, instead. Raises QemuImgError.
    """
    with tempfile.TemporaryDirectory() as folder:
        return file_digest(_raw_copy(path, fmt, Path(folder), snapshot_id))


def file_digest(path: Path) -> str:
    """sha256 of a regular file's length, and of what in it is not zero, with its place.

    The same for the same bytes, however many of the zeros are holes; those cost nothing.
    """
    total = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        total.update(b"%d" % size)
        for at in _blocks_with_data(descriptor, size):
            block = os.pread(descriptor, _BLOCK, at)
            if block != _ZEROS[: len(block)]:
                total.update(b"\0%d\0" % at)
                total.update(block)
    return total.hexdigest()


def _blocks_with_data(descriptor: int, size: int) -> Iterator[int]:
    """Where the blocks begin that are no holes."""
    at = 0
    while at < size:
        try:
            data = os.lseek(descriptor, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # only a hole is left
        at = max(at, data - data % _BLOCK)
        yield at
        at += _BLOCK


def _raw_copy(path: Path, fmt: Format, folder: Path, snapshot_id: str | None = None) -> Path:
    raw = folder / "raw"
    which = [] if snapshot_id is None else ["-l", f"snapshot.id={snapshot_id}"]
    # -U: it only reads, and a transaction that holds its locks must not make it fail.
    PlainQemuImg().run(
        "convert", "-U", "-f", fmt, "-O", Format.RAW, *which, path, raw, timeout=None
    )
    return raw
