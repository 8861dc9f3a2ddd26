"""The command line: global options, dispatch, errors as sentences, exit codes."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from imgtool import __version__
from imgtool.cli.arguments import Parser
from imgtool.cli.context import Context
from imgtool.engine.interrupt import Interrupt
from imgtool.model.errors import BadRequestError, ImgtoolError

# command: the module of imgtool.cli that has it, and what it does
COMMANDS = {
    "list": ("domains", "the domains of the store"),
    "domblklist": ("domains", "the disks of a domain"),
    "dumpxml": ("domains", "a domain's XML"),
    "define": ("domains", "add or replace a domain"),
    "undefine": ("domains", "forget a domain; its images stay"),
    "chain": ("chains", "draw the backing chains of a domain"),
    "snapshot-create": ("create", "take a snapshot that an XML file describes"),
    "snapshot-create-as": ("create", "take a snapshot that the arguments describe"),
    "snapshot-list": ("snapshots", "the snapshots of a domain"),
    "snapshot-info": ("snapshots", "one snapshot in short"),
    "snapshot-dumpxml": ("snapshots", "one snapshot's XML"),
    "snapshot-current": ("snapshots", "show or set the current snapshot"),
    "snapshot-parent": ("snapshots", "the parent of a snapshot"),
    "recover": ("recover", "end what a crash has left open"),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name); returns its exit code."""
    context = Context(interrupt=Interrupt())
    _on_signals(context.interrupt)
    try:
        command, rest = _global_options(list(argv), context)
        module, summary = COMMANDS[command]
        parser = Parser(command, summary)
        _common_options(parser)
        code = importlib.import_module(f"imgtool.cli.{module}").run(
            command, parser, list(rest), context
        )
        sys.stdout.flush()
        return int(code)
    except ImgtoolError as error:
        return _fail(error, context)
    except BrokenPipeError:
        # The reader has gone; Python's own flush at exit would print a traceback.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # 128 + SIGPIPE


def parse(parser: Parser, argv: Sequence[str], context: Context) -> argparse.Namespace:
    """Parse a command's own words; global options may stand among them, too."""
    namespace = parser.read(argv)
    _take_over(namespace, context)
    return namespace


def _on_signals(interrupt: Interrupt) -> None:
    def handler(signum: int, _frame: FrameType | None) -> None:
        interrupt.deliver(signum)

    for signum in SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as nohup and `&` ask for
            signal.signal(signum, handler)


def _common_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-c", "--connect", metavar="URI", help="dir:PATH or a libvirt URI")
    add("--json", action="store_true", help="one JSON object on stdout")
    add("--dry-run", action="store_true", help="print the plan, begin nothing")
    add("--state-dir", metavar="DIR", help="where journals are kept")
    add("--jobs", type=int, metavar="N", help="disks worked on at once")
    add("-q", "--quiet", action="store_true", help="say nothing but errors")
    add("-v", "--verbose", action="store_true", help="say more")


def _global_options(argv: list[str], context: Context) -> tuple[str, list[str]]:
    """Read what stands before the command's name. Raises BadRequestError."""
    at = next((i for i, word in enumerate(argv) if word in COMMANDS), None)
    # An option's value may be spelled like a command: -c list
    parser = Parser("", "Atomic, crash-safe snapshots of stopped virtual machines.")
    parser.prog = "imgtool"
    parser.usage = "imgtool [-c URI] [--json] [--dry-run] [--state-dir DIR] [-q|-v] COMMAND ..."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "commands:\n" + "\n".join(
        f"  {name:20} {summary}" for name, (_module, summary) in COMMANDS.items()
    )
    parser.add_argument("--version", action="version", version=f"imgtool {__version__}")
    _common_options(parser)
    namespace, unknown = parser.parse_known_args(argv if at is None else argv[:at])
    _take_over(namespace, context)
    if unknown or at is None:
        wrong = f"unknown command {unknown[0]!r}" if unknown else "no command is given"
        raise BadRequestError(f"imgtool: {wrong}", remedy="imgtool --help lists them")
    return argv[at], argv[at + 1 :]


def _take_over(namespace: argparse.Namespace, context: Context) -> None:
    context.connect = namespace.connect or context.connect
    context.json |= namespace.json
    context.dry_run |= namespace.dry_run
    context.jobs = namespace.jobs or context.jobs
    context.state_dir = Path(namespace.state_dir) if namespace.state_dir else context.state_dir
    if namespace.quiet or namespace.verbose:
        context.verbosity = -1 if namespace.quiet else 1


def _fail(error: ImgtoolError, context: Context) -> int:
    if context.json or "--json" in sys.argv:
        facts = {"type": error.type, "message": error.message, "remedy": error.remedy}
        print(json.dumps({"error": facts}))
    remedy = f"\nremedy: {error.remedy}" if error.remedy else ""
    print(f"error: {error.message}{remedy}", file=sys.stderr)
    return error.exit_code
