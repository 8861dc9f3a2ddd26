"""Which leftovers may go. In doubt, none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.domain import DomainState
from imgtool.model.image import Identity
from imgtool.plan.finding import Examined, Finding, Severity, Stray


@dataclass(frozen=True, slots=True, kw_only=True)
class Rubbish:
    """A file that nothing needs, or (`reason`) one that stays all the same."""

    path: Path
    inode: int
    target: str
    size: int  # bytes on disk
    identity: Identity | None = None  # of an overlay; a staged file may be anything
    reason: str = ""


def rubbish_of(seen: Examined, *, force: bool) -> tuple[Rubbish, ...]:
    """Staged files of ours without a transaction, and strays; overlays before their bases.

    What a chain-copy has staged is known to be ours, whatever else cannot be read.

    `force`: strays that hold data, too. Where a domain or a snapshot of the store cannot be read,
    nobody knows what it names, and everything stays.
    """
    doubt = _doubt(seen)
    found = [
        Rubbish(path=each.path, inode=each.inode, target="staged", size=0, reason=doubt)
        for each in seen.leftovers
    ]
    found += [
        Rubbish(path=each.path, inode=each.inode, target="staged", size=each.size)
        for each in seen.copies
    ]
    staying: set[Path] = set()
    for stray in _overlays_first(seen.strays):
        needed = [path for path in stray.overlays if path in staying]
        reason = doubt
        if not reason and needed:
            reason = f"{needed[0]} builds on it"
        elif not reason and stray.has_data and not force:
            reason = "it has data of its own (--force removes it)"
        if reason:
            staying.add(stray.image.path)
        found.append(
            Rubbish(
                path=stray.image.path,
                inode=stray.image.identity.inode,
                target=stray.target,
                size=stray.image.allocation,
                identity=stray.image.identity,
                reason=reason,
            )
        )
    return tuple(found)


def stray_findings(seen: Examined) -> Iterator[Finding]:
    """What could be swept, for a report."""
    for stray in seen.strays:
        what = "with data of its own" if stray.has_data else "without data of its own"
        force = ["--force"] if stray.has_data else []
        yield Finding(
            severity=Severity.WARNING,
            kind="stray",
            message=f"{stray.target}: {stray.image.spelled}, an overlay {what}, is in no "
            "domain and no snapshot",
            remedy=seen.remedy("gc", seen.name, *force),
            disk=stray.target,
            path=stray.image.path,
        )
    for leftover in seen.leftovers:
        yield Finding(
            severity=Severity.WARNING,
            kind="staged",
            message=f"{leftover.path} was staged by a transaction that is not open any more",
            remedy=seen.remedy("gc", seen.name),
            path=leftover.path,
        )


def _doubt(seen: Examined) -> str:
    """Why nobody can tell what is needed; empty if it is known."""
    if seen.doubts:
        return f"{', '.join(seen.doubts)} cannot be read, and may need it"
    if seen.head is not None and seen.head.state is not DomainState.SHUTOFF:
        return f"the domain is {seen.head.state}: what it uses now may not be in its XML"
    return ""


def _overlays_first(strays: Iterable[Stray]) -> Iterator[Stray]:
    left = {stray.image.path: stray for stray in strays}
    while left:
        ready = [
            stray
            for stray in left.values()
            if not any(overlay in left for overlay in stray.overlays)
        ]
        for stray in ready or list(left.values()):  # a circle cannot be: they were read downwards
            del left[stray.image.path]
            yield stray
