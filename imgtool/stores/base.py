"""The port between the engine and whatever keeps domain XML."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from imgtool.model.domain import DomainState, Head


class DomainStore(Protocol):
    """Where domain XML and snapshot metadata live. Tests run one contract over every store.

    `domain` is a domain's name everywhere (`head` takes a UUID, too). All methods raise
    StoreError when the store itself fails and NotFoundError for an unknown domain.
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

        Raises DomainChangedError or DomainActiveError, having changed nothing. When it returns,
        the new XML survives a power cut. A crash inside leaves the old XML or the new one.
        """
        ...

    def settle(self, domain: str) -> None:
        """Make what `head` and `snapshots` show now survive a power cut (redoes lost syncs).

        Also removes what a crash inside this store's own atomic writes has left.
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

        Replacing never drops the record: a crash leaves the old one or the new one.
        """
        ...

    def forget(self, domain: str, name: str) -> None:
        """Drop a snapshot's metadata, durably; nothing happens if it is not there."""
        ...

    def set_current(self, domain: str, name: str | None) -> None:
        """Mark a recorded snapshot as current. None: no snapshot is current."""
        ...

    def define(self, xml: bytes) -> str:
        """Add or replace a domain; returns its name."""
        ...

    def undefine(self, domain: str, *, snapshots_metadata: bool = False) -> None:
        """Forget a stopped domain. Refused while it has snapshots, unless these go too."""
        ...

    def volume(self, pool: str, volume: str) -> Path:
        """Local path of a storage volume."""
        ...

    def close(self) -> None: ...
