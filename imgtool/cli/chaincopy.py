"""imgtool chain-copy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser
from imgtool.cli.chains import size
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.visible import visible_line
from imgtool.model.errors import BadRequestError

if TYPE_CHECKING:
    from imgtool.api import ChainCopyResult
    from imgtool.engine.chaincopy import Copied


def run(_command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """Also for a running domain: its active layers stay where they are."""
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="DISK",
        help="target of a disk, or the path of its active layer, repeatable; default: all disks",
    )
    parser.add_argument("--to", metavar="DIR", help="the folder for the copies")
    parser.flag("trust", "do not compare data; structure always is")
    options = parse(parser, argv, context)
    if not options.to:
        raise BadRequestError("--to is missing", remedy="name the folder for the copies: --to DIR")
    from imgtool import api

    wanted = api.ChainCopyOptions(to=Path(options.to), trust=options.trust, dry_run=context.dry_run)
    with context.world(options.domain) as (world, domain):
        result = api.copy_chain(world, domain, options.disk, wanted)
    return context.answer(_facts(result), lambda: _text(result, context))


def _facts(result: ChainCopyResult) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "to": result.to,
        "layers": [
            {
                "target": copied.layer.target,
                "targets": list(copied.layer.targets),
                "source": copied.layer.source.spelled,
                "copy": copied.layer.copy,
                "bytes": copied.layer.source.identity.size,
                "allocation": copied.layer.source.allocation,
                "action": copied.action,
                "resumed": copied.resumed,
            }
            for copied in result.layers
        ],
    }


def _text(result: ChainCopyResult, context: Context) -> str:
    lines = [_line(copied) for copied in result.layers]
    if context.dry_run:
        lines.insert(0, f"chain-copy of {result.domain} (nothing is begun):")
    return "\n".join(lines)


def _line(copied: Copied) -> str:
    layer = copied.layer
    what = f"{copied.action}, {size(layer.source.identity.size)}"
    if copied.resumed:
        what += f", of which {size(copied.resumed)} earlier"
    where = f"{layer.source.spelled} -> {layer.copy}"
    return visible_line(f"{', '.join(layer.targets)}: {where} ({what})")
