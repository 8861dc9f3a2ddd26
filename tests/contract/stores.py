"""XML for the tests of stores, and a Files that fails on demand."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from imgtool.host.files import Files
from imgtool.model.domain import Head
from imgtool.model.plan import Move
from imgtool.stores.base import DomainStore
from imgtool.xml.patch import pivot

UUID = "0b6bd2cb-8d03-4d0e-9b6e-0d3b6f2e6a10"
OTHER_UUID = "5f4a2f5a-66a5-4c51-9f0c-1d3a2f3b4c5d"


def domain_xml(name: str = "vm", *, uuid: str = UUID, note: str = "as written") -> bytes:
    """A domain with a qcow2 and a raw disk, a password, and a comment; it takes no port."""
    identity = f"<uuid>{uuid}</uuid>" if uuid else ""
    return f"""<domain type='qemu'>
  <!-- {note} -->
  <name>{name}</name>
  {identity}
  <memory unit='MiB'>32</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/>
      <source file='/nowhere/{name}-a.qcow2'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/nowhere/{name}-b.raw'/>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <graphics type='vnc' passwd='sesame'><listen type='socket'/></graphics>
  </devices>
</domain>
""".encode()


def snapshot_xml(head: Head, name: str, *, parent: str = "", note: str = "first") -> bytes:
    """A record of an internal and an external disk, with the whole domain of before."""
    family = f"<parent><name>{parent}</name></parent>" if parent else ""
    before = head.xml[head.xml.index(b"<domain") :]
    return (
        f"""<domainsnapshot>
  <name>{name}</name>
  <description>{note}</description>
  <state>shutoff</state>
  {family}
  <creationTime>1700000000</creationTime>
  <memory snapshot='no'/>
  <disks>
    <disk name='vda' snapshot='internal'/>
    <disk name='vdb' snapshot='external' type='file'>
      <driver type='qcow2'/>
      <source file='/nowhere/b.{name}'/>
    </disk>
  </disks>
  """.encode()
        + before
        + b"</domainsnapshot>\n"
    )


def moved(head: Head, *moves: Move, txid: str) -> bytes:
    """The XML that a transaction would pivot to."""
    return pivot(head.xml, moves=moves, txid=txid)


def seen(store: DomainStore, name: str = "vm") -> tuple[object, ...]:
    """Everything that a store says of a domain."""
    return (store.head(name), sorted(store.snapshots(name)), store.current(name))


class Crash(BaseException):
    """The process dies. Nothing in imgtool may catch it."""


class BrokenFiles(Files):
    """Before (or after) the n-th call of a method that changes something, `fail` is called."""

    def __init__(self, at: int = 0, *, after: bool = False, fail: Callable[[], None]) -> None:
        self.calls: list[str] = []
        self._at, self._after, self._fail = at, after, fail

    def __getattribute__(self, name: str) -> object:
        method = super().__getattribute__(name)
        if name not in CHANGING:
            return method

        def call(*args: object, **options: object) -> object:
            self.calls.append(f"{name} {args[0]}")
            mine = len(self.calls) == self._at
            if mine and not self._after:
                self._fail()
            result = method(*args, **options)
            if mine and self._after:
                self._fail()
            return result

        return call


CHANGING = frozenset(
    ["write_atomically", "make_dirs", "remove_empty", "unlink", "sync_dir", "sync_file"]
)


def crash() -> None:
    raise Crash


def io_error() -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "/some/folder")


def folder_state(folder: Path) -> dict[str, bytes]:
    """Every name below `folder`; folders have no content."""
    found = sorted(folder.rglob("*"))
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in found
    }
