"""imgtool check and gc: what is wrong, what mends it, what may go."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.plans import plan_facts, plan_lines
from imgtool.model.errors import BadRequestError

if TYPE_CHECKING:
    from imgtool.api import Checkup, RepairResult, Swept
    from imgtool.engine.world import World
    from imgtool.plan.finding import Finding
    from imgtool.plan.sweep import Rubbish


def run(command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """Both commands: of one domain, or of all."""
    parser.data("domain", "name, UUID, or path of a domain's XML file")
    parser.flag("all", "every domain of the store; so without a domain")
    if command == "gc":
        return _gc(parser, argv, context)
    return _check(parser, argv, context)


def _check(parser: Parser, argv: list[str], context: Context) -> int:
    """Exit code 0 if there is nothing but notes, else 1."""
    parser.flag("quick", "headers and metadata only; do not run qemu-img check")
    parser.flag("repair", "mend what can be mended without losing anything")
    parser.flag("drop-orphan-tags", "with --repair: internal snapshots without a record go")
    parser.flag("adopt", "with --repair: record snapshots that only overlays are left of")
    options = parse(parser, argv, context)
    _which(options)
    for consent in ("drop_orphan_tags", "adopt"):
        if getattr(options, consent) and not options.repair:
            name = consent.replace("_", "-")
            raise BadRequestError(f"--{name} goes with --repair", remedy=f"--repair --{name}")
    from imgtool import api

    with context.world(options.domain) as (world, name):
        repaired = _repair(world, name, options, context) if options.repair else []
        if context.dry_run and options.repair:
            return _show_plans(repaired, context)
        checkups = api.check(world, name, quick=options.quick)
    _say(checkups, repaired, options, context)
    return 0 if all(checkup.well for checkup in checkups) else 1


def _which(options: argparse.Namespace) -> None:
    if options.all and options.domain:
        raise BadRequestError(
            "Options --all and --domain are mutually exclusive", remedy="leave one of them out"
        )
    options.all = not options.domain


def _repair(
    world: World, domain: str, options: argparse.Namespace, context: Context
) -> list[RepairResult]:
    """Of several domains, each is mended as far as it can be; of one, an error is the outcome."""
    from imgtool import api
    from imgtool.model.errors import ImgtoolError, Interrupted, PendingError

    wanted = api.RepairOptions(
        drop_orphan_tags=options.drop_orphan_tags, adopt=options.adopt, dry_run=context.dry_run
    )
    if domain:
        return [api.repair(world, domain, wanted)]
    done = []
    for name in world.store.domains():
        try:
            done.append(api.repair(world, name, wanted))
        except (Interrupted, PendingError):
            raise
        except ImgtoolError as error:
            context.note(f"{name}: {error.message}")
    return done


def _show_plans(repaired: list[RepairResult], context: Context) -> int:
    plans = [each.planned.plan for each in repaired if each.mended]
    facts = {
        "repaired": [_repaired(each) for each in repaired],
        "plan": [step for plan in plans for step in plan_facts(plan)],
    }
    text = [plan_lines(plan, ()) for plan in plans]
    text += [f"  {line}" for each in repaired for line in each.mended]
    return context.answer(facts, lambda: "\n".join(text) or "there is nothing to repair")


def _say(
    checkups: tuple[Checkup, ...],
    repaired: list[RepairResult],
    options: argparse.Namespace,
    context: Context,
) -> None:
    names = [checkup.domain for checkup in checkups]
    facts: dict[str, Any] = {"domains": names} if options.all else {"domain": names[0]}
    facts["findings"] = [
        _finding(checkup.domain, finding) for checkup in checkups for finding in checkup.findings
    ]
    if options.repair:
        facts["repaired"] = [_repaired(each) for each in repaired]
    context.answer(facts, lambda: _report(checkups, repaired), data=True)


def _finding(domain: str, finding: Finding) -> dict[str, Any]:
    return {
        "domain": domain,
        "severity": finding.severity,
        "kind": finding.kind,
        "disk": finding.disk or None,
        "path": finding.path,
        "message": finding.message,
        "remedy": finding.remedy or None,
    }


def _repaired(result: RepairResult) -> dict[str, Any]:
    return {
        "domain": result.domain,
        "transaction": result.transaction if result.mended else None,
        "mended": list(result.mended),
    }


def _report(checkups: tuple[Checkup, ...], repaired: list[RepairResult]) -> str:
    """One line a finding, worst first; the command that mends it behind an arrow."""
    lines = [f"{each.domain}: mended: {line}" for each in repaired for line in each.mended]
    found = [(checkup.domain, each) for checkup in checkups for each in checkup.findings]
    for domain, finding in sorted(found, key=lambda pair: pair[1].severity.rank):
        arrow = f" -> {finding.remedy}" if finding.remedy else ""
        lines.append(f"{finding.severity}: {domain}: {finding.message}{arrow}")
    lines += [f"{each.domain}: all is well" for each in checkups if each.well]
    return "\n".join(lines)


def _gc(parser: Parser, argv: list[str], context: Context) -> int:
    parser.flag("force", "overlays that hold data of their own, too")
    options = parse(parser, argv, context)
    _which(options)
    from imgtool import api

    with context.world(options.domain) as (world, name):
        swept = api.sweep(world, name, force=options.force, dry_run=context.dry_run)
    removed = [_rubbish(each.domain, one) for each in swept for one in each.removed]
    left = [_rubbish(each.domain, one) for each in swept for one in each.left]
    return context.answer({"removed": removed, "left": left}, lambda: _swept(swept, context))


def _rubbish(domain: str, rubbish: Rubbish) -> dict[str, Any]:
    return {
        "domain": domain,
        "path": rubbish.path,
        "bytes": rubbish.size,
        "reason": rubbish.reason or None,
    }


def _swept(swept: tuple[Swept, ...], context: Context) -> str:
    word = "would be removed" if context.dry_run else "removed"
    lines = [f"{each.domain}: {one.path} {word}" for each in swept for one in each.removed]
    lines += [
        f"{each.domain}: {one.path} stays: {one.reason}" for each in swept for one in each.left
    ]
    return "\n".join(lines) or "there is nothing to remove"
