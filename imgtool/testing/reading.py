"""What a guest would read, through the real qemu-img, and no more often than files change."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imgtool.host.headers import read_image
from imgtool.model.image import Format, Image
from imgtool.testing.moments import Place

AT_ONCE = 4  # qemu-img processes

Key = tuple[object, ...]


class GuestReader:
    """Reads and checks images with qemu-img, formats given.

    What it has read once it remembers, for as long as the bytes of all files of the chain are the
    same: a state machine asks for the same things after every step. Meant for small images.
    """

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._digests: dict[Path, str] = {}  # since the last `look_again`
        self._contents: dict[Key, bytes] = {}
        self._checks: dict[Key, str] = {}

    def look_again(self) -> None:
        """Files may have changed since."""
        self._digests.clear()

    def contents(self, places: Iterable[Place]) -> dict[Place, bytes]:
        """All that a guest would read at each place. Raises AssertionError, ImgtoolError."""
        keys = {place: self._key(place) for place in places}
        unread = {key: place for place, key in keys.items() if key not in self._contents}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._contents.update(zip(unread, pool.map(self._read, unread.values()), strict=True))
        return {place: self._contents[key] for place, key in keys.items()}

    def checks(self, paths: Iterable[Path]) -> dict[Path, str]:
        """What `qemu-img check` complains of in each qcow2 image; empty: nothing."""
        keys = {path: (path, self._digest(path)) for path in paths}
        unread = {key: path for path, key in keys.items() if key not in self._checks}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            self._checks.update(zip(unread, pool.map(_check, unread.values()), strict=True))
        return {path: self._checks[key] for path, key in keys.items()}

    def chain(self, path: Path, fmt: Format) -> list[Image]:
        """The layers from `path` down, as their headers say. Raises ChainError."""
        layers = [read_image(path, fmt)]
        while (backing := layers[-1].backing) is not None:
            recorded = Format.parse(layers[-1].backing_format or "")
            assert recorded is not None, f"{layers[-1].path}: the format of its base is missing"
            layers.append(read_image((path.parent / backing).resolve(), recorded))
            assert len(layers) < 100, f"{path}: the chain is a loop"
        return layers

    def _key(self, place: Place) -> Key:
        chain = self.chain(place.path, place.format)
        layers = ((image.path, image.format, self._digest(image.path)) for image in chain)
        return (place.tag, *layers)

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = hashlib.blake2b(path.read_bytes()).hexdigest()
        return self._digests[path]

    def _read(self, place: Place) -> bytes:
        which = []
        if place.tag is not None:
            found = [
                entry.id
                for entry in read_image(place.path, place.format).snapshots
                if entry.tag == place.tag
            ]
            assert len(found) == 1, f"{place}: {len(found)} internal snapshots of that name"
            which = ["-l", f"snapshot.id={found[0]}"]
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            raw = Path(folder, "raw")
            done = _qemu_img("convert", "-f", place.format, "-O", "raw", *which, place.path, raw)
            assert done.returncode == 0, f"{place}: {done.stderr}"
            return raw.read_bytes()


def _check(path: Path) -> str:
    done = _qemu_img("check", "-f", "qcow2", path)
    return "" if done.returncode == 0 else f"{done.stdout}{done.stderr}".strip()


def _qemu_img(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["qemu-img", *map(str, words)],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
