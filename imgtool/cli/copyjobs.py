"""imgtool blockcopy, blockjob."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser, exclusive
from imgtool.cli.blockjobs import limited
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.plans import plan_facts, plan_lines
from imgtool.model.errors import BadRequestError
from imgtool.model.image import Format
from imgtool.xml.diskspec import parse_copyspec

if TYPE_CHECKING:
    from imgtool.api import CopyResult, CopyTarget
    from imgtool.model.job import DiskCopy


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """Both commands, for a stopped domain. The command itself copies, in the foreground."""
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    return (_copy if command == "blockcopy" else _job)(parser, argv, context)


_PHASES = """The command copies, and compares, until the job is ready; Ctrl-C before that leaves
nothing. If it is killed, the job stays: the same command goes on with it, copying from its
beginning each disk that was not finished, and blockjob --abort ends it. From ready, blockjob
--pivot lets the domain use the copies, as long as its disks are as they were copied; --abort
keeps them, and the domain as it is. The domain may be started meanwhile."""


def _copy(parser: Parser, argv: list[str], context: Context) -> int:
    parser.epilog = _PHASES
    parser.data("path", "target of a disk, or the path of its active layer")
    parser.data("dest", "the copy to create")
    parser.data("format", "raw or qcow2; default: that of the disk")
    parser.add_argument(
        "--disk",
        action="append",
        default=[],
        metavar="SPEC",
        help="disk,dest=PATH[,format=TYPE], repeatable: several disks at one point in time",
    )
    parser.flag("shallow", "copy the active layer only; the copy builds on the same base")
    parser.flag("reuse-external", "write into an image that is there, of the same size")
    parser.flag("blockdev", "accepted: a block device is there, and needs --reuse-external")
    parser.flag("pivot", "once it is ready, let the domain use the copy")
    parser.flag("finish", "once it is ready, end the job: the copy stays, the domain, too")
    parser.flag("wait", "accepted: imgtool always copies until the job is ready")
    parser.flag("async", "accepted: for --wait")
    parser.flag("transient-job", "accepted: a job of imgtool outlives even a crash")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="give up, and leave nothing")
    for name in ("bandwidth", "granularity", "buf-size"):
        parser.add_argument(f"--{name}", help="accepted, not needed: nobody else uses the disk")
    for name in ("bytes", "synchronous-writes"):
        parser.flag(name, "accepted, not needed: nobody else uses the disk")
    options = parse(parser, argv, context)
    exclusive(options, "pivot", "finish")
    targets = _targets(options)
    from imgtool import api

    wanted = api.CopyOptions(
        shallow=options.shallow,
        reuse_external=options.reuse_external,
        pivot=options.pivot,
        finish=options.finish,
        dry_run=context.dry_run,
    )
    with context.world(options.domain) as (world, domain), limited(options.timeout, context):
        result = api.block_copy(world, domain, targets, wanted)
    facts = _facts(result)
    if context.dry_run:
        return context.answer(facts, lambda: _planned(result, pivot=options.pivot))
    done = {"pivoted": "Successfully pivoted", "finished": "Successfully copied"}
    return context.answer(facts, lambda: done.get(result.ending, "Now in mirroring phase"))


def _targets(options: argparse.Namespace) -> list[CopyTarget]:
    """PATH and DEST, and each --disk. Raises BadRequestError."""
    from imgtool import api

    if options.path is not None and options.dest is None:
        raise BadRequestError("--dest is missing", remedy="say where the copy goes")
    if options.path is None and not options.disk:
        raise BadRequestError("no disk is named", remedy="give PATH and DEST, or --disk")
    words = [(options.path, options.dest, options.format)] if options.path is not None else []
    words += [parse_copyspec(text) for text in options.disk]
    return [
        api.CopyTarget(disk=disk, dest=dest, format=_format(fmt or options.format))
        for disk, dest, fmt in words
    ]


def _format(name: str | None) -> Format | None:
    """Raises BadRequestError for a format that a copy cannot have."""
    if name not in (None, "raw", "qcow2"):
        raise BadRequestError(
            f"--format {name}: copies are raw or qcow2", remedy="choose one of them"
        )
    return None if name is None else Format(name)


def _job(parser: Parser, argv: list[str], context: Context) -> int:
    parser.data("path", "target of a disk, the path of its active layer, or that of its copy")
    parser.data("bandwidth", "accepted, not needed: nobody else uses the disk")
    parser.flag("info", "where the job stands (this is what happens without an option, too)")
    parser.flag("raw", "--info, as name=value")
    parser.flag("bytes", "accepted: what --bandwidth would count")
    parser.flag("abort", "end the job: from ready, the copy stays")
    parser.flag("pivot", "end the job: the domain uses the copy (implies --abort, as for virsh)")
    parser.flag("async", "accepted: for --abort")
    options = parse(parser, argv, context)
    if options.path is None:
        parser.error("--path is missing")
    exclusive(options, "info", "abort")
    exclusive(options, "info", "pivot")
    from imgtool import api

    path, dry_run = options.path, context.dry_run
    with context.world(options.domain) as (world, domain):
        if options.pivot:
            result = api.block_job_pivot(world, domain, path, dry_run=dry_run)
        elif options.abort:
            result = api.block_job_abort(world, domain, path, dry_run=dry_run)
        else:
            result = api.block_job(world, domain, path)
            return context.answer(_facts(result), lambda: _info(result, path, raw=options.raw))
    facts = _facts(result)
    if dry_run:
        return context.answer(facts, lambda: _ending(result))
    done = {
        "pivoted": "Successfully pivoted",
        "finished": "Job ended: the copy is kept",
        "aborted": _aborted(result),
    }
    return context.answer(facts, lambda: done[result.ending])


def _aborted(result: CopyResult) -> str:
    kept = [disk for disk in (result.job.disks if result.job else ()) if disk.reuse]
    lines = [f"{disk.target}: {disk.dest} holds a part of the copy, or none" for disk in kept]
    return "\n".join(["Job aborted", *lines] if kept else ["Job aborted: no copy is left"])


def _facts(result: CopyResult) -> dict[str, Any]:
    """The job as JSON; `phase` is also what became of it."""
    job = result.job
    disks = () if job is None else zip(job.disks, result.done, strict=True)
    facts: dict[str, Any] = {
        "domain": result.domain,
        "jobs": [
            {
                "target": disk.target,
                "phase": str(result.ending),
                "source": disk.source,
                "dest": disk.dest,
                "format": disk.format,
                "backing": disk.backing or None,
                "bytes": done,
                "total": disk.total,
            }
            for disk, done in disks
        ],
    }
    if result.planned is not None:
        facts["plan"] = plan_facts(result.planned.plan)
    return facts


def _info(result: CopyResult, path: str, *, raw: bool) -> str:
    """In virsh's words, and what it cannot say."""
    job = result.job
    if job is None:
        return f"No current block job for {path}"
    done, total = sum(result.done), sum(disk.total for disk in job.disks)
    if result.ending == "ready":
        done = total
    if raw:
        return f" type=Block Copy\n bandwidth=0\n cur={done}\n end={total}\n phase={job.phase}"
    share = 100.0 * done / total if total else 100.0
    lines = [f"Block Copy: [{share:.2f} %]"]
    for disk, each in zip(job.disks, result.done, strict=True):
        lines.append(f"{disk.target}: {job.phase}, {each} of {disk.total} bytes, to {disk.dest}")
    return "\n".join(lines)


def _planned(result: CopyResult, *, pivot: bool) -> str:
    lines = [f"block copy of {result.domain} (nothing is begun):"]
    disks = result.job.disks if result.job else ()
    lines += [f"  {disk.target}: {_step(disk)}" for disk in disks]
    lines += [f"  {disk.target}: switch to {disk.dest}" for disk in disks if pivot]
    lines += [f"  pivot: redefine {result.domain}"] if pivot else []
    return "\n".join(lines)


def _step(disk: DiskCopy) -> str:
    how = f" over {disk.backing}" if disk.backing else ""
    what = "write" if disk.reuse else "create"
    return f"{what} {disk.dest} ({disk.format}{how}), up to {disk.total} bytes from {disk.source}"


def _ending(result: CopyResult) -> str:
    if result.planned is not None:
        return plan_lines(result.planned.plan, result.planned.moves)
    job = result.job
    lines = []
    for disk in job.disks if job else ():
        keeps = disk.reuse or (job is not None and job.phase == "ready")
        lines.append(f"{disk.target}: {'keep' if keeps else 'remove'} {disk.dest}")
    return "\n".join(["end the job (nothing is begun):", *lines])
