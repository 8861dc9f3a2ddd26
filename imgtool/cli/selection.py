"""Which snapshots a list shows, and in what order: virsh's filters over recorded snapshots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from imgtool.model.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """virsh's options, by their names. All false: every snapshot, by name."""

    roots: bool = False
    leaves: bool = False
    no_leaves: bool = False
    metadata: bool = False
    no_metadata: bool = False
    inactive: bool = False
    active: bool = False
    disk_only: bool = False
    internal: bool = False
    external: bool = False
    start: str | None = None  # only what is below this snapshot: its children,
    descendants: bool = False  # or their children, too
    with_start: bool = False  # and itself, first
    topological: bool = False  # parents before children, instead of by name


class Family:
    """Snapshots by their parents. A parent that is not recorded counts for none."""

    def __init__(self, snapshots: Iterable[Snapshot]) -> None:
        self.by_name = {snapshot.name: snapshot for snapshot in snapshots}
        self._children: dict[str | None, list[Snapshot]] = {}
        for snapshot in self.by_name.values():
            self._children.setdefault(self.parent(snapshot), []).append(snapshot)

    def parent(self, snapshot: Snapshot) -> str | None:
        return snapshot.parent if snapshot.parent in self.by_name else None

    def children(self, name: str | None) -> tuple[Snapshot, ...]:
        """Those with this parent; of None, those without."""
        return tuple(self._children.get(name, ()))

    def descendants(self, name: str | None) -> tuple[Snapshot, ...]:
        """All below, each behind its parent, without the one they start from."""
        found: dict[str, Snapshot] = {}
        stack = list(reversed(self.children(name)))
        while stack:
            snapshot = stack.pop()
            if snapshot.name not in found and snapshot.name != name:  # nobody is asked twice
                found[snapshot.name] = snapshot
                stack += reversed(self.children(snapshot.name))
        return tuple(found.values())


def by_name(snapshots: Iterable[Snapshot]) -> tuple[Snapshot, ...]:
    """virsh's order: upper and lower case are the same, as far as ASCII goes."""
    return tuple(sorted(snapshots, key=lambda each: _key(each.name)))


def chosen(snapshots: Sequence[Snapshot], wanted: Filter) -> tuple[Snapshot, ...]:
    """The snapshots that a filter lets through, in the order of the list."""
    family = Family(by_name(snapshots))
    found = [each for each in _reached(family, wanted) if _passes(each, family, wanted)]
    if not wanted.topological:
        found = list(by_name(found))
    start = family.by_name.get(wanted.start or "") if wanted.with_start else None
    return (
        tuple(found) if start is None else (start, *(each for each in found if each is not start))
    )


def _reached(family: Family, wanted: Filter) -> Iterable[Snapshot]:
    if wanted.start is None and wanted.roots:
        return family.children(None)
    if wanted.start is not None and not wanted.descendants:
        return family.children(wanted.start)
    found = family.descendants(wanted.start)
    if wanted.start is not None:
        return found
    names = {each.name for each in found}
    ring = [each for each in family.by_name.values() if each.name not in names]
    return (*found, *ring)  # of a ring of parents, nobody is below a root


def _passes(snapshot: Snapshot, family: Family, wanted: Filter) -> bool:
    """In the groups of state, location and metadata, all of a group is as good as none of it."""
    has_children = bool(family.children(snapshot.name))
    inactive, disk_only = snapshot.state == "shutoff", snapshot.state == "disk-snapshot"
    states = (
        (wanted.inactive, inactive),
        (wanted.disk_only, disk_only),
        (wanted.active, not inactive and not disk_only),
    )
    external = snapshot.location == "external"
    return (
        not (wanted.leaves and has_children)
        and not (wanted.no_leaves and not has_children)
        and not (wanted.no_metadata and not wanted.metadata)
        and _in_group(states)
        and _in_group(((wanted.internal, not external), (wanted.external, external)))
    )


def _in_group(group: Sequence[tuple[bool, bool]]) -> bool:
    """Pairs of: is it asked for, is it so."""
    return not any(asked for asked, _ in group) or any(asked and so for asked, so in group)


def _key(name: str) -> tuple[bytes, bytes]:
    data = name.encode("utf-8", "surrogateescape")
    return (data.lower(), data)
