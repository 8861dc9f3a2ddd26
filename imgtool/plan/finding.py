"""What a look at a domain has found, and what was looked at."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from imgtool.model.domain import Head
from imgtool.model.image import Image
from imgtool.model.job import CopyJob
from imgtool.plan.lineage import FileId, Lineage


class Severity(StrEnum):
    """How bad it is. Notes are for information: with nothing worse, all is well."""

    ERROR = "error"  # the domain does not start, or a snapshot cannot be reverted to
    WARNING = "warning"  # something is left over, or will be in the way
    NOTE = "note"

    @property
    def rank(self) -> int:
        """The worst comes first."""
        return list(Severity).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of a report. `kind` is a stable word for programs."""

    severity: Severity
    kind: str
    message: str
    remedy: str = ""  # a command that mends it, perhaps with a word before it
    disk: str = ""
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """Why a chain could not be read any further down."""

    kind: str  # missing, unreadable, loop, no-format, unsupported
    target: str
    path: Path
    message: str
    remedy: str
    snapshot: str = ""  # whose copy of the domain XML leads there; empty: the domain's own


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `qemu-img check` said of one image."""

    corruptions: int = 0
    leaks: int = 0  # clusters
    errors: int = 0  # places that could not be checked
    problem: str = ""  # why it said nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Stray:
    """An overlay on an image of the domain that nothing in the store refers to."""

    image: Image
    target: str  # the disk whose image it builds on
    has_data: bool  # clusters, internal snapshots or bitmaps of its own
    overlays: tuple[Path, ...] = ()  # other strays that build on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """A file of ours that no journal knows: `.imgtool-<transaction>-<number>`."""

    path: Path
    inode: int
    size: int = 0  # bytes on disk, where that was looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """A domain, its snapshots and their images, as far as they could be read."""

    name: str
    command: str  # how imgtool is called for this store: 'imgtool -c URI'
    head: Head | None = None  # None: its XML cannot be read
    lineage: Lineage = field(default_factory=lambda: Lineage(current={}, held={}))
    current: str | None = None  # the snapshot that is marked so
    flaws: tuple[Flaw, ...] = ()
    problems: tuple[Finding, ...] = ()  # what could not even be looked at
    reports: Mapping[FileId, Report] = field(default_factory=dict)
    formats: Mapping[FileId, frozenset[str]] = field(default_factory=dict)
    """What is recorded of a file's format, anywhere in the store."""
    foreign_tags: frozenset[tuple[FileId, str]] = frozenset()  # recorded by other domains
    strays: tuple[Stray, ...] = ()
    leftovers: tuple[Leftover, ...] = ()
    copies: tuple[Leftover, ...] = ()  # staged by a chain-copy that has not ended
    pending: str = ""  # what the open transaction is about; empty: there is none
    jobs: tuple[CopyJob, ...] = ()  # that are open
    lost_mirrors: tuple[tuple[str, Path], ...] = ()  # disk and path, of the current snapshot
    claims: tuple[str, ...] = ()  # snapshots that libvirt's own files call the current one
    on_disk: Mapping[str, Path] = field(default_factory=dict)
    """Sources in libvirt's own file of the domain, where they are not those in its memory."""
    own_file: Path | None = None  # that file
    doubts: tuple[str, ...] = ()  # domains that could not be read wholly: they may name anything

    def remedy(self, *words: str | Path) -> str:
        """A command of imgtool that can be pasted into a shell."""
        return f"{self.command} {shlex.join(map(str, words))}"

    def recorded_format(self, file: FileId) -> str:
        """What all records of a file agree upon; empty where there is none, or they differ."""
        known = self.formats.get(file, frozenset())
        return next(iter(known)) if len(known) == 1 else ""

    def target_of(self, image: Image) -> str:
        """A disk that the image belongs to, now or at some snapshot."""
        chains = [*self.lineage.current.items()]
        for held in self.lineage.held.values():
            chains += held.chains.items()
        file = image.identity.file
        return next(
            (
                target
                for target, chain in chains
                if file in {each.identity.file for each in chain.images}
            ),
            "",
        )


def worst_first(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Sorted by severity; otherwise in the order in which they were found, each once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda each: each.severity.rank))


def is_well(findings: tuple[Finding, ...]) -> bool:
    """Whether there is nothing but notes."""
    return all(finding.severity is Severity.NOTE for finding in findings)
