"""libvirt's persistent, inactive QEMU domains. The only module that imports libvirt.

*Measured* with libvirt 9.0.0, system daemon and embedded driver:
- our element in `<metadata>` is kept, in the domain and in the `<domain>` of a snapshot;
- its own output redefined is a fixpoint, of domains and of snapshots;
- REDEFINE takes a snapshot with internal and external disks mixed (creating one it refuses),
  replaces a record in place, with other disks and modes too, and leaves `current` alone unless
  told CURRENT; a parent that is not recorded and another domain's UUID are refused, and so is
  an internal snapshot that leaves out a disk, unless its `<domain>` has snapshot='no' there;
- a snapshot deleted METADATA_ONLY makes its parent current if it was, and its children get its
  parent; of one without parent, none is current then; where its file cannot be removed, libvirt
  says nothing, and has it again when it is started the next time;
- XML is written to NAME.xml.new, synced and renamed, and if that fails, what is in memory is put
  back; the folder is never synced, see libvirt_files;
- opening takes 10 ms, `define` and REDEFINE 1 ms each; but 4 s for each look at QEMU's
  capabilities, 48 s for one `define`, where QEMU can use /dev/kvm and the `user` of qemu.conf
  (another than root) cannot: libvirt then calls its cached capabilities outdated, every time;
- the embedded driver has one root per process, no storage pools, and a lock on its root; each
  opening registers it once more, and after some five libvirt has "too many drivers".
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import cast

from imgtool.host.files import Files
from imgtool.model.domain import Domain, DomainState, Head
from imgtool.model.errors import (
    ImgtoolError,
    NotDurableError,
    NotFoundError,
    PendingError,
    StoreError,
    UnsupportedError,
    XmlError,
)
from imgtool.stores.base import (
    require_free,
    require_no_snapshots,
    require_pivotal,
    require_stopped,
)
from imgtool.stores.libvirt_api import VirConnection, VirDomain, kind_of
from imgtool.stores.libvirt_embedded import Embedded
from imgtool.stores.libvirt_files import LibvirtFiles, embedded_root, state_dir_of
from imgtool.xml import safe
from imgtool.xml.domain import head as head_of
from imgtool.xml.domain import parse_domain, with_uuid
from imgtool.xml.redefine import for_libvirt

NOBODY = "imgtool-no-current"  # see LibvirtStore.set_current


class LibvirtStore:
    """Domains of libvirt's QEMU driver on this host. `uri` was found to be local by `open_store`.

    libvirt has no compare-and-swap: between the last look at a domain and its redefinition
    somebody else may change it. Raises no libvirtError, ever.
    """

    def __init__(self, uri: str, files: Files) -> None:
        self.uri = uri
        self.state_dir = state_dir_of(uri)
        self._files = LibvirtFiles(uri, files)
        self._libvirt = _load()
        self._embedded = embedded_root(uri) is not None
        with self._failing(remedy=f"does this work: virsh -c '{uri}' list ?"):
            driver = Embedded.running(self._libvirt) if self._embedded else None
            connection = driver.connect(uri) if driver else self._libvirt.open(uri)
            self._connection = cast(VirConnection, connection)

    def domains(self) -> tuple[str, ...]:
        with self._failing():
            flags = self._libvirt.VIR_CONNECT_LIST_DOMAINS_PERSISTENT
            return tuple(sorted(d.name() for d in self._connection.listAllDomains(flags)))

    def state(self, domain: str) -> DomainState:
        with self._failing():
            return self._state(self._lookup(domain))

    def head(self, domain: str) -> Head:
        with self._failing():
            found = self._lookup(domain)
            flags = self._libvirt.VIR_DOMAIN_XML_INACTIVE | self._libvirt.VIR_DOMAIN_XML_SECURE
            xml, state = found.XMLDesc(flags).encode(), self._state(found)
        return head_of(xml, where=f"domain {domain}", state=state)

    def pivot(self, domain: str, *, expected: str, xml: bytes) -> None:
        """One virDomainDefineXML, read back, then synced.

        Should libvirt not keep what matters (disks, transaction), the old XML is defined again.
        """
        head = self.head(domain)
        wanted = require_pivotal(head, expected=expected, xml=xml)
        self._define(xml)
        if _essence(self.head(domain).domain) != _essence(wanted):
            self._restore(head)
        try:
            self._sync(head.domain)
        except StoreError as error:
            raise NotDurableError(
                f"domain {domain} has its new XML, but a power cut may take it back: {error}",
                remedy="mend the disk, then run: imgtool recover",
            ) from error

    def quiesce(self, domain: str) -> None:
        """libvirtd goes on defining a domain when the client that asked for it is gone.

        That takes seconds where it looks at QEMU's capabilities, one look at a time; so libvirt
        is asked for something that needs them as well and changes nothing; whether it can do
        that is all the same. It may get its looks before the other, which then needs no longer
        for the rest than this has taken.
        """
        if self._embedded:
            return  # it died with the process
        xml = self.head(domain).xml.decode()
        begun = time.monotonic()
        with suppress(self._libvirt.libvirtError):
            self._connection.domainXMLToNative("qemu-argv", xml)
        time.sleep(time.monotonic() - begun)

    def settle(self, domain: str) -> None:
        """Idempotent. What libvirt's own writes left (NAME.xml.new) is libvirt's."""
        head = self.head(domain)
        with self._failing():
            found = self._lookup(domain)
            if NOBODY in _names(found):
                self._drop(found, NOBODY)
        self._sync(head.domain)

    def snapshots(self, domain: str) -> tuple[bytes, ...]:
        with self._failing():
            found = self._lookup(domain).listAllSnapshots()
            kept = [snapshot for snapshot in found if snapshot.getName() != NOBODY]
            flags = self._libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE
            return tuple(snapshot.getXMLDesc(flags).encode() for snapshot in kept)

    def current(self, domain: str) -> str | None:
        with self._failing():
            found = self._lookup(domain)
            name = found.snapshotCurrent().getName() if found.hasCurrentSnapshot() else None
            return None if name == NOBODY else name

    def record(self, domain: str, name: str, xml: bytes, *, current: bool) -> None:
        """One REDEFINE: the old current record is rewritten, then this one.

        A power cut between leaves no snapshot current; `set_current` mends it.
        """
        root = safe.parse(xml, root="domainsnapshot", where=f"snapshot {name} of {domain}")
        if root.findtext("name") != name:
            raise XmlError(f"the snapshot to record is not called {name}", remedy="mend <name>")
        with self._failing():
            accepted = for_libvirt(xml, where=f"snapshot {name} of {domain}")
            self._redefine(self._lookup(domain), accepted.decode(), current=current)
        self._sync(self.head(domain).domain)

    def forget_lost(self, uuid: str, name: str, *, current: str | None) -> None:
        """libvirt undefines no domain without its snapshots."""

    def forget(self, domain: str, name: str) -> None:
        """The parent's record is rewritten as current, then this one removed.

        A power cut between leaves two that claim to be current; calling again mends it.
        """
        known = self.head(domain).domain
        with self._failing():
            found = self._lookup(domain)
            if name in _names(found):
                self._require_thawed(known)
                self._drop(found, name)
        self._sync(known)

    def set_current(self, domain: str, name: str | None) -> None:
        """REDEFINE that snapshot as it is, with CURRENT.

        libvirt has no way to say that none is current, but none is when a current snapshot
        without parent is deleted: so one is recorded for that. A crash between leaves it; it is
        never shown, and `settle` drops it.
        """
        with self._failing():
            found = self._lookup(domain)
            if name is not None:
                flags = self._libvirt.VIR_DOMAIN_SNAPSHOT_XML_SECURE
                xml = found.snapshotLookupByName(name).getXMLDesc(flags)
                self._redefine(found, xml, current=True)
            elif found.hasCurrentSnapshot():
                self._redefine(found, self._nobody(domain), current=True)
                self._drop(found, NOBODY)
        self._sync(self.head(domain).domain)

    def define(self, xml: bytes) -> str:
        """libvirt's own virDomainDefineXML, without validation against its schema."""
        wanted = parse_domain(xml, where="the domain to define")
        present = self._find(wanted.name)
        new_uuid = present.domain.uuid if present else str(uuid.uuid4())
        xml = with_uuid(xml, new_uuid, where=f"domain {wanted.name}")
        wanted = parse_domain(xml, where=f"domain {wanted.name}")
        require_free(wanted, present, self._find(wanted.uuid))
        self._define(xml)
        self._sync(wanted)
        return wanted.name

    def undefine(self, domain: str, *, snapshots_metadata: bool = False) -> None:
        """NVRAM and TPM state stay, as images do."""
        head = self.head(domain)
        require_stopped(domain, head.state)
        on_disk = self._files.found(head.domain.name, head.domain.uuid)
        with self._failing():
            found = self._lookup(domain)
            if not snapshots_metadata:
                require_no_snapshots(domain, len(_names(found)))
            flags = self._libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
            flags |= getattr(self._libvirt, "VIR_DOMAIN_UNDEFINE_KEEP_TPM", 0)
            found.undefineFlags(flags | self._libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
        self._sync(head.domain, on_disk=on_disk)

    def volume(self, pool: str, volume: str) -> Path:
        """The pool is neither started nor refreshed: that is its owner's to do."""
        with self._failing(remedy=f"see: virsh pool-refresh {pool}, vol-list {pool}"):
            found = self._connection.storagePoolLookupByName(pool)
            if not found.isActive():
                raise StoreError(
                    f"storage pool {pool} is not active", remedy=f"virsh pool-start {pool}"
                )
            path = Path(found.storageVolLookupByName(volume).path())
        if not path.is_absolute():
            raise UnsupportedError(
                f"volume {volume} of pool {pool} is {path}, not a local file",
                remedy="imgtool works on local files and block devices",
            )
        return path

    def close(self) -> None:
        if not self._embedded:
            with self._failing():
                self._connection.close()

    def _lookup(self, domain: str) -> VirDomain:
        try:
            return self._connection.lookupByName(domain)
        except self._libvirt.libvirtError:
            try:
                text = str(uuid.UUID(domain))
            except ValueError:
                text = ""
            if not text:
                raise
            return self._connection.lookupByUUIDString(text)

    def _find(self, domain: str) -> Head | None:
        try:
            return self.head(domain)
        except NotFoundError:
            return None

    def _state(self, domain: VirDomain) -> DomainState:
        if not domain.isPersistent():
            return DomainState.TRANSIENT
        if domain.isActive():
            paused = domain.state()[0] == self._libvirt.VIR_DOMAIN_PAUSED
            return DomainState.PAUSED if paused else DomainState.RUNNING
        return DomainState.SAVED if domain.hasManagedSaveImage() else DomainState.SHUTOFF

    def _define(self, xml: bytes) -> None:
        with self._failing():
            self._connection.defineXML(xml.decode())

    def _restore(self, head: Head) -> None:
        name = head.domain.name
        try:
            self._define(head.xml)
            self._sync(head.domain)  # or a power cut brings back what was just taken back
        except ImgtoolError as error:
            raise PendingError(
                f"libvirt changed the new XML of {name}, and would not take the old one: {error}",
                remedy="mend libvirt, then run: imgtool recover",
            ) from error
        raise StoreError(
            f"libvirt did not keep the new disks and metadata of {name}; the old XML is back",
            remedy=f"compare with: virsh dumpxml --inactive {name}",
        )

    def _redefine(self, domain: VirDomain, xml: str, *, current: bool) -> None:
        flags = self._libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE
        if current:
            flags |= self._libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT
        domain.snapshotCreateXML(xml, flags)

    def _drop(self, domain: VirDomain, name: str) -> None:
        flags = self._libvirt.VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY
        domain.snapshotLookupByName(name).delete(flags)

    def _require_thawed(self, domain: Domain) -> None:
        if self._files.found(domain.name, domain.uuid):
            folder = self._files.frozen(domain.name)
            if folder is not None:
                raise StoreError(
                    f"{folder}: nothing can be removed there, so libvirt's record would come back",
                    remedy="make it writable, for libvirt and for imgtool",
                )

    def _nobody(self, domain: str) -> str:
        xml = self.head(domain).xml.decode()
        return (
            f"<domainsnapshot><name>{NOBODY}</name><state>shutoff</state>"
            f"<creationTime>1</creationTime><memory snapshot='no'/>{xml}</domainsnapshot>"
        )

    def _sync(self, domain: Domain, *, on_disk: bool | None = None) -> None:
        found = self._files.found(domain.name, domain.uuid) if on_disk is None else on_disk
        try:
            self._files.sync(domain.name, found=found)
        except OSError as error:
            raise StoreError(
                f"{error.filename or domain.name}: cannot be synced: {error.strerror}",
                remedy="see the disk that libvirt keeps its XML on",
            ) from error

    @contextmanager
    def _failing(self, *, remedy: str = "see libvirt's log") -> Iterator[None]:
        try:
            yield
        except self._libvirt.libvirtError as error:
            kind = kind_of(self._libvirt, error.get_error_code())
            message = error.get_error_message() or str(error)
            raise kind(f"libvirt: {message}", remedy=remedy) from error


def _load() -> ModuleType:
    """Import libvirt, and keep it from printing its errors."""
    try:
        import libvirt
    except ImportError as error:
        raise StoreError(
            f"the libvirt module cannot be loaded: {error}",
            remedy="pip install imgtool[libvirt], or apt install python3-libvirt",
        ) from error
    libvirt.registerErrorHandler(lambda context, error: None, None)
    return cast(ModuleType, libvirt)


def _names(domain: VirDomain) -> tuple[str, ...]:
    return tuple(snapshot.getName() for snapshot in domain.listAllSnapshots())


def _essence(domain: Domain) -> tuple[object, ...]:
    disks = tuple((disk.target, disk.type, disk.source, disk.format_name) for disk in domain.disks)
    return (domain.name, domain.uuid, domain.transaction, disks)
