"""The port between the engine and whatever keeps domain XML."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from imgtool.model.domain import Domain, DomainState, Head
from imgtool.model.errors import (
    DomainActiveError,
    DomainChangedError,
    ExistsError,
    RefusedError,
    XmlError,
)
from imgtool.xml.domain import parse_domain


class DomainStore(Protocol):
    """Where domain XML and snapshot metadata live. Tests run one contract over every store.

    `domain` is a domain's name everywhere (`head` takes a UUID, too). All methods raise
    StoreError when the store itself fails and NotFoundError for an unknown domain. Whoever
    changes a domain holds its lock: a store takes none.
    """

    uri: str
    """How a person names this store on the command line; journals carry it."""

    state_dir: Path
    """Where the journals of this store's domains belong unless the user says otherwise."""

    def domains(self) -> tuple[str, ...]:
        """Names of all persistent domains, sorted."""
        ...

    def state(self, domain: str) -> DomainState: ...

    def head(self, domain: str) -> Head:
        """The inactive XML with everything in it (passwords too), its digest, and the state."""
        ...

    def pivot(self, domain: str, *, expected: str, xml: bytes) -> None:
        """Replace the XML if its digest is still `expected` and the domain is stopped.

        Raises DomainChangedError or DomainActiveError, having changed nothing; NotDurableError
        when the new XML is there but may not survive a power cut. When it returns, it does. A
        crash inside leaves the old XML or the new one; so may StoreError, if the store has gone
        away: `head` says which.
        """
        ...

    def settle(self, domain: str) -> None:
        """Make what `head` and `snapshots` show now survive a power cut (redoes lost syncs).

        Also removes what a crash inside this store's own atomic writes has left.
        """
        ...

    def quiesce(self, domain: str) -> None:
        """Wait for what a process that has died may have asked for, if it can still be done.

        Before it returns, `head` may show the old XML although the new one is on its way.
        """
        ...

    def snapshots(self, domain: str) -> tuple[bytes, ...]:
        """The `<domainsnapshot>` of each recorded snapshot, in no particular order."""
        ...

    def current(self, domain: str) -> str | None:
        """Name of the current snapshot."""
        ...

    def record(self, domain: str, name: str, xml: bytes, *, current: bool) -> None:
        """Keep a `<domainsnapshot>`, durably, replacing a record of that name.

        Its parent, if any, is recorded already. Replacing never drops the record: a crash leaves
        the old one or the new one. Not `current`: which snapshot is current does not change.
        """
        ...

    def forget_lost(self, uuid: str, name: str, *, current: str | None) -> None:
        """Drop the metadata of a snapshot of a domain that is not defined any more, durably.

        `current` is the snapshot that was the current one before. Idempotent. A store that drops
        metadata together with the domain has nothing to do.
        """
        ...

    def forget(self, domain: str, name: str) -> None:
        """Drop a snapshot's metadata, durably; nothing happens if it is not there.

        Of the current snapshot, its parent becomes current, or none, as libvirt does it. The
        caller has given children another parent before (libvirt would, a folder would not).
        """
        ...

    def set_current(self, domain: str, name: str | None) -> None:
        """Mark a recorded snapshot as current, durably. None: no snapshot is current."""
        ...

    def define(self, xml: bytes) -> str:
        """Add or replace a domain, durably; returns its name.

        XML without a UUID keeps the one that a domain of this name has, or gets a random one.
        Raises ExistsError where the name or the UUID is another domain's.
        """
        ...

    def undefine(self, domain: str, *, snapshots_metadata: bool = False) -> None:
        """Forget a stopped domain; its images stay.

        Raises RefusedError while it has snapshots, unless their metadata goes too. A crash
        inside leaves the domain with fewer snapshots, or none of either: the same call finishes.
        """
        ...

    def volume(self, pool: str, volume: str) -> Path:
        """Local path of a storage volume."""
        ...

    def close(self) -> None: ...


_REMEDY = {
    DomainState.RUNNING: "shut it down: virsh shutdown {name}",
    DomainState.PAUSED: "shut it down: virsh destroy {name}, or virsh resume and shutdown",
    DomainState.SAVED: "start and shut it down, or drop its state: virsh managedsave-remove {name}",
    DomainState.TRANSIENT: "imgtool needs a persistent domain: virsh define",
}


def require_stopped(domain: str, state: DomainState) -> None:
    """Raises DomainActiveError, with what to do about it."""
    if state is not DomainState.SHUTOFF:
        remedy = _REMEDY[state].format(name=domain)
        raise DomainActiveError(f"domain {domain} is {state}, not shut off", remedy=remedy)


def require_pivotal(head: Head, *, expected: str, xml: bytes) -> Domain:
    """What every store checks right before a pivot; returns the domain as it will be.

    Raises DomainActiveError, DomainChangedError, or XmlError for another domain's XML.
    """
    name = head.domain.name
    require_stopped(name, head.state)
    if head.digest != expected:
        raise DomainChangedError(
            f"the XML of domain {name} was changed by somebody else",
            remedy="see what they did, then run the command again",
        )
    new = parse_domain(xml, where=f"new XML of {name}")
    if (new.name, new.uuid) != (name, head.domain.uuid):
        raise XmlError(
            f"new XML of {name}: is of domain {new.name}, UUID {new.uuid}",
            remedy=f"keep name {name} and UUID {head.domain.uuid}",
        )
    return new


def require_free(wanted: Domain, *present: Head | None) -> None:
    """Raises ExistsError if one of `present` has the name or the UUID of `wanted`, but not both."""
    for head in present:
        if head is None:
            continue
        same_name = head.domain.name == wanted.name
        same_uuid = head.domain.uuid == wanted.uuid
        if same_name and not same_uuid:
            raise ExistsError(
                f"domain {wanted.name} exists already, with UUID {head.domain.uuid}",
                remedy="undefine it first, or give the new one that UUID",
            )
        if same_uuid and not same_name:
            raise ExistsError(
                f"UUID {wanted.uuid} is that of domain {head.domain.name}",
                remedy="give the new domain another UUID, or none",
            )


def require_no_snapshots(domain: str, count: int) -> None:
    """Raises RefusedError, as a domain is not undefined while it has snapshots."""
    if count:
        raise RefusedError(
            f"domain {domain} has {count} snapshot(s)",
            remedy="undefine --snapshots-metadata drops their metadata, too",
        )
