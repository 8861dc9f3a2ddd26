"""What is there: domains, snapshots, chains."""

from __future__ import annotations

from collections.abc import Sequence

from imgtool.api.world import working_on
from imgtool.engine import guard, survey
from imgtool.engine.world import World
from imgtool.model.errors import NotFoundError
from imgtool.model.image import Chain
from imgtool.model.snapshot import Snapshot
from imgtool.xml.snapshot import parse_snapshot


def snapshots(world: World, domain: str) -> tuple[Snapshot, ...]:
    """All recorded snapshots of a domain, oldest first."""
    found = (parse_snapshot(xml, where=domain) for xml in world.store.snapshots(domain))
    return tuple(sorted(found, key=lambda each: (each.created, each.name)))


def set_current_snapshot(world: World, domain: str, name: str) -> None:
    """Mark a recorded snapshot as the current one, as `snapshot-current`. Raises NotFoundError."""
    head = world.store.head(domain)
    domain = head.domain.name
    with working_on(world, domain, jobs=True):
        if name not in {each.name for each in snapshots(world, domain)}:
            raise NotFoundError(
                f"domain {domain} has no snapshot {name!r}", remedy="see imgtool snapshot-list"
            )
        guard.require_not_mirrored(world, head, but=name)
        world.store.set_current(domain, name)


def chains(world: World, domain: str, targets: Sequence[str] = ()) -> dict[str, Chain]:
    """The backing chain of each disk that has a local image, base first, by target.

    `targets` picks disks, whose chains must then be readable; without it, cdroms and the like
    that cannot be read are left out. Raises NotFoundError, ChainError, UnsupportedError.
    """
    parsed = world.store.head(domain).domain
    picked = []
    for target in targets:
        disk = parsed.disk(target)
        if disk is None:
            raise NotFoundError(f"no disk named {target!r}", remedy="see imgtool domblklist")
        picked.append(disk)
    if not picked:
        picked = [disk for disk in parsed.disks if disk.device == "disk" and not disk.empty]
    return {disk.target: survey.chain_of(disk, world) for disk in picked}


def define(world: World, xml: bytes) -> str:
    """Add or replace a domain, as virsh define; returns its name. Refused while it is pending."""
    from imgtool.xml.domain import parse_domain

    name = parse_domain(xml, where="the domain to define").name
    if name in world.store.domains():
        with working_on(world, name, jobs=True):
            return world.store.define(xml)
    return world.store.define(xml)


def undefine(world: World, domain: str, *, snapshots_metadata: bool = False) -> None:
    """Forget a stopped domain; its images stay."""
    domain = world.store.head(domain).domain.name
    with working_on(world, domain):
        world.store.undefine(domain, snapshots_metadata=snapshots_metadata)
