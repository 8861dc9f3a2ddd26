"""imgtool recover: end what a crash has left open."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser
from imgtool.cli.context import Context
from imgtool.cli.main import parse

if TYPE_CHECKING:
    from imgtool.engine.recovery import Recovery, Waiting
    from imgtool.model.job import CopyJob


def run(_command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """`recover [DOMAIN] [--list]`. Exit code 4 while something is left pending."""
    from imgtool import api

    parser.data("domain", "name or UUID; without it, all domains")
    parser.flag("list", "only show what is pending, and which way it would end")
    options = parse(parser, argv, context)
    with context.world(options.domain) as (world, name):
        if options.list or context.dry_run:
            waiting = api.pending(world, name or None)
            jobs = api.copy_jobs(world, name or None)
            facts = {"recovered": [], "pending": [_facts(each) for each in waiting]}
            facts["jobs"] = [_job_facts(job) for job in jobs]
            return context.answer(facts, lambda: _listing(waiting, jobs))
        recovery = api.recover(world, name or None)
    context.answer(_recovery_facts(recovery), lambda: _report(recovery))
    for job in recovery.jobs:
        context.note(_job(job))
    for problem in recovery.problems:
        context.note(f"{problem.message}\nremedy: {problem.remedy}")
    worst = max((problem.exit_code for problem in recovery.problems), default=0)
    return 4 if recovery.pending else worst


def _facts(waiting: Waiting) -> dict[str, Any]:
    plan = waiting.plan
    return {
        "domain": plan.domain,
        "transaction": plan.txid,
        "summary": plan.summary,
        "store": plan.store,
        "direction": waiting.direction.name.lower() if waiting.direction else None,
    }


def _recovery_facts(recovery: Recovery) -> dict[str, Any]:
    return {
        "recovered": [
            {
                "domain": each.domain,
                "transaction": each.txid,
                "summary": each.summary,
                "direction": each.direction.name.lower(),
            }
            for each in recovery.ended
        ],
        "pending": [_facts(each) for each in recovery.pending],
        "jobs": [_job_facts(job) for job in recovery.jobs],
    }


def _job_facts(job: CopyJob) -> dict[str, Any]:
    return {"domain": job.domain, "targets": list(job.targets), "phase": job.phase}


def _job(job: CopyJob) -> str:
    """Copy jobs wait for their owner: nobody else knows which end was meant."""
    info = f"imgtool -c {job.store} blockjob {job.domain} {job.targets[0]} --info"
    return f"{job.domain}: a copy job of {', '.join(job.targets)} is open, {job.phase}: {info}"


def _listing(waiting: tuple[Waiting, ...], jobs: tuple[CopyJob, ...]) -> str:
    lines = []
    for each in waiting:
        way = f"will go {each.direction.name.lower()}" if each.direction else "of another store"
        lines.append(f"{each.plan.domain}: {each.plan.summary} ({each.plan.store}): {way}")
    lines += map(_job, jobs)
    return "\n".join(lines) or "nothing is pending"


def _report(recovery: Recovery) -> str:
    ways = {"FORWARD": "finished", "BACK": "undone"}
    lines = [f"{each.summary}: {ways[each.direction.name]}" for each in recovery.ended]
    lines += [f"{each.plan.summary}: still pending" for each in recovery.pending]
    return "\n".join(lines) or "nothing was pending"
