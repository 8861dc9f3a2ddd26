"""imgtool mirror-create and overlay-create."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.plans import plan_facts, plan_lines
from imgtool.cli.visible import visible_line
from imgtool.model.errors import BadRequestError
from imgtool.model.image import Format

if TYPE_CHECKING:
    from imgtool.api import MirrorFilesResult, OverlayResult


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """Both commands. Neither changes anything that exists; a domain may run meanwhile."""
    if command == "overlay-create":
        return _overlay(parser, argv, context)
    return _mirror(parser, argv, context)


def _mirror(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    parser.rest("diskspec", "disk[,file=name][,mirror=name]")
    options = parse(parser, argv, context)
    from imgtool import api
    from imgtool.xml.diskspec import parse_diskspec

    disks = [parse_diskspec(text) for text in options.diskspec]
    with context.world(options.domain) as (world, domain):
        result = api.create_mirror_files(world, domain, disks, dry_run=context.dry_run)
    facts = _facts(result)
    if context.dry_run:
        plan = result.planned.plan
        return context.answer(facts | {"plan": plan_facts(plan)}, lambda: plan_lines(plan, ()))
    return context.answer(facts, lambda: _made(result))


def _made(result: MirrorFilesResult) -> str:
    lines = [
        visible_line(f"{step.target}: {step.overlay} over {step.backing}")
        for step in result.planned.plan.overlays
    ]
    return "\n".join([*lines, f"Mirror files of {result.domain} created"])


def _facts(result: MirrorFilesResult) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "transaction": result.transaction,
        "files": [
            {
                "target": step.target,
                "file": step.overlay,
                "backing": step.backing,
                "backing_format": step.base_format,
                "virtual_size": step.virtual_size,
            }
            for step in result.planned.plan.overlays
        ],
    }


def _overlay(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("base", "the image to build on", required=True)
    parser.data("overlay", "the overlay to make", required=True)
    parser.add_argument("--format", metavar="FORMAT", help="of the base: raw, qcow2, qed or vmdk")
    parser.flag("relative", "record the base by a relative name")
    options = parse(parser, argv, context)
    fmt = Format.parse(options.format or "")
    if fmt is None:
        problem = f"--format {options.format}: unknown" if options.format else "--format is missing"
        raise BadRequestError(
            f"{problem}: imgtool never guesses what {options.base} is",
            remedy="say which format it has: raw, qcow2, qed or vmdk",
        )
    overlay = Path(options.overlay).absolute()
    if not overlay.parent.is_dir():
        raise BadRequestError(
            f"{overlay.parent}: no such folder", remedy="create it, or choose another"
        )
    from imgtool import api

    wanted = api.OverlayOptions(format=fmt, relative=options.relative, dry_run=context.dry_run)
    context.connect = f"dir:{overlay.parent}"  # no domain is asked for: any store will do
    with context.world() as (world, _name):
        result = api.create_overlay(world, Path(options.base), overlay, wanted)
    facts = {
        "overlay": result.overlay,
        "backing": result.backing,
        "backing_format": result.backing_format,
        "virtual_size": result.virtual_size,
    }
    return context.answer(facts, lambda: _drawn(result, begun=not context.dry_run))


def _drawn(result: OverlayResult, *, begun: bool) -> str:
    word = "created" if begun else "would be created (nothing is begun)"
    return visible_line(
        f"{result.overlay} over {result.backing} "
        f"({result.backing_format}, {result.virtual_size} bytes) {word}"
    )
