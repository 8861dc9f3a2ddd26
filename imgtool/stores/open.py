"""From a URI to a store. Slow libraries are imported only for the store that needs them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from imgtool.host.files import Files
from imgtool.model.errors import BadRequestError, UnsupportedError
from imgtool.stores.base import DomainStore


def open_store(uri: str, *, files: Files | None = None) -> DomainStore:
    """`dir:PATH`, or a libvirt URI of QEMU on this host.

    Raises UnsupportedError for another host or hypervisor, before libvirt is loaded;
    BadRequestError for what is no URI; StoreError where the store cannot be opened.
    """
    files = files or Files()
    if uri.startswith("dir:"):
        if uri == "dir:":
            raise BadRequestError("dir: names no folder", remedy="dir:PATH; dir:. is this one")
        from imgtool.stores.directory import DirectoryStore

        return DirectoryStore(Path(uri.removeprefix("dir:")), files)
    require_local(uri)
    from imgtool.stores.libvirt import LibvirtStore

    return LibvirtStore(uri, files)


def require_local(uri: str) -> None:
    """Raises what `open_store` does for a URI that is not of a QEMU on this host."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise BadRequestError(f"{uri!r} is no URI: {error}", remedy="see imgtool --help") from error
    driver, _, transport = parts.scheme.partition("+")
    if not driver or not parts.path:
        raise BadRequestError(
            f"{uri!r} names no store", remedy="dir:PATH, or a libvirt URI such as qemu:///system"
        )
    if driver != "qemu":
        raise UnsupportedError(
            f"{uri}: not a QEMU URI; only QEMU's domains have images that imgtool knows",
            remedy="dir:PATH, qemu:///system or qemu:///session",
        )
    if parts.netloc or transport not in ("", "unix"):
        raise UnsupportedError(
            f"{uri}: the images are on that host", remedy="run imgtool there, with qemu:///system"
        )
