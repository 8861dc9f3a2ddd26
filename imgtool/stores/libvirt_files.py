"""Where libvirt keeps its XML, so that it can be made to survive a power cut.

libvirt syncs each file before it renames it into place, and no folder ever.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from imgtool.host.files import Files
from imgtool.xml.safe import MAX_BYTES


@dataclass(frozen=True, slots=True)
class Place:
    """The two folders of a QEMU driver that hold what `DomainStore` is about."""

    domains: Path  # NAME.xml
    snapshots: Path  # NAME/SNAPSHOT.xml


def embedded_root(uri: str) -> Path | None:
    """DIR of `qemu:///embed?root=DIR`; None for any other URI."""
    parts = urlsplit(uri)
    roots = parse_qs(parts.query).get("root", [])
    return Path(roots[0]) if parts.path == "/embed" and roots else None


def place_of(uri: str) -> Place | None:
    """None where nobody can tell, such as behind another socket (`?socket=`)."""
    root = embedded_root(uri)
    if root is not None:
        return Place(root / "etc/qemu", root / "lib/qemu/snapshot")
    parts = urlsplit(uri)
    if parts.query:
        return None
    if parts.path == "/system":
        return Place(Path("/etc/libvirt/qemu"), Path("/var/lib/libvirt/qemu/snapshot"))
    if parts.path == "/session":
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
        return Place(config / "libvirt/qemu", config / "libvirt/qemu/snapshot")
    return None


def state_dir_of(uri: str) -> Path:
    """Where the journals of a libvirt's domains belong."""
    root = embedded_root(uri)
    if root is not None:
        return root / "imgtool"
    if os.geteuid() == 0:
        return Path("/var/lib/imgtool")
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(home) / "imgtool"


class LibvirtFiles:
    """Syncs what libvirt has written: its folders where they are found, else all file systems.

    They are found where NAME.xml has the domain's UUID in it: neither hidden (system XML is
    root's) nor those of another libvirtd than the one that answers (containers).
    """

    def __init__(self, uri: str, files: Files) -> None:
        self._place = place_of(uri)
        self._files = files

    def found(self, name: str, uuid: str) -> bool:
        if self._place is None:
            return False
        try:
            xml = self._files.read(self._place.domains / f"{name}.xml", limit=MAX_BYTES)
        except OSError:
            return False
        return uuid.encode() in xml

    def frozen(self, name: str) -> Path | None:
        """The folder of a domain's records if nothing in it can be removed; None if it can.

        libvirt forgets a record whose file it cannot remove, and reads it again when it starts.
        """
        folder = None if self._place is None else self._place.snapshots / name
        if folder is None or not folder.is_dir():
            return None
        return None if os.access(folder, os.W_OK | os.X_OK, effective_ids=True) else folder

    def sync(self, name: str, *, found: bool) -> None:
        """Idempotent. Raises OSError; but what sync(2) could not write, it does not tell."""
        if self._place is None or not found:
            os.sync()
            return
        xml = self._place.domains / f"{name}.xml"
        if xml.exists():
            self._files.sync_file(xml)
        snapshots = self._place.snapshots
        for folder in (snapshots / name, snapshots, self._place.domains):
            if folder.is_dir():
                self._files.sync_dir(folder)
