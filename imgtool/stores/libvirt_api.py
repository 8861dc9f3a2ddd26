"""What we use of libvirt-python, which has no types of its own, and its errors as ours."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Protocol

from imgtool.model.errors import (
    BadRequestError,
    ImgtoolError,
    NotFoundError,
    RefusedError,
    StoreError,
    UnsupportedError,
    XmlError,
)


class VirSnapshot(Protocol):
    """virDomainSnapshot."""

    def getName(self) -> str: ...
    def getXMLDesc(self, flags: int) -> str: ...
    def delete(self, flags: int) -> int: ...


class VirDomain(Protocol):
    """virDomain."""

    def name(self) -> str: ...
    def XMLDesc(self, flags: int) -> str: ...
    def isActive(self) -> int: ...
    def isPersistent(self) -> int: ...
    def hasManagedSaveImage(self, flags: int = 0) -> int: ...
    def state(self, flags: int = 0) -> Sequence[int]: ...
    def undefineFlags(self, flags: int) -> int: ...
    def snapshotCreateXML(self, xml: str, flags: int) -> VirSnapshot: ...
    def snapshotLookupByName(self, name: str, flags: int = 0) -> VirSnapshot: ...
    def listAllSnapshots(self, flags: int = 0) -> list[VirSnapshot]: ...
    def hasCurrentSnapshot(self, flags: int = 0) -> int: ...
    def snapshotCurrent(self, flags: int = 0) -> VirSnapshot: ...


class VirVolume(Protocol):
    """virStorageVol."""

    def path(self) -> str: ...


class VirPool(Protocol):
    """virStoragePool."""

    def isActive(self) -> int: ...
    def storageVolLookupByName(self, name: str) -> VirVolume: ...


class VirConnection(Protocol):
    """virConnect."""

    def listAllDomains(self, flags: int) -> list[VirDomain]: ...
    def lookupByName(self, name: str) -> VirDomain: ...
    def lookupByUUIDString(self, text: str) -> VirDomain: ...
    def defineXML(self, xml: str) -> VirDomain: ...
    def storagePoolLookupByName(self, name: str) -> VirPool: ...
    def domainXMLToNative(self, format: str, xml: str, flags: int = 0) -> str: ...
    def close(self) -> int: ...


def kind_of(libvirt: ModuleType, code: int) -> type[ImgtoolError]:
    """Our type for a libvirtError's code; StoreError for what is nobody's fault."""
    kinds: dict[int, type[ImgtoolError]] = {
        libvirt.VIR_ERR_NO_DOMAIN: NotFoundError,
        libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT: NotFoundError,
        libvirt.VIR_ERR_NO_STORAGE_POOL: NotFoundError,
        libvirt.VIR_ERR_NO_STORAGE_VOL: NotFoundError,
        libvirt.VIR_ERR_INVALID_ARG: BadRequestError,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED: UnsupportedError,
        libvirt.VIR_ERR_NO_SUPPORT: UnsupportedError,
        libvirt.VIR_ERR_OPERATION_INVALID: RefusedError,
        libvirt.VIR_ERR_XML_DETAIL: XmlError,
        libvirt.VIR_ERR_XML_ERROR: XmlError,
    }
    return kinds.get(code, StoreError)
