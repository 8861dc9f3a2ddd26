"""imgtool snapshot-list, -info, -dumpxml, -current and -parent."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser, exclusive
from imgtool.cli.context import Context
from imgtool.cli.dump import dump, dump_options
from imgtool.cli.main import parse
from imgtool.cli.selection import Family, Filter, chosen
from imgtool.cli.table import fields, local_time, table
from imgtool.cli.tree import tree
from imgtool.cli.visible import visible_line
from imgtool.model.errors import BadRequestError, NotFoundError
from imgtool.model.snapshot import Snapshot

if TYPE_CHECKING:
    from imgtool.engine.world import World

DOMAIN = "name, UUID, or path of a domain's XML file"
_GROUPS = {
    "leaves": "only snapshots without children",
    "no-leaves": "only snapshots with children",
    "inactive": "only those taken of a stopped domain",
    "active": "only those taken of a running domain, with its memory",
    "disk-only": "only those of the disks of a running domain",
    "internal": "only those with nothing outside the images",
    "external": "only those with an overlay or a memory file",
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A domain's snapshots as the store has them at one moment."""

    domain: str
    snapshots: tuple[Snapshot, ...]
    current: str | None

    @classmethod
    def of(cls, world: World, domain: str) -> Recorded:
        from imgtool import api

        name = world.store.head(domain).domain.name
        return cls(name, api.snapshots(world, name), world.store.current(name))

    def pick(self, name: str | None, *, current: bool) -> Snapshot:
        """The snapshot that is named, or the current one. Raises NotFoundError in virsh's words."""
        wanted = self.current if current else name
        for snapshot in self.snapshots:
            if snapshot.name == wanted:
                return snapshot
        missing = f"no domain snapshot with matching name '{name}'"
        if current:
            missing = "the domain does not have a current snapshot"
        raise NotFoundError(
            f"Domain snapshot not found: {missing}", remedy=f"imgtool snapshot-list {self.domain}"
        )


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """These commands read, but for `snapshot-current DOMAIN SNAPSHOT`."""
    parser.data("domain", DOMAIN, required=True)
    work = {
        "snapshot-list": _list,
        "snapshot-info": _info,
        "snapshot-dumpxml": _dumpxml,
        "snapshot-current": _current,
        "snapshot-parent": _parent,
    }
    return work[command](parser, argv, context)


def _list(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("from", "only the children of this snapshot")
    parser.flag("parent", "a column more: each snapshot's parent")
    parser.flag("roots", "only snapshots without parents")
    for name, summary in _GROUPS.items():
        parser.flag(name, summary)
    parser.flag("metadata", "only those with metadata: all that imgtool knows")
    parser.flag("no-metadata", "only those without metadata: none that imgtool knows")
    parser.flag("tree", "draw the snapshots as a tree")
    parser.flag("current", "only the children of the current snapshot")
    parser.flag("descendants", "with --from or --current: their children, too, and so on")
    parser.flag("name", "only the names")
    parser.flag("topological", "parents before children, instead of by name")
    options = parse(parser, argv, context)
    _refuse_together(options)
    with context.world(options.domain) as (world, domain):
        recorded = Recorded.of(world, domain)
    found = chosen(recorded.snapshots, _filter(options, recorded))
    facts = {"domain": recorded.domain, "snapshots": [_facts(s, recorded) for s in found]}
    return context.answer(facts, lambda: _drawn(recorded, found, options, context), listing=True)


def _refuse_together(options: argparse.Namespace) -> None:
    """virsh's refusals, in its order and its words."""
    for pair in ("tree name", "parent roots", "parent tree", "roots tree", "roots from"):
        exclusive(options, *pair.split())
    exclusive(options, "roots", "current")
    for name in _GROUPS:
        if options.tree and getattr(options, name.replace("-", "_")):
            raise _usage(f"--{name} and --tree are mutually exclusive")
    if options.descendants and getattr(options, "from") is None and not options.current:
        raise _usage("--descendants requires either --from or --current", "give one of them")
    _refuse_both(options, "from")


def _refuse_both(options: argparse.Namespace, name: str, *, needed: bool = False) -> None:
    given = getattr(options, name) is not None
    if given and options.current:
        raise _usage(f"--{name} and --current are mutually exclusive")
    if needed and not given and not options.current:
        raise _usage(f"--{name} or --current is required", "give one of them")


def _usage(message: str, remedy: str = "leave one of them out") -> BadRequestError:
    return BadRequestError(message, remedy=remedy)


def _filter(options: argparse.Namespace, recorded: Recorded) -> Filter:
    named = getattr(options, "from")
    below = named is not None or options.current
    return Filter(
        roots=options.roots,
        metadata=options.metadata,
        no_metadata=options.no_metadata,
        start=recorded.pick(named, current=options.current).name if below else None,
        descendants=options.descendants,
        with_start=options.tree,
        topological=options.topological,
        **{key: getattr(options, key) for key in (name.replace("-", "_") for name in _GROUPS)},
    )


def _facts(snapshot: Snapshot, recorded: Recorded) -> dict[str, Any]:
    return {
        "name": snapshot.name,
        "parent": snapshot.parent,
        "current": snapshot.name == recorded.current,
        "created": snapshot.created,
        "state": snapshot.state,
        "location": snapshot.location,
        "description": snapshot.description,
    }


def _drawn(
    recorded: Recorded,
    found: tuple[Snapshot, ...],
    options: argparse.Namespace,
    context: Context,
) -> str:
    if options.tree:
        return tree({each.name: each.parent for each in found}, current=recorded.current)
    if options.name:
        return "\n".join(visible_line(each.name) for each in found)
    headings = ["Name", "Creation Time", "State", *(["Parent"] if options.parent else [])]
    rows = []
    for each in found:
        parent = [each.parent or ""] if options.parent else []
        rows.append([each.name, local_time(each.created), each.state, *parent])
    return table(headings, rows, heading=context.verbosity >= 0)


def _one(parser: Parser, argv: list[str], context: Context) -> tuple[Recorded, Snapshot]:
    """What -info and -parent have in common: a snapshot that is named, or the current one."""
    parser.data("snapshotname", "name of the snapshot")
    parser.flag("current", "the current snapshot")
    options = parse(parser, argv, context)
    _refuse_both(options, "snapshotname", needed=True)
    with context.world(options.domain) as (world, domain):
        recorded = Recorded.of(world, domain)
    return recorded, recorded.pick(options.snapshotname, current=options.current)


def _info(parser: Parser, argv: list[str], context: Context) -> int:
    recorded, snapshot = _one(parser, argv, context)
    family = Family(recorded.snapshots)
    children = len(family.children(snapshot.name))
    descendants = len(family.descendants(snapshot.name))
    facts = {
        "domain": recorded.domain,
        "snapshot": _facts(snapshot, recorded)
        | {"children": children, "descendants": descendants, "metadata": True},
    }
    shown = (
        ("Name", snapshot.name),
        ("Domain", recorded.domain),
        ("Current", "yes" if snapshot.name == recorded.current else "no"),
        ("State", snapshot.state),
        ("Location", snapshot.location),
        ("Parent", snapshot.parent or "-"),
        ("Children", str(children)),
        ("Descendants", str(descendants)),
        ("Metadata", "yes"),
    )
    return context.answer(facts, lambda: fields(shown), listing=True)


def _parent(parser: Parser, argv: list[str], context: Context) -> int:
    recorded, snapshot = _one(parser, argv, context)
    facts = {"domain": recorded.domain, "snapshot": snapshot.name, "parent": snapshot.parent}
    if snapshot.parent is None:
        raise NotFoundError(
            f"snapshot '{snapshot.name}' has no parent",
            remedy=f"imgtool snapshot-list {recorded.domain} --tree",
        )
    return context.answer(facts, lambda: visible_line(str(snapshot.parent)), data=True)


def _dumpxml(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("snapshotname", "name of the snapshot", required=True)
    dump_options(parser)
    options = parse(parser, argv, context)
    with context.world(options.domain) as (world, domain):
        recorded = Recorded.of(world, domain)
        snapshot = recorded.pick(options.snapshotname, current=False)
        xml = _xml(world, recorded, snapshot)
    facts = {"domain": recorded.domain, "snapshot": snapshot.name}
    return dump(xml, "domainsnapshot", facts, options, context)


def _current(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("snapshotname", "name of the snapshot that becomes the current one")
    parser.flag("name", "only its name")
    dump_options(parser)
    options = parse(parser, argv, context)
    exclusive(options, "name", "snapshotname")
    with context.world(options.domain) as (world, domain):
        if options.snapshotname is not None:
            return _set_current(world, domain, options.snapshotname, context)
        recorded = Recorded.of(world, domain)
        facts: dict[str, Any] = {"domain": recorded.domain, "snapshot": recorded.current}
        if recorded.current is None:
            raise NotFoundError(
                f"domain '{recorded.domain}' has no current snapshot",
                remedy=f"imgtool snapshot-current {recorded.domain} SNAPSHOT",
            )
        if options.name:
            return context.answer(facts, lambda: visible_line(str(recorded.current)), data=True)
        xml = _xml(world, recorded, recorded.pick(recorded.current, current=False))
    return dump(xml, "domainsnapshot", facts, options, context)


def _set_current(world: World, domain: str, name: str, context: Context) -> int:
    recorded = Recorded.of(world, domain)
    recorded.pick(name, current=False)
    if context.dry_run:
        text = f"Snapshot {name} would be set as current"
    else:
        from imgtool import api

        api.set_current_snapshot(world, recorded.domain, name)
        text = f"Snapshot {name} set as current"
    return context.answer({"domain": recorded.domain, "snapshot": name}, lambda: text)


def _xml(world: World, recorded: Recorded, snapshot: Snapshot) -> bytes:
    """The record as the store has it, with its mirrors. Raises NotFoundError if it went."""
    from imgtool.xml.mirrors import shown
    from imgtool.xml.snapshot import parse_snapshot

    for xml in world.store.snapshots(recorded.domain):
        if parse_snapshot(xml, where=recorded.domain).name == snapshot.name:
            return shown(xml, where=snapshot.name)
    raise NotFoundError(
        f"snapshot {snapshot.name} has just been deleted", remedy="see imgtool snapshot-list"
    )
