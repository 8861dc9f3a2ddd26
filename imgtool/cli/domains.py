"""imgtool list, domblklist, dumpxml, define and undefine."""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgtool.cli.arguments import Parser, exclusive
from imgtool.cli.context import Context
from imgtool.cli.dump import dump, dump_options
from imgtool.cli.main import parse
from imgtool.cli.table import table
from imgtool.cli.visible import visible_line
from imgtool.model.domain import DomainState
from imgtool.model.errors import BadRequestError, ImgtoolError, NotFoundError

if TYPE_CHECKING:
    from imgtool.engine.world import World

DOMAIN = "name, UUID, or path of a domain's XML file"
MAX_XML = 16 * 1024 * 1024  # bytes
UNREADABLE = "unreadable"  # said of a domain, in place of its state
_SHOWN = {DomainState.SHUTOFF: "shut off", DomainState.SAVED: "shut off"}  # as virsh has it
_STOPPED = (DomainState.SHUTOFF, DomainState.SAVED)
_KEPT = {
    "storage": "images stay; remove them yourself when nothing else needs them",
    "remove-all-storage": "images stay; remove them yourself when nothing else needs them",
    "managed-save": "a saved state is dropped with: virsh managedsave-remove",
    "nvram": "NVRAM stays; remove it yourself",
    "tpm": "TPM state stays; remove it yourself",
}


@dataclass(frozen=True, slots=True)
class Listed:
    """A domain of a list. One whose XML cannot be read has a name, and no more."""

    name: str
    state: DomainState | None
    uuid: str | None


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """What virsh calls by these names, for persistent domains."""
    work = {
        "list": _list,
        "domblklist": _domblklist,
        "dumpxml": _dumpxml,
        "define": _define,
        "undefine": _undefine,
    }
    return work[command](parser, argv, context)


def _list(parser: Parser, argv: list[str], context: Context) -> int:
    parser.flag("all", "all domains; so it is without options, too")
    parser.flag("inactive", "only domains that do not run")
    parser.flag("persistent", "accepted: imgtool knows no others")
    parser.flag("state-running", "only domains that run")
    parser.flag("state-paused", "only domains that are paused")
    parser.flag("state-shutoff", "only domains that are shut off")
    parser.flag("with-snapshot", "only domains with snapshots")
    parser.flag("without-snapshot", "only domains without snapshots")
    parser.flag("managed-save", "say of domains with a managed save image that they are saved")
    parser.flag("table", "as a table: so it is without options, too")
    parser.flag("name", "only the names")
    parser.flag("uuid", "only the UUIDs")
    options = parse(parser, argv, context)
    exclusive(options, "table", "name")
    exclusive(options, "table", "uuid")
    with context.world() as (world, _):
        listed = [each for each in _domains(world, context) if _wanted(each, options, world)]
    domains = [
        {"name": each.name, "state": each.state or UNREADABLE, "uuid": each.uuid} for each in listed
    ]
    return context.answer(
        {"domains": domains}, lambda: _list_text(listed, options, context), listing=True
    )


def _domains(world: World, context: Context) -> list[Listed]:
    found = []
    for name in world.store.domains():
        try:
            head = world.store.head(name)
        except NotFoundError:
            continue  # it has just been undefined
        except ImgtoolError as error:
            context.note(error.message)
            found.append(Listed(name, None, None))
        else:
            found.append(Listed(head.domain.name, head.state, head.domain.uuid))
    # virsh's order: those that run come first; upper and lower case are the same
    return sorted(found, key=lambda each: (_stopped(each), each.name.lower(), each.name))


def _stopped(listed: Listed) -> bool:
    return listed.state is None or listed.state in _STOPPED


def _wanted(listed: Listed, options: argparse.Namespace, world: World) -> bool:
    asked = {
        DomainState.RUNNING: options.state_running,
        DomainState.PAUSED: options.state_paused,
        DomainState.SHUTOFF: options.state_shutoff,
        DomainState.SAVED: options.state_shutoff,
    }
    if options.inactive and not options.all and not _stopped(listed):
        return False
    if any(asked.values()) and not (listed.state and asked.get(listed.state)):
        return False
    if options.with_snapshot == options.without_snapshot:
        return True
    if listed.state is None:
        return False
    return bool(world.store.snapshots(listed.name)) == bool(options.with_snapshot)


def _list_text(listed: list[Listed], options: argparse.Namespace, context: Context) -> str:
    if options.uuid or options.name:
        lines = (
            [each.uuid or "-"] * options.uuid + [visible_line(each.name)] * options.name
            for each in listed
        )
        return "\n".join(" ".join(words) for words in lines)
    rows = [("-" if _stopped(each) else "?", each.name, _state(each, options)) for each in listed]
    return table(("Id", "Name", "State"), rows, heading=context.verbosity >= 0)


def _state(listed: Listed, options: argparse.Namespace) -> str:
    if listed.state is None:
        return UNREADABLE
    if listed.state is DomainState.SAVED and options.managed_save:
        return "saved"
    return _SHOWN.get(listed.state, listed.state)


def _domblklist(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("domain", DOMAIN, required=True)
    parser.flag("inactive", "accepted: imgtool always shows the persistent configuration")
    parser.flag("details", "with the types and the devices of the disks")
    options = parse(parser, argv, context)
    with context.world(options.domain) as (world, name):
        head = world.store.head(name)
    from imgtool.xml.query import sources

    source = sources(head.xml, where=head.domain.name)
    facts = {
        "domain": head.domain.name,
        "disks": [
            {
                "target": disk.target,
                "device": disk.device,
                "source": source.get(disk.target),
                "format": disk.format_name,
                "type": disk.type,
            }
            for disk in head.domain.disks
        ],
    }
    headings, rows = ["Target", "Source"], []
    if options.details:
        headings = ["Type", "Device", *headings]
    for disk in head.domain.disks:
        details = [disk.type, disk.device] if options.details else []
        rows.append([*details, disk.target, source.get(disk.target, "-")])
    heading = context.verbosity >= 0
    return context.answer(facts, lambda: table(headings, rows, heading=heading), listing=True)


def _dumpxml(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("domain", DOMAIN, required=True)
    parser.flag("inactive", "accepted: imgtool always shows the persistent configuration")
    dump_options(parser)
    options = parse(parser, argv, context)
    with context.world(options.domain) as (world, name):
        head = world.store.head(name)
    return dump(head.xml, "domain", {"domain": head.domain.name}, options, context)


def _define(parser: Parser, argv: list[str], context: Context) -> int:
    from imgtool import api

    parser.data("file", "of a <domain>; - for stdin", required=True)
    options = parse(parser, argv, context)
    xml = _read(options.file)
    with context.world() as (world, _):
        if context.dry_run:
            from imgtool.xml.domain import parse_domain

            domain = parse_domain(xml, where=options.file).name
            text = f"Domain '{domain}' would be defined from {options.file}\n"
        else:
            domain = api.define(world, xml)
            text = f"Domain '{domain}' defined from {options.file}\n"
    return context.answer({"domain": domain}, lambda: text)


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(MAX_XML + 1)
        from imgtool.host.files import Files

        return Files().read(Path(name), limit=MAX_XML)
    except OSError as error:
        raise BadRequestError(
            f"{name}: {error.strerror or error}", remedy="name a file of domain XML"
        ) from error


def _undefine(parser: Parser, argv: list[str], context: Context) -> int:
    from imgtool import api

    parser.data("domain", DOMAIN, required=True)
    parser.flag("snapshots-metadata", "forget its snapshots, too; what is in images stays")
    parser.flag("keep-nvram", "accepted: imgtool always keeps it")
    parser.flag("keep-tpm", "accepted: imgtool always keeps it")
    for option, reason in _KEPT.items():
        if option == "storage":
            parser.add_argument("--storage", metavar="DISKS", help=f"refused: {reason}")
        else:
            parser.flag(option, f"refused: {reason}")
    options = parse(parser, argv, context)
    for option, reason in _KEPT.items():
        if getattr(options, option.replace("-", "_")):
            raise BadRequestError(f"--{option}: {reason}", remedy=f"leave --{option} out")
    with context.world(options.domain) as (world, name):
        domain = world.store.head(name).domain.name
        if context.dry_run:
            text = f"Domain '{domain}' would be undefined\n"
        else:
            api.undefine(world, domain, snapshots_metadata=options.snapshots_metadata)
            text = f"Domain '{domain}' has been undefined\n"
    return context.answer({"domain": domain}, lambda: text)
