"""imgtool blockcommit, blockpull, flatten, resize, rebase."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser, exclusive
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.plans import plan_facts, plan_lines
from imgtool.cli.sizes import scaled
from imgtool.model.errors import BadRequestError, Interrupted
from imgtool.model.image import Format

if TYPE_CHECKING:
    from imgtool.api import JobResult


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """All five commands, for a stopped domain. Nothing goes on in the background."""
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    commands = {
        "blockcommit": _commit,
        "blockpull": _pull,
        "flatten": _flatten,
        "resize": _resize,
        "blockresize": _resize,
        "rebase": _rebase,
    }
    return commands[command](parser, argv, context)


def _job_options(parser: Parser) -> None:
    parser.data("path", "target of a disk, or the path of its active layer")
    parser.flag("all-disks", "every disk that has more than one layer, all or none")


def _waiting_options(parser: Parser) -> None:
    parser.data("bandwidth", "accepted, not needed: nobody else uses the disk")
    parser.flag("bytes", "accepted: what --bandwidth would count")
    parser.flag("wait", "accepted: imgtool always waits")
    parser.flag("async", "accepted: for --wait")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="give up, and roll back")


def _commit(parser: Parser, argv: list[str], context: Context) -> int:
    _job_options(parser)
    _waiting_options(parser)
    parser.data("base", "path of the layer to commit into; default: the bottom of the chain")
    parser.flag("shallow", "commit into what --top builds on")
    parser.data("top", "path of the layer to commit from; default: the active one")
    parser.flag("active", "--top is the active layer: with --pivot or --keep-overlay")
    parser.flag("delete", "remove the layers that were committed")
    parser.flag("pivot", "--active, and the domain then uses --base")
    parser.flag("keep-overlay", "--active, and the domain stays on its active layer")
    parser.flag("keep-relative", "record the base by a relative name")
    options = parse(parser, argv, context)
    exclusive(options, "pivot", "keep-overlay")
    exclusive(options, "base", "shallow")
    disks = _disks(options)
    if options.all_disks and (options.base or options.top):
        raise BadRequestError(
            "--all-disks: --base and --top are layers of one disk", remedy="use --shallow"
        )
    if options.active and not (options.pivot or options.keep_overlay):
        raise BadRequestError(
            "--active: there is no job to pivot later: a stopped domain is committed at once",
            remedy="add --pivot, or --keep-overlay",
        )
    from imgtool import api

    wanted = api.CommitOptions(
        base=options.base or "",
        top=options.top or "",
        shallow=options.shallow,
        active=options.active or options.pivot or options.keep_overlay,
        keep_overlay=options.keep_overlay,
        delete=options.delete,
        keep_relative=options.keep_relative,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain), limited(options.timeout, context):
        result = api.block_commit(world, domain, disks, wanted)
    done = "Commit complete"
    if options.pivot:
        done = "Successfully pivoted"
    elif options.keep_overlay:
        done = "Commit complete, overlay image kept"
    return _answer(result, context, done)


def _pull(parser: Parser, argv: list[str], context: Context) -> int:
    _job_options(parser)
    _waiting_options(parser)
    parser.data("base", "path of the layer that stays below; default: none does")
    parser.flag("keep-relative", "record --base by a relative name")
    options = parse(parser, argv, context)
    if options.all_disks and options.base:
        raise BadRequestError("--all-disks: --base is a layer of one disk", remedy="leave it out")
    return _pulled(options, context, options.base or "", options.keep_relative)


def _flatten(parser: Parser, argv: list[str], context: Context) -> int:
    _job_options(parser)
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="give up, and roll back")
    return _pulled(parse(parser, argv, context), context, "", False)


def _pulled(options: argparse.Namespace, context: Context, base: str, relative: bool) -> int:
    from imgtool import api

    disks = _disks(options)
    wanted = api.PullOptions(base=base, keep_relative=relative, dry_run=context.dry_run)
    with context.world(options.domain) as (world, domain), limited(options.timeout, context):
        result = api.block_pull(world, domain, disks, wanted)
    return _answer(result, context, "Pull complete")


def _resize(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("path", "target of a disk, or the path of its active layer", required=True)
    parser.data("size", "in KiB, or with a suffix: B, K, KB, M, MB, G, GB, T ...")
    parser.flag("capacity", "as large as the block device: for raw images")
    parser.flag("extend", "never shrink")
    parser.flag("force", "shrink, although what is beyond the new end is lost")
    options = parse(parser, argv, context)
    exclusive(options, "size", "capacity")
    exclusive(options, "extend", "force")
    if options.size is None and not options.capacity:
        raise BadRequestError("--size or --capacity is required", remedy="give one of them")
    from imgtool import api

    wanted = api.ResizeOptions(
        size=None if options.size is None else scaled(options.size),
        extend=options.extend,
        force=options.force,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain):
        result = api.resize(world, domain, options.path, wanted)
    return _answer(result, context, f"Block device '{options.path}' is resized")


def _rebase(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("path", "target of a disk, or the path of its active layer", required=True)
    parser.flag("relative", "every overlay records its base by a relative name")
    parser.flag("absolute", "every overlay records its base by an absolute name")
    parser.add_argument("--base", metavar="NEW", default="", help="another base: data are copied")
    parser.flag("unsafe", "with --base: only record its name; both show the same")
    formats = [str(each) for each in Format]
    parser.add_argument("--format", choices=formats, help="of --base, if the chain does not say")
    options = parse(parser, argv, context)
    exclusive(options, "relative", "absolute")
    if not (options.relative or options.absolute or options.base):
        raise BadRequestError(
            "--relative, --absolute or --base is required", remedy="say what is to change"
        )
    for name in ("unsafe", "format"):
        if getattr(options, name) and not options.base:
            raise BadRequestError(f"--{name} is about --base", remedy="give --base, too")
    from imgtool import api

    wanted = api.RebaseOptions(
        relative=options.relative if options.relative or options.absolute else None,
        base=options.base,
        format=Format.parse(options.format or ""),
        unsafe=options.unsafe,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain):
        result = api.rebase(world, domain, options.path, wanted)
    return _answer(result, context, f"Block device '{options.path}' is rebased")


def _disks(options: argparse.Namespace) -> list[str]:
    """The disk that is named; none: all."""
    exclusive(options, "path", "all-disks")
    if options.path is None and not options.all_disks:
        raise BadRequestError("--path or --all-disks is required", remedy="see imgtool domblklist")
    return [] if options.all_disks else [options.path]


@contextmanager
def limited(seconds: int | None, context: Context) -> Iterator[None]:
    """Roll back what takes longer than that."""
    if seconds is None:
        yield
        return
    if seconds < 1:
        raise BadRequestError(f"--timeout {seconds}: is no time", remedy="give it a second or more")

    def expire() -> None:
        with suppress(Interrupted):  # nothing has been begun yet, or all is done
            context.interrupt.deliver(signal.SIGALRM)

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _answer(result: JobResult, context: Context, done: str) -> int:
    facts = _facts(result)
    planned = result.planned
    if not context.dry_run:
        return context.answer(facts, lambda: done if result.transaction else "Nothing to do")
    facts["plan"] = plan_facts(planned.plan)
    return context.answer(facts, lambda: _plan(result))


def _plan(result: JobResult) -> str:
    planned = result.planned
    if planned.empty:
        return "Nothing to do"
    pivots = {disk.target for disk in planned.disks if disk.pivots}
    lines = [plan_lines(planned.plan, [move for move in planned.moves if move.target in pivots])]
    lines += [
        f"  {each.target}: up to {each.size} bytes in {each.folder}" for each in planned.space
    ]
    return "\n".join(lines)


def _facts(result: JobResult) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "transaction": result.transaction or None,
        "disks": [
            {
                "target": disk.target,
                "source": disk.image,
                "base": disk.base,
                "bytes": disk.size,
                "virtual_size": disk.virtual_size,
                "dropped": list(disk.dropped),
            }
            for disk in result.planned.disks
        ],
    }
