"""imgtool snapshot-create and snapshot-create-as."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser, exclusive
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.model.errors import BadRequestError
from imgtool.model.plan import ChangeInPlace, CreateOverlay
from imgtool.model.snapshot import SnapshotRequest

if TYPE_CHECKING:
    from imgtool.api import SnapshotResult

MAX_XML = 16 * 1024 * 1024  # bytes
_REFUSED = {
    "quiesce": "a stopped domain has no guest agent to freeze its file systems",
    "live": "a stopped domain has no memory to save while it runs",
}


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """Both commands: what virsh calls by these names, for a stopped domain."""
    if command == "snapshot-create":
        return _create(parser, argv, context)
    return _create_as(parser, argv, context)


def _create(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    parser.data("xmlfile", "<domainsnapshot> to take; - for stdin")
    parser.flag("redefine", "only record a snapshot that is there already")
    parser.flag("current", "with --redefine: make it the current snapshot")
    _common(parser)
    options = parse(parser, argv, context)
    _refuse(options)
    exclusive(options, "redefine", "no-metadata")
    exclusive(options, "redefine", "halt")
    if options.current and not options.redefine:
        raise BadRequestError(
            "Option --redefine is required by option --current", remedy="give both"
        )
    xml = _read(options.xmlfile) if options.xmlfile else b"<domainsnapshot/>"
    where = options.xmlfile or "the request"
    if options.validate:
        from imgtool.xml.schema import validate

        validate(xml, where=where)
    if options.redefine:
        return _redefine(xml, options, context)
    from imgtool.xml.snapshot import parse_request

    request = parse_request(xml, where=where)
    origin = f" from '{options.xmlfile}'" if options.xmlfile else ""
    return _take(request, options, context, origin)


def _create_as(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    parser.data("name", "of the snapshot; default: the time in seconds")
    parser.data("description", "of the snapshot")
    parser.flag("print-xml", "print the XML that would be asked for, take nothing")
    parser.add_argument("--memspec", metavar="MEMSPEC", help="[file=]name[,snapshot=type]")
    parser.rest(
        "diskspec", "disk[,snapshot=type][,driver=type][,stype=type][,file=name][,mirror=name]"
    )
    _common(parser)
    options = parse(parser, argv, context)
    from imgtool.xml.printxml import checked, from_arguments, print_xml

    request = from_arguments(
        name=options.name or "",
        description=options.description,
        memspec=options.memspec,
        diskspecs=options.diskspec,
    )
    if options.print_xml:
        return _print_xml(request, options, context)
    _refuse(options)
    if options.validate:
        from imgtool.xml.schema import validate

        validate(print_xml(request), where="the arguments")
    return _take(checked(request), options, context, "")


def _common(parser: Parser) -> None:
    parser.flag("no-metadata", "take it, but record nothing")
    parser.flag("halt", "accepted: the domain is stopped already")
    parser.flag("disk-only", "external snapshots where no mode is given")
    parser.flag("reuse-external", "use overlays that are there already")
    parser.flag("quiesce", "refused: for running domains")
    parser.flag("atomic", "accepted: imgtool always is")
    parser.flag("live", "refused: for running domains")
    parser.flag("validate", "check the XML against libvirt's schema")
    parser.flag("relative", "overlays record their base by a relative name")
    parser.flag("force", "with --reuse-external: accept overlays that have data")


def _refuse(options: argparse.Namespace) -> None:
    for name, reason in _REFUSED.items():
        if getattr(options, name):
            raise BadRequestError(f"--{name}: {reason}", remedy=f"leave --{name} out")


def _read(name: str) -> bytes:
    try:
        if name == "-":
            data = sys.stdin.buffer.read(MAX_XML + 1)
        else:
            from imgtool.host.files import Files

            data = Files().read(Path(name), limit=MAX_XML)
    except OSError as error:
        raise BadRequestError(f"{name}: {error.strerror}", remedy="name an XML file") from error
    return data


def _redefine(xml: bytes, options: argparse.Namespace, context: Context) -> int:
    from imgtool import api

    with context.world(options.domain) as (world, domain):
        name = api.redefine_snapshot(world, domain, xml, current=options.current)
    origin = f" from '{options.xmlfile}'" if options.xmlfile else ""
    return context.answer(
        {"domain": domain, "snapshot": name}, lambda: f"Domain snapshot {name} created{origin}"
    )


def _print_xml(request: SnapshotRequest, options: argparse.Namespace, context: Context) -> int:
    from imgtool.xml.printxml import print_xml

    with context.world(options.domain) as (world, domain):
        world.store.head(domain)
    document = print_xml(request, quiet=context.verbosity < 0)
    if context.json:
        return context.answer({"domain": domain, "xml": os.fsdecode(document)}, str)
    sys.stdout.flush()
    sys.stdout.buffer.write(document)
    return 0


def _take(
    request: SnapshotRequest, options: argparse.Namespace, context: Context, origin: str
) -> int:
    from imgtool import api

    wanted = api.SnapshotOptions(
        disk_only=options.disk_only,
        reuse_external=options.reuse_external,
        no_metadata=options.no_metadata,
        relative=options.relative,
        force=options.force,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain):
        result = api.take_snapshot(world, domain, request, wanted)
    if context.dry_run:
        return context.answer(_facts(result) | {"plan": _plan_facts(result)}, lambda: _plan(result))
    return context.answer(
        _facts(result), lambda: f"Domain snapshot {result.snapshot} created{origin}"
    )


def _facts(result: SnapshotResult) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "snapshot": result.snapshot,
        "transaction": result.transaction,
        "disks": [
            {"target": d.target, "mode": d.mode, "base": d.base, "overlay": d.overlay}
            | ({"mirror": d.mirror} if d.mirror else {})
            for d in result.disks
        ],
    }


def _plan_facts(result: SnapshotResult) -> list[dict[str, Any]]:
    from imgtool.engine.journal import to_json

    plan = result.planned.plan
    return [to_json(step) for step in (*plan.steps, *plan.records)]


def _plan(result: SnapshotResult) -> str:
    plan = result.planned.plan
    lines = [f"{plan.summary} (nothing is begun):"]
    for step in plan.steps:
        if isinstance(step, CreateOverlay):
            lines.append(
                f"  {step.target}: create {step.overlay} over {step.backing} "
                f"({step.base_format}, {step.virtual_size} bytes)"
            )
        elif isinstance(step, ChangeInPlace):
            lines.append(
                f"  {step.target}: qemu-img {' '.join(step.commands[0])} {step.image}, "
                f"staged in {step.redo.parent}"
            )
    made = {step.target for step in plan.overlays}
    for move in result.planned.moves:
        verb = "switch to" if move.target in made else "switch to the prepared"
        lines.append(f"  {move.target}: {verb} {move.path}")
    lines += [f"  {s.target}: up to {s.size} bytes in {s.folder}" for s in result.planned.space]
    if plan.records:
        lines.append(f"  record snapshot {result.snapshot} and make it current")
    lines.append(f"  pivot: redefine {plan.domain}")
    return "\n".join(lines)
