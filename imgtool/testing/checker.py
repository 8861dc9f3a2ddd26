"""Old or new, and nothing between: the one check that every crash test ends in."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from imgtool.host.headers import parse_info, read_image, read_inode
from imgtool.model.domain import Disk
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format, Image
from imgtool.stores.base import DomainStore
from imgtool.stores.open import open_store
from imgtool.testing.images import guest_bytes_digest
from imgtool.testing.memory import Memory
from imgtool.testing.state import (
    DiskState,
    Entry,
    Layer,
    Record,
    State,
    Tag,
    differences,
)
from imgtool.testing.tool import PlainQemuImg
from imgtool.xml import safe

AT_ONCE = 4  # qemu-img processes
TRANSACTION = re.compile(r"""(\b(?:transaction|recorded-by)=)(?:"[^"]*"|'[^']*')""")
CREATED = re.compile(r"<creationTime>[^<]*</creationTime>")


class Outcome(StrEnum):
    OLD = "old"
    NEW = "new"


def capture(
    store: DomainStore | str,
    domain: str,
    roots: Iterable[Path],
    *,
    ignore: Iterable[Path] = (),
    memory: Memory | None = None,
) -> State:
    """All that can be seen of a domain, and of every file and folder below `roots`.

    `store` may be a URI. `ignore` are paths below `roots` that are left out, with all they hold.
    A chain that cannot be read is part of the state; a store or a domain that cannot, raises.
    Runs qemu-img for each layer and each internal snapshot, so keep images small; but for those
    that `memory` knows.
    """
    if isinstance(store, str):
        opened = open_store(store)
        try:
            return capture(opened, domain, roots, ignore=ignore, memory=memory)
        finally:
            opened.close()
    head = store.head(domain)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        disks = tuple(pool.map(lambda disk: _disk(disk, memory), head.domain.disks))
    covered = {layer.path for disk in disks for layer in disk.layers}
    hidden = frozenset(map(str, ignore))
    return State(
        domain=head.domain.name,
        uuid=head.domain.uuid,
        state=head.state,
        state_dir=str(store.state_dir),
        xml=_without_ids(head.xml),
        transaction=head.domain.transaction,
        disks=disks,
        records=tuple(sorted(map(_record, store.snapshots(domain)), key=lambda one: one.name)),
        current=store.current(domain),
        entries=tuple(
            _entry(path, covered, str(store.state_dir), head.xml)
            for path in sorted({path for root in roots for path in _below(root, hidden)})
        ),
    )


def assert_old_or_new(
    before: State, new: State | Callable[[State], Sequence[str]], now: State
) -> Outcome:
    """Raises AssertionError, with every difference to either, unless `now` is the one or the other.

    Old means all of `before`, ids and times too. `new` is a state, usually captured after an
    undisturbed run at the same paths (ids and times then do not count), or a function that says
    what is wrong with its argument as a new state, such as an `AfterSnapshot`.
    """
    if isinstance(new, State) and not differences(before, new, ids_and_times=False):
        raise ValueError("the new state equals the old one: this would prove nothing")
    from_old = differences(before, now)
    if not from_old:
        return Outcome.OLD
    if isinstance(new, State):
        from_new: Sequence[str] = differences(new, now, ids_and_times=False)
    else:
        from_new = new(now)
    if not from_new:
        return Outcome.NEW
    raise AssertionError(
        "neither old nor new\nit is not the old state:\n  "
        + "\n  ".join(from_old)
        + "\nit is not the new state:\n  "
        + "\n  ".join(from_new)
    )


def _without_ids(xml: bytes) -> str:
    text = xml.decode("utf-8", "surrogateescape")
    return CREATED.sub("<creationTime/>", TRANSACTION.sub(r'\1""', text))


def _record(xml: bytes) -> Record:
    root = safe.parse(xml, root="domainsnapshot", where="a snapshot")
    disks = []
    for disk in root.iterfind("disks/disk"):
        driver, source = disk.find("driver"), disk.find("source")
        disks.append(
            (
                disk.get("name", ""),
                disk.get("snapshot", ""),
                "" if driver is None else driver.get("type", ""),
                "" if source is None else source.get("file", source.get("dev", "")),
            )
        )
    return Record(
        name=root.findtext("name") or "",
        parent=root.findtext("parent/name"),
        disks=tuple(disks),
        xml=_without_ids(xml),
        exact=hashlib.sha256(xml).hexdigest(),
    )


def _disk(disk: Disk, memory: Memory | None) -> DiskState:
    found = [] if disk.source is None else list(_chain(disk.source, disk.format_name))[::-1]
    images = [item for item in found if isinstance(item, Image)]
    # QEMU does not notice that a chain is a loop: nothing is run on one that cannot be read.
    reader = _Reader(memory=memory, readable=images == found)
    return DiskState(
        target=disk.target,
        source=None if disk.source is None else str(disk.source),
        format=disk.format_name,
        layers=tuple(
            item if isinstance(item, Layer) else reader.layer(images[: images.index(item) + 1])
            for item in found
        ),
    )


def _chain(path: Path, fmt_name: str) -> Iterator[Image | Layer]:
    """From the active layer down, by recorded names and formats only. A Layer is what is wrong."""
    seen = set()
    while True:
        real = Path(os.path.realpath(path))
        fmt = Format.parse(fmt_name)
        if fmt is None:
            yield Layer(path=str(real), format=fmt_name, error="a format imgtool does not know")
            return
        try:
            image = replace(_image(real, fmt), name=path)
        except ImgtoolError as error:
            yield Layer(path=str(real), format=fmt, error=error.message)
            return
        if image.identity.file in seen:
            yield Layer(path=str(real), format=fmt, error="the chain is a loop")
            return
        seen.add(image.identity.file)
        yield image
        if image.backing is None:
            return
        path, fmt_name = path.parent / image.backing, image.backing_format or "unrecorded"


def _image(path: Path, fmt: Format) -> Image:
    if fmt is not Format.VMDK:
        return read_image(path, fmt)
    return parse_info(PlainQemuImg().info_json(path, fmt), path, read_inode(path))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Looks at images of one chain; a chain is given base first, up to the image."""

    memory: Memory | None
    readable: bool

    def layer(self, chain: Sequence[Image]) -> Layer:
        image = chain[-1]
        return Layer(
            path=str(image.path),
            format=image.format,
            virtual_size=image.virtual_size,
            backing=image.backing,
            backing_format=image.backing_format,
            features=image.features,
            tags=tuple(
                Tag(id=one.id, tag=one.tag, guest=self._guest(chain, one.id))
                for one in image.snapshots
            ),
            bitmaps=image.bitmaps,
            corrupt=image.corrupt,
            dirty=image.dirty,
            check="" if image.format is Format.RAW else self._check(chain),
            guest=self._guest(chain),
        )

    def _guest(self, chain: Sequence[Image], snapshot_id: str | None = None) -> str:
        image = chain[-1]
        try:
            return self._ask(
                f"guest {snapshot_id}",
                chain,
                lambda: guest_bytes_digest(image.spelled, image.format, snapshot_id=snapshot_id),
            )
        except ImgtoolError as error:
            return f"cannot be read: {error.message}"

    def _check(self, chain: Sequence[Image]) -> str:
        try:
            return self._ask("check", chain, lambda: _complaints(chain[-1]))
        except ImgtoolError as error:
            return f"cannot be checked: {error.message}"

    def _ask(self, what: str, chain: Sequence[Image], find: Callable[[], str]) -> str:
        if not self.readable:
            return "its chain cannot be read"
        return find() if self.memory is None else self.memory.recall(what, chain, find)


def _complaints(image: Image) -> str:
    report = PlainQemuImg().check(image.path, image.format)
    found = {"corruptions": report.corruptions, "leaks": report.leaks, "errors": report.errors}
    return ", ".join(f"{count} {what}" for what, count in found.items() if count)


def _below(root: Path, hidden: frozenset[str]) -> Iterator[Path]:
    """The folder and all in it; links are not followed."""
    yield root
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if str(Path(folder, name)) not in hidden]
        paths = (Path(folder, name) for name in (*folders, *files))
        yield from (path for path in paths if str(path) not in hidden)


def _entry(path: Path, covered: set[str], state_dir: str, domain_xml: bytes) -> Entry:
    status = path.lstat()
    kind = {stat.S_IFREG: "file", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}.get(
        stat.S_IFMT(status.st_mode), "other"
    )
    content = ""
    if kind == "link":
        content = str(path.readlink())
    elif kind == "file" and os.path.realpath(path) not in covered:
        content = _content(path, state_dir, domain_xml)
    return Entry(
        path=str(path),
        kind=kind,
        mode=f"{stat.S_IMODE(status.st_mode):04o}",
        owner=f"{status.st_uid}:{status.st_gid}",
        attributes=tuple(
            (name, os.getxattr(path, name, follow_symlinks=False).hex())
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        ),
        content=content,
    )


def _content(path: Path, state_dir: str, domain_xml: bytes) -> str:
    """Of the store's own files, nothing: `State` has what they say."""
    if path.is_relative_to(state_dir):
        return ""
    data = path.read_bytes()
    return "the domain XML" if data == domain_xml else hashlib.sha256(data).hexdigest()
