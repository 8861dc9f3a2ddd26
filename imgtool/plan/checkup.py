"""Compare a domain's XML, its snapshots' metadata and its images: one finding a contradiction."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from imgtool.model.domain import DomainState, SnapshotMode
from imgtool.model.image import Chain, Format, Image
from imgtool.plan.checkup_records import record_findings
from imgtool.plan.finding import Examined, Finding, Flaw, Severity, worst_first
from imgtool.plan.lineage import FileId, Held, files_of, is_relative
from imgtool.plan.sweep import stray_findings


def findings_of(seen: Examined) -> tuple[Finding, ...]:
    """All that is wrong or odd, worst first."""
    found: list[Finding] = [*seen.problems, *_pending(seen)]
    if seen.head is not None:
        found += [*_memory(seen), *_flaws(seen), *_images(seen), *_links(seen), *_shared(seen)]
        found += [*record_findings(seen), *stray_findings(seen)]
    return worst_first(tuple(found))


def _pending(seen: Examined) -> Iterator[Finding]:
    if seen.pending:
        yield Finding(
            severity=Severity.ERROR,
            kind="pending",
            message=f"a transaction is open: {seen.pending}",
            remedy=seen.remedy("recover", seen.name),
        )
    for job in seen.jobs:
        for disk in job.disks:
            yield Finding(
                severity=Severity.NOTE,
                kind="block-job",
                message=f"{disk.target}: a copy job to {disk.dest} is open, {job.phase}",
                remedy=seen.remedy("blockjob", seen.name, disk.target, "--info"),
                disk=disk.target,
                path=disk.dest,
            )
    if seen.head is not None and seen.head.state is not DomainState.SHUTOFF:
        yield Finding(
            severity=Severity.NOTE,
            kind="not-stopped",
            message=f"the domain is {seen.head.state}: what its QEMU has open changes meanwhile",
        )


def _memory(seen: Examined) -> Iterator[Finding]:
    """libvirt could not write its file, and goes on with what it wanted to write."""
    if seen.on_disk and seen.own_file:
        yield Finding(
            severity=Severity.ERROR,
            kind="memory-differs",
            message=f"libvirt has other images in memory than in {seen.own_file}, for "
            f"{', '.join(sorted(seen.on_disk))}: it failed to write that file",
            remedy=seen.remedy("define", seen.own_file),
            disk=min(seen.on_disk),
            path=seen.own_file,
        )


def _flaws(seen: Examined) -> Iterator[Finding]:
    by_path: dict[tuple[str, object], list[Flaw]] = {}
    for flaw in seen.flaws:
        by_path.setdefault((flaw.kind, flaw.path), []).append(flaw)
    for (kind, _), flaws in by_path.items():
        first = flaws[0]
        needed = dict.fromkeys(
            f"snapshot {each.snapshot}" if each.snapshot else f"{each.target} of the domain"
            for each in flaws
        )
        yield Finding(
            severity=Severity.NOTE if kind == "unsupported" else Severity.ERROR,
            kind=kind,
            message=f"{first.target}: {first.message}; it belongs to {', '.join(needed)}",
            remedy=_way_out(flaws, seen),
            disk=first.target,
            path=first.path,
        )


def _way_out(flaws: list[Flaw], seen: Examined) -> str:
    first = flaws[0]
    if first.kind == "no-format" or first.kind == "unsupported":
        return first.remedy
    own = [flaw for flaw in flaws if not flaw.snapshot]
    if not own:
        forget = seen.remedy("snapshot-delete", seen.name, first.snapshot, "--metadata")
        return f"restore it, or forget that snapshot: {forget}"
    if seen.on_disk:
        return seen.remedy("define", seen.own_file or "")
    whole = [name for name, held in seen.lineage.held.items() if _is_whole(held, seen)]
    if not whole:
        return f"restore it, or name another image: {seen.remedy('dumpxml', seen.name)}"
    name = (
        seen.current
        if seen.current in whole
        else max(whole, key=lambda each: seen.lineage.held[each].snapshot.created)
    )
    back = seen.remedy("snapshot-revert", seen.name, name or "", "--force")
    return f"restore it, or go back to snapshot {name}: {back}"


def _is_whole(held: Held, seen: Examined) -> bool:
    """Whether all that a revert to this snapshot needs is there."""
    name = held.snapshot.name
    flawed = {flaw.target for flaw in seen.flaws if flaw.snapshot == name}
    for disk in held.disks:
        mode = held.mode(disk.target)
        if mode is SnapshotMode.NO:
            continue
        chain = held.chains.get(disk.target)
        if chain is None or disk.target in flawed or mode is SnapshotMode.MANUAL:
            return False
        tags = [tag.tag for tag in chain.active.snapshots]
        if mode is SnapshotMode.INTERNAL and tags.count(name) != 1:
            return False
    return bool(held.disks)


def _images(seen: Examined) -> Iterator[Finding]:
    for file, image in seen.lineage.images().items():
        target = seen.target_of(image)
        repair = f"qemu-img check -r all -f {image.format} {shlex.quote(str(image.spelled))}"
        if image.corrupt:
            yield Finding(
                severity=Severity.ERROR,
                kind="corrupt-bit",
                message=f"{target}: {image.spelled} is marked corrupt: QEMU does not start with it",
                remedy=seen.remedy("recover", seen.name)
                if seen.pending
                else f"copy it, then: {repair}",
                disk=target,
                path=image.path,
            )
        if image.dirty:
            yield Finding(
                severity=Severity.WARNING,
                kind="dirty-bit",
                message=f"{target}: {image.spelled} was not closed: its refcounts may be wrong",
                remedy=repair,
                disk=target,
                path=image.path,
            )
        yield from _checked(target, file, image, repair, seen)


def _checked(
    target: str, file: FileId, image: Image, repair: str, seen: Examined
) -> Iterator[Finding]:
    report = seen.reports.get(file)
    if report is None:
        return
    if report.problem:
        severity, kind, remedy = Severity.NOTE, "not-checked", ""
        message = f"could not be checked: {report.problem}"
    elif report.corruptions or report.errors:
        severity, kind, remedy = Severity.ERROR, "corruptions", f"copy it, then: {repair}"
        message = f"has {report.corruptions} corruptions, {report.errors} unreadable places"
    elif report.leaks:
        severity, kind = Severity.WARNING, "leaks"
        message = f"has {report.leaks} leaked clusters"
        remedy = seen.remedy("check", seen.name, "--repair")
    else:
        return
    yield Finding(
        severity=severity,
        kind=kind,
        message=f"{target}: {image.spelled} {message}",
        remedy=remedy,
        disk=target,
        path=image.path,
    )


def _links(seen: Examined) -> Iterator[Finding]:
    """What overlays say of their bases, each overlay once."""
    told: set[FileId] = set()
    for target, chain in _chains(seen):
        overlays = [image for image in chain.images if image.backing is not None]
        relative = any(is_relative(image) for image in overlays)
        for at, overlay in enumerate(chain.images):
            if overlay.identity.file in told or overlay.backing is None:
                continue
            told.add(overlay.identity.file)
            if overlay.backing_format is None and overlay.format is not Format.VMDK:
                yield _unrecorded(target, overlay, chain.images[at - 1] if at else None, seen)
            if at:
                base = chain.images[at - 1]
                yield from _size(target, base, overlay, chain, seen)
                if relative and not is_relative(overlay):
                    yield _absolute(target, overlay, seen)


def _chains(seen: Examined) -> Iterator[tuple[str, Chain]]:
    yield from seen.lineage.current.items()
    for held in seen.lineage.held.values():
        yield from held.chains.items()


def _unrecorded(target: str, overlay: Image, base: Image | None, seen: Examined) -> Finding:
    """`base` was read only if something else records its format."""
    words = ["qemu-img", "rebase", "-u", "-f", overlay.format, "-F", "raw"]
    by_hand = shlex.join([*words, "-b", str(overlay.backing), str(overlay.spelled)])
    mendable = base is not None and overlay.format is Format.QCOW2
    return Finding(
        severity=Severity.ERROR,
        kind="format-not-recorded",
        message=f"{target}: {overlay.spelled} does not record the format of its base "
        f"{overlay.backing}" + (f", which is recorded as {base.format} elsewhere" if base else ""),
        remedy=seen.remedy("check", seen.name, "--repair")
        if mendable
        else f"if the base is raw: {by_hand}",
        disk=target,
        path=overlay.path,
    )


def _size(
    target: str, base: Image, overlay: Image, chain: Chain, seen: Examined
) -> Iterator[Finding]:
    if overlay.virtual_size == base.virtual_size:
        return
    smaller = overlay.virtual_size < base.virtual_size
    active = chain is seen.lineage.current.get(target) and overlay is chain.active
    grow = seen.remedy("resize", seen.name, target, f"{base.virtual_size}B")
    yield Finding(
        severity=Severity.WARNING if smaller and active else Severity.NOTE,
        kind="size",
        message=f"{target}: {overlay.spelled} shows {overlay.virtual_size} bytes, its base "
        f"{base.virtual_size}" + ("; the guest has lost the rest" if smaller and active else ""),
        remedy=f"if it was not meant: {grow}" if smaller and active else "",
        disk=target,
        path=overlay.path,
    )


def _absolute(target: str, overlay: Image, seen: Examined) -> Finding:
    return Finding(
        severity=Severity.NOTE,
        kind="absolute-name",
        message=f"{target}: {overlay.spelled} names its base absolutely, others of its chain "
        "relatively: the chain cannot be moved",
        remedy=seen.remedy("rebase", seen.name, target, "--relative"),
        disk=target,
        path=overlay.path,
    )


def _shared(seen: Examined) -> Iterator[Finding]:
    """A file that one disk writes, and another disk or domain reads or writes, too."""
    if seen.head is None:
        return
    disks = {disk.target: disk for disk in seen.head.domain.disks}
    told: set[str] = set()
    for target, chain in seen.lineage.current.items():
        if disks[target].readonly or disks[target].shareable:
            continue
        file = chain.active.identity.file
        beside = [
            other
            for other, theirs in seen.lineage.current.items()
            if other != target and file in files_of([theirs])
        ]
        outside = seen.lineage.strangers_to(file)
        if target in told or not (beside or outside):
            continue
        told |= {target, *beside}
        yield Finding(
            severity=Severity.ERROR if beside else Severity.WARNING,
            kind="shared",
            message=f"{target} writes {chain.active.spelled}, which "
            f"{', '.join([*beside, *outside])} uses, too",
            remedy=_apart(seen, back=bool(beside)),
            disk=target,
            path=chain.active.path,
        )


def _apart(seen: Examined, *, back: bool) -> str:
    """Two disks of one domain were apart at its snapshots."""
    whole = [name for name, held in seen.lineage.held.items() if _is_whole(held, seen)]
    if back and whole:
        name = seen.current if seen.current in whole else whole[-1]
        return seen.remedy("snapshot-revert", seen.name, str(name), "--force")
    return f"give each its own file: {seen.remedy('dumpxml', seen.name)}"
