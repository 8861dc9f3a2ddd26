"""A plan in words, for --dry-run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from imgtool.cli.visible import visible_line
from imgtool.model.plan import (
    Aftermath,
    CarryOver,
    ChangeInPlace,
    CopyImage,
    CopyLayer,
    CreateOverlay,
    DropRecord,
    FlattenImage,
    MergeBitmaps,
    MergeDown,
    Move,
    Plan,
    PullImage,
    PutRecord,
    ReplaceRecord,
    ResizeRaw,
    Step,
)


def plan_facts(plan: Plan) -> list[dict[str, Any]]:
    """Every step as JSON, in the order in which they happen."""
    from imgtool.engine.journal import to_json

    late = plan.aftermath
    steps = (*plan.steps, *plan.records, *late.merges, *late.relinks, *late.repoints, *late.cuts)
    everything = (*steps, *late.records, *late.drops)
    return [{"kind": type(step).__name__} | to_json(step) for step in everything]


def plan_lines(plan: Plan, moves: Iterable[Move]) -> str:
    """The same for a person, a line a step."""
    lines = [f"{plan.summary} (nothing is begun):"]
    lines += [f"  {step.target}: {_step(step)}" for step in plan.steps]
    lines += [f"  {move.target}: switch to {move.path}" for move in moves]
    lines += [
        f"  record snapshot {record.name}"
        for record in plan.records
        if isinstance(record, PutRecord)
    ]
    if not plan.files_only:
        lines.append(f"  pivot: redefine {plan.domain}")
    lines += [f"  then {line}" for line in _aftermath(plan.aftermath)]
    return "\n".join(map(visible_line, lines))


def _step(step: Step) -> str:
    if isinstance(step, CreateOverlay):
        return (
            f"create {step.overlay} over {step.backing} "
            f"({step.base_format}, {step.virtual_size} bytes)"
        )
    if isinstance(step, ChangeInPlace):
        commands = " and ".join(" ".join(command) for command in step.commands)
        return f"qemu-img {commands} on {step.image}, staged in {step.redo.parent}"
    if isinstance(step, CopyImage):
        return f"copy snapshot {step.snapshot_id} of {step.base} to {step.overlay}"
    if isinstance(step, FlattenImage):
        return f"copy what {step.source} shows to {step.overlay}, which has no base"
    if isinstance(step, CopyLayer):
        named = f", naming {step.backing} as its base" if step.backing else ""
        return f"copy {step.source} to {step.overlay} ({step.size} bytes){named}"
    if isinstance(step, PullImage):
        base = step.backing or "none"
        return f"copy into {step.image} what it shows of its base; its base is then {base}"
    if isinstance(step, ResizeRaw):
        return _resize(step)
    if isinstance(step, CarryOver):
        return f"carry what {step.source.path} holds itself into {step.mirror.path}"
    if isinstance(step, MergeBitmaps):
        names = ", ".join(step.names)
        return f"add bitmaps of {step.source.path} to those of {step.base.path}: {names}"
    return _merge(step)


def _resize(step: ResizeRaw) -> str:
    word = "grow" if step.new_size > step.old_size else "cut"
    return f"{word} {step.image} from {step.old_size} to {step.new_size} bytes"


def _merge(step: MergeDown) -> str:
    tops = ", ".join(str(node.path) for node in step.layers[1:])
    return f"merge {tops} into {step.layers[0].path}"


def _aftermath(late: Aftermath) -> Iterable[str]:
    for merge in late.merges:
        yield f"{merge.target}: {_merge(merge)}"
    for relink in late.relinks:
        yield f"{relink.target}: let {relink.image} name {relink.backing} as its base"
    for repoint in late.repoints:
        yield f"{repoint.target}: switch to {repoint.path}"
    for cut in late.cuts:
        yield f"{cut.target}: {_resize(cut)}"
    for record in late.records:
        if isinstance(record, ReplaceRecord):
            yield f"rewrite the record of snapshot {record.name}"
        elif isinstance(record, DropRecord):
            yield f"drop the record of snapshot {record.name}"
    for drop in late.drops:
        yield f"{drop.target}: remove {drop.path}"
