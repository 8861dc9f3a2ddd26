"""The command line: global options, dispatch, errors as sentences, exit codes."""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from imgtool import __version__
from imgtool.cli import output
from imgtool.cli.arguments import Parser
from imgtool.cli.context import Context
from imgtool.engine.interrupt import Interrupt
from imgtool.model.errors import BadRequestError, FailedError, ImgtoolError, Interrupted

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
    "snapshot-revert": ("branches", "let every disk show what it showed at a snapshot"),
    "snapshot-delete": ("branches", "delete a snapshot, moving its data as little as possible"),
    "check": ("check", "compare XML, snapshots and images; say what mends them, or mend them"),
    "gc": ("check", "remove what crashes have left beside the images"),
    "blockcommit": ("blockjobs", "commit layers of a chain into the layer below them"),
    "blockpull": ("blockjobs", "copy data of the layers below into the active one"),
    "blockcopy": ("copyjobs", "copy disks; move the domain to the copies, or do not"),
    "blockjob": ("copyjobs", "where a copy job stands; pivot it, or abort it"),
    "flatten": ("blockjobs", "blockpull until no base is left"),
    "resize": ("blockjobs", "give a disk another size"),
    "blockresize": ("blockjobs", "the same, by virsh's name"),
    "rebase": ("blockjobs", "let overlays name their bases relatively, absolutely, or others"),
    "mirror-create": ("mirrors", "prepare overlays for mirroring; the domain may run"),
    "overlay-create": ("mirrors", "make an overlay of one image, without a domain"),
    "chain-copy": ("chaincopy", "copy the layers below the active ones to another folder"),
    "migrate": ("storage", "move a domain's disks, with their snapshots, to another folder"),
    "recover": ("recover", "end what a crash has left open"),
}
REMEDIES = {
    errno.EACCES: "run imgtool as somebody who may read and write there",
    errno.EROFS: "mount it read-write, or give another --state-dir",
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or raise the quota",
    errno.EIO: "look at the storage: the kernel log says more",
    errno.ENOTDIR: "see that each part of the path is a folder",
}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(argv: Sequence[str]) -> int:
    """Run one command line (without the program's name); returns its exit code."""
    output.prepare()
    context = Context(interrupt=Interrupt())
    try:
        with _signals(context.interrupt):
            code = _attempt(list(argv), context)
    except Interrupted as late:  # a second signal, while the first or an error was being told
        code = late.exit_code
    return output.settle(code)


def _attempt(argv: list[str], context: Context) -> int:
    """Every way in which a command ends, as an exit code and at most one sentence."""
    try:
        return _run(argv, context)
    except ImgtoolError as error:
        return _fail(error, context, argv)
    except BrokenPipeError:
        return output.BROKEN_PIPE  # the reader has what it wanted
    except OSError as error:
        place = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0, "")
        return _fail(FailedError(f"{place}{error.strerror or error}", remedy=remedy), context, argv)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except SystemExit as stopped:  # --help and --version
        return stopped.code if isinstance(stopped.code, int) else 0
    except Exception as error:
        return _fail(_signal_behind(error) or _defect(error), context, argv)


def _run(argv: list[str], context: Context) -> int:
    command, rest = _global_options(argv, context)
    module, summary = COMMANDS[command]
    parser = Parser(command, summary)
    _common_options(parser)
    run = importlib.import_module(f"imgtool.cli.{module}").run
    return int(run(command, parser, rest, context))


def parse(parser: Parser, argv: Sequence[str], context: Context) -> argparse.Namespace:
    """Parse a command's own words; global options may stand among them, too."""
    namespace = parser.read(argv)
    _take_over(namespace, context)
    return namespace


@contextmanager
def _signals(interrupt: Interrupt) -> Iterator[None]:
    """Inside, signals go to `interrupt`; those that are ignored, as by nohup, stay ignored."""

    def handler(signum: int, _frame: FrameType | None) -> None:
        interrupt.deliver(signum)

    def again(lost: sys.UnraisableHookArgs) -> None:
        """Python swallows what is raised in its own callbacks, as in one of its import locks."""
        if isinstance(lost.exc_value, Interrupted):
            threading.Timer(0.01, os.kill, [os.getpid(), lost.exc_value.signum]).start()
        else:
            sys.__unraisablehook__(lost)

    sys.unraisablehook, hook = again, sys.unraisablehook
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    heard = [signum for signum in SIGNALS if before[signum] is not signal.SIG_IGN]
    try:
        for signum in heard:
            signal.signal(signum, handler)
        yield
    finally:
        sys.unraisablehook = hook
        for signum in heard:
            signal.signal(signum, before[signum])


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
    at = next((i for i, word in enumerate(argv) if word in COMMANDS and not _value(argv, i)), None)
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


def _value(argv: list[str], at: int) -> bool:
    """Whether this word belongs to the option before it: `-c list` names a store."""
    return at > 0 and argv[at - 1] in ("-c", "--connect", "--state-dir", "--jobs")


def _take_over(namespace: argparse.Namespace, context: Context) -> None:
    context.connect = namespace.connect or context.connect
    context.json |= namespace.json
    context.dry_run |= namespace.dry_run
    context.jobs = namespace.jobs or context.jobs
    context.state_dir = Path(namespace.state_dir) if namespace.state_dir else context.state_dir
    if namespace.quiet or namespace.verbose:
        context.verbosity = -1 if namespace.quiet else 1


def _fail(error: ImgtoolError, context: Context, argv: Sequence[str]) -> int:
    if context.json or "--json" in argv:
        facts = {"type": error.type, "message": error.message, "remedy": error.remedy}
        with suppress(OSError, FailedError):
            output.write(json.dumps({"error": facts}) + "\n")
    remedy = f"\nremedy: {error.remedy}" if error.remedy else ""
    output.complain(f"error: {error.message}{remedy}")
    return error.exit_code


def _signal_behind(error: BaseException | None) -> Interrupted | None:
    """The signal that made this error: while a class is made, Python 3.11 wraps what is raised."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


def _defect(error: Exception) -> FailedError:
    """What nobody foresaw. Where it happened stands in one line: the sentence is all there is."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code if trace is not None else _defect.__code__
    line = trace.tb_lineno if trace is not None else 0
    place = f"{Path(code.co_filename).name}, line {line}, {code.co_name}"
    return FailedError(
        f"an error in imgtool itself: {type(error).__name__}: {error} ({place})",
        remedy="run imgtool recover --list to see if anything is open, and report this line",
    )
