"""imgtool snapshot-revert and snapshot-delete."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser, exclusive
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.plans import plan_facts, plan_lines
from imgtool.model.errors import BadRequestError

if TYPE_CHECKING:
    from imgtool.api import DeleteResult, MirrorEndResult, RevertResult


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """Both commands: what virsh calls by these names, for a stopped domain."""
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    parser.data("snapshotname", "the snapshot")
    parser.flag("current", "the current snapshot")
    if command == "snapshot-revert":
        return _revert(parser, argv, context)
    return _delete(parser, argv, context)


def _revert(parser: Parser, argv: list[str], context: Context) -> int:
    parser.flag("running", "refused: start the domain afterwards")
    parser.flag("paused", "refused: start the domain afterwards")
    parser.flag("force", "drop what was written since, unless a snapshot holds it")
    parser.flag("keep", "keep what was written since, as a snapshot of its own")
    parser.add_argument("--keep-as", metavar="NAME", default="", help="--keep, under this name")
    parser.flag("reset-nvram", "accepted: it only matters when a domain starts")
    options = parse(parser, argv, context)
    exclusive(options, "running", "paused")
    exclusive(options, "force", "keep")
    for flag, hint in (("running", "virsh start"), ("paused", "virsh start --paused")):
        if getattr(options, flag):
            raise BadRequestError(
                f"--{flag}: imgtool starts no domains",
                remedy=f"leave it out, then {hint} {options.domain}",
            )
    from imgtool import api

    wanted = api.RevertOptions(
        force=options.force,
        keep=options.keep,
        keep_as=options.keep_as,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain):
        result = api.revert_to(world, domain, _name(options), wanted)
    if context.dry_run:
        plan = result.planned.plan
        facts = _revert_facts(result) | {"plan": plan_facts(plan)}
        return context.answer(facts, lambda: plan_lines(plan, result.planned.moves))
    return context.answer(_revert_facts(result), lambda: _reverted(result))


def _reverted(result: RevertResult) -> str:
    kept = f"; what was there is kept as {result.kept}" if result.kept else ""
    return f"Domain snapshot {result.snapshot} reverted{kept}"


def _revert_facts(result: RevertResult) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "snapshot": result.snapshot,
        "transaction": result.transaction,
        "kept": result.kept or None,
        "disks": [{"target": move.target, "source": move.path} for move in result.planned.moves],
        "dropped": [drop.path for drop in result.planned.plan.aftermath.drops],
    }


def _delete(parser: Parser, argv: list[str], context: Context) -> int:
    parser.flag("children", "the snapshot and all its descendants")
    parser.flag("children-only", "the descendants, not the snapshot")
    parser.flag("metadata", "only the record; no image is touched")
    parser.flag("mirror-pivot", "of a mirrored snapshot: the domain goes over to the mirrors")
    parser.flag("mirror-abort", "of a mirrored snapshot: the domain stays; the mirrors go")
    parser.flag("trust", "with --mirror-pivot: do not compare the data of both places")
    options = parse(parser, argv, context)
    exclusive(options, "children", "children-only")
    if options.mirror_pivot or options.mirror_abort or options.trust:
        return _end_mirror(options, context)
    from imgtool import api

    wanted = api.DeleteOptions(
        children=options.children,
        children_only=options.children_only,
        metadata=options.metadata,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain):
        name = _name(options) or world.store.current(world.store.head(domain).domain.name) or ""
        result = api.delete_snapshot(world, domain, name, wanted)
    if context.dry_run:
        plans = [plan_facts(each.plan) for each in result.planned]
        facts = _delete_facts(result, name) | {"plan": plans[0] if plans else []}
        return context.answer(facts, lambda: _planned(result))
    word = "children deleted" if options.children_only else "deleted"
    return context.answer(_delete_facts(result, name), lambda: f"Domain snapshot {name} {word}")


def _end_mirror(options: argparse.Namespace, context: Context) -> int:
    exclusive(options, "mirror-pivot", "mirror-abort")
    for way in ("mirror-pivot", "mirror-abort"):
        for other in ("children", "children-only", "metadata"):
            exclusive(options, way, other)
    if options.trust and not options.mirror_pivot:
        raise BadRequestError("--trust: only --mirror-pivot compares", remedy="leave it out")
    from imgtool import api

    wanted = api.MirrorEndOptions(
        pivot=options.mirror_pivot, trust=options.trust, dry_run=context.dry_run
    )
    with context.world(options.domain) as (world, domain):
        result = api.end_mirror(world, domain, _name(options), wanted)
    facts = _mirror_facts(result)
    if context.dry_run:
        plan = result.planned.plan
        facts["plan"] = plan_facts(plan)
        return context.answer(facts, lambda: plan_lines(plan, result.planned.moves))
    word = "pivoted to its mirrors" if result.pivoted else "gave its mirrors up"
    return context.answer(
        facts, lambda: f"Domain {result.domain} {word}; snapshot {result.snapshot} deleted"
    )


def _mirror_facts(result: MirrorEndResult) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "snapshot": result.snapshot,
        "transaction": result.transaction,
        "deleted": [result.snapshot],
        "disks": [{"target": move.target, "source": move.path} for move in result.planned.moves],
        "dropped": [drop.path for drop in result.planned.plan.aftermath.drops],
    }


def _planned(result: DeleteResult) -> str:
    lines = [plan_lines(each.plan, ()) for each in result.planned]
    for planned in result.planned:
        lines += [
            f"  {target}: {way.name.lower()} {path} ({size} bytes to move)"
            for target, way, path, size in planned.ways
        ]
        lines += [f"  note: {note}" for note in planned.notes]
    lines += [f"then likewise: {name}" for name in result.deleted[len(result.planned) :]]
    return "\n".join(lines)


def _delete_facts(result: DeleteResult, name: str) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "snapshot": name,
        "deleted": list(result.deleted),
        "disks": [
            {"target": target, "way": way.name.lower(), "image": path, "bytes": size}
            for planned in result.planned
            for target, way, path, size in planned.ways
        ],
    }


def _name(options: argparse.Namespace) -> str:
    """The snapshot that is meant; empty: the current one."""
    if options.current and options.snapshotname:
        raise BadRequestError(
            "Options --current and --snapshotname are mutually exclusive",
            remedy="leave one of them out",
        )
    if not options.current and not options.snapshotname:
        raise BadRequestError("--snapshotname or --current is required", remedy="give one of them")
    return options.snapshotname or ""
