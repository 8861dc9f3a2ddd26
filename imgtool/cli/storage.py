"""imgtool migrate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser, exclusive
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.plans import plan_facts, plan_lines

if TYPE_CHECKING:
    from imgtool.api import MigrateResult


def run(_command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """Move a stopped domain's storage: all in one transaction."""
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    add = parser.add_argument
    add("--to", metavar="DIR", required=True, help="a folder that is there")
    add("--disk", action="append", metavar="DISK", help="only this one; may be given again")
    parser.flag("keep-chain", "copy every layer; that is what it does anyhow")
    parser.flag("flatten", "make one image without a base of each disk")
    parser.flag("delete-source", "afterwards, remove what nobody else needs")
    options = parse(parser, argv, context)
    exclusive(options, "flatten", "keep-chain")
    from imgtool import api

    wanted = api.MigrateOptions(
        to=Path(options.to),
        disks=tuple(options.disk or ()),
        flatten=options.flatten,
        delete_source=options.delete_source,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain):
        result = api.migrate(world, domain, wanted)
    if context.dry_run:
        facts = _facts(result) | {"plan": plan_facts(result.planned.plan)}
        return context.answer(facts, lambda: _plan(result))
    return context.answer(_facts(result), lambda: _done(result))


def _done(result: MigrateResult) -> str:
    if not result.transaction:
        return "Nothing to do"
    return f"Domain '{result.domain}' migrated to {result.to}"


def _plan(result: MigrateResult) -> str:
    planned = result.planned
    if planned.empty:
        return "Nothing to do"
    lines = [plan_lines(planned.plan, planned.moves)]
    size = sum(each.size for each in planned.space)
    lines.append(f"  space: up to {size} bytes in {result.to}")
    return "\n".join(lines)


def _facts(result: MigrateResult) -> dict[str, Any]:
    planned = result.planned
    return {
        "domain": result.domain,
        "transaction": result.transaction or None,
        "to": result.to,
        "disks": [
            {
                "target": disk.target,
                "source": disk.source,
                "dest": disk.dest,
                "layers": disk.layers,
                "bytes": disk.size,
            }
            for disk in planned.disks
        ],
        "snapshots": [each.snapshot.name for each in planned.snapshots],
        "kept": [{"path": each.path, "reason": each.reason} for each in planned.kept],
        "dropped": list(planned.dropped),
    }
