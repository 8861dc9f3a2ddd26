"""All that a transaction may change, as values that can be compared."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass

from imgtool.model.image import Qcow2Features

IDS_AND_TIMES = frozenset({"transaction", "exact"})  # fields that differ from run to run


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """An internal snapshot and what a guest would read from it."""

    id: str
    tag: str
    guest: str  # a digest

    @property
    def key(self) -> str:
        return f"{self.id} {self.tag}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One image of a chain. `error` says why it could not be read; the chain ends there."""

    path: str  # links resolved
    format: str
    error: str = ""
    virtual_size: int = 0  # bytes
    backing: str | None = None  # as recorded
    backing_format: str | None = None  # as recorded
    features: Qcow2Features | None = None
    tags: tuple[Tag, ...] = ()
    bitmaps: tuple[str, ...] = ()
    corrupt: bool = False
    dirty: bool = False
    check: str = ""  # what `qemu-img check` found; empty: nothing, or a raw image
    guest: str = ""  # a digest of what a guest would read through this layer and those below

    @property
    def key(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskState:
    """A disk as the domain XML names it, and its chain, base first."""

    target: str
    source: str | None
    format: str
    layers: tuple[Layer, ...]

    @property
    def key(self) -> str:
        return self.target

    @property
    def top(self) -> Layer:
        return self.layers[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """The metadata of one snapshot. `xml` is without its time and transaction id."""

    name: str
    parent: str | None
    disks: tuple[tuple[str, str, str, str], ...]  # name, snapshot, driver type, source file
    xml: str
    exact: str  # sha256 of the XML as it is

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file or folder. `content` is only of what no other part of the state covers."""

    path: str
    kind: str  # file, folder, link, other
    mode: str  # octal
    owner: str  # uid:gid
    attributes: tuple[tuple[str, str], ...]  # extended: ACL, security label
    content: str = ""  # sha256, or what a link says

    @property
    def key(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A domain and everything below some folders. Times of files are not in it, nor is space."""

    domain: str
    uuid: str
    state: str  # shutoff, running, ...
    state_dir: str
    xml: str  # without the transaction's id
    transaction: str
    disks: tuple[DiskState, ...]
    records: tuple[Record, ...]
    current: str | None
    entries: tuple[Entry, ...]

    def disk(self, target: str) -> DiskState:
        (found,) = (disk for disk in self.disks if disk.target == target)
        return found


def differences(a: State, b: State, *, ids_and_times: bool = True) -> list[str]:
    """One sentence for each difference; none: the same.

    Without `ids_and_times`, the ids of transactions and the creation times of snapshots do not
    count: two runs of one command never agree on them.
    """
    return list(_differences("", a, b, frozenset() if ids_and_times else IDS_AND_TIMES))


def same(a: State, b: State) -> bool:
    """Whether the two differ at most in ids of transactions and creation times of snapshots."""
    return not differences(a, b, ids_and_times=False)


def _differences(where: str, a: object, b: object, ignored: frozenset[str]) -> Iterator[str]:
    if is_dataclass(a) and type(a) is type(b):
        for field in fields(a):
            if field.name not in ignored:
                here = f"{where}.{field.name}" if where else field.name
                yield from _differences(
                    here, getattr(a, field.name), getattr(b, field.name), ignored
                )
    elif isinstance(a, tuple) and isinstance(b, tuple) and _keyed(a) and _keyed(b):
        yield from _differences_by_key(where, a, b, ignored)
    elif a != b:
        yield f"{where}: {_contrast(a, b)}"


def _keyed(items: tuple[object, ...]) -> bool:
    keys = [getattr(item, "key", None) for item in items]
    return None not in keys and len(set(keys)) == len(keys)


def _differences_by_key(
    where: str, a: tuple[object, ...], b: tuple[object, ...], ignored: frozenset[str]
) -> Iterator[str]:
    before = {getattr(item, "key", ""): item for item in a}
    after = {getattr(item, "key", ""): item for item in b}
    yield from (f"{where}[{key}]: is gone" for key in before if key not in after)
    yield from (f"{where}[{key}]: is new" for key in after if key not in before)
    both = [key for key in before if key in after]
    if both != [key for key in after if key in before]:
        yield f"{where}: are in another order"
    for key in both:
        yield from _differences(f"{where}[{key}]", before[key], after[key], ignored)


def _contrast(a: object, b: object) -> str:
    if isinstance(a, str) and isinstance(b, str) and "\n" in a + b:
        diff = difflib.unified_diff(a.splitlines(), b.splitlines(), lineterm="", n=1)
        return "\n" + "\n".join(list(diff)[2:42])
    return f"{a!r} became {b!r}"
