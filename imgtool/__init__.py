"""imgtool: atomic, crash-safe snapshots of stopped virtual machines.

`snapshot` and `recover` are the short way; `imgtool.api` has every operation.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own would be 10 ms in which Ctrl-C prints a traceback
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from imgtool.api import SnapshotResult
    from imgtool.engine.recovery import Recovery

__version__ = "0.1.0"
__all__ = ["__version__", "recover", "snapshot"]


def snapshot(
    domain: str,
    name: str = "",
    *,
    connect: str = "",
    description: str | None = None,
    diskspecs: Sequence[str] = (),
    disk_only: bool = False,
    relative: bool = False,
    reuse_external: bool = False,
    no_metadata: bool = False,
    dry_run: bool = False,
    state_dir: Path | None = None,
) -> SnapshotResult:
    """Take a snapshot of a stopped domain: all the disks that are asked for, or none.

    `domain` is a name, a UUID, or the path of a domain's XML file; `name` defaults to the time
    in seconds; `connect` is `dir:PATH` or a libvirt URI (empty: as virsh would); `diskspecs` are
    virsh's (`vda,snapshot=external,file=/path`). The other options are those of the command.
    Raises imgtool.model.errors.ImgtoolError; after a PendingError, call `recover`. A crash at any
    moment is ended by `recover`, or by the next operation on the domain.
    """
    from imgtool import api
    from imgtool.xml.printxml import checked, from_arguments

    request = from_arguments(name=name, description=description, diskspecs=diskspecs)
    options = api.SnapshotOptions(
        disk_only=disk_only,
        relative=relative,
        reuse_external=reuse_external,
        no_metadata=no_metadata,
        dry_run=dry_run,
    )
    uri, found = api.locate(domain, connect)
    with api.open_world(uri, state_dir=state_dir) as world:
        return api.take_snapshot(world, found, checked(request), options)


def recover(
    domain: str | None = None, *, connect: str = "", state_dir: Path | None = None
) -> Recovery:
    """End what a crash has left open: of one domain, or of all of the store.

    Idempotent, and safe at boot. What could not be ended is in the answer, not raised.
    """
    from imgtool import api

    uri, found = api.locate(domain, connect) if domain else (connect, "")
    with api.open_world(uri, state_dir=state_dir) as world:
        return api.recover(world, found or None)
