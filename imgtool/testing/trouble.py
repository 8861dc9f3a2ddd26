"""What goes wrong in the middle of an operation: crashes, errors, and somebody else."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from xml.etree import ElementTree

from imgtool.host.files import Files
from imgtool.host.headers import read_image
from imgtool.model.domain import Domain
from imgtool.model.errors import (
    ChainError,
    DomainChangedError,
    ImageChangedError,
    ImageInUseError,
    ImgtoolError,
)
from imgtool.model.image import Format
from imgtool.stores.directory import DirectoryStore
from imgtool.testing.domains import MadeDomain
from imgtool.testing.dying import Doom, Fate, Meddling
from imgtool.testing.images import qemu_io


class Kind(StrEnum):
    """What happens at the n-th effect of an operation."""

    NONE = "none"
    DIE = "die"  # the process is gone
    FAIL_BEFORE = "fail before"  # an error, with nothing done
    FAIL_AFTER = "fail after"  # an error, although all is done
    EDIT = "edit"  # somebody edits the domain XML
    WRITE = "write"  # somebody starts the machine, which writes to a disk


_FATE = {
    Kind.DIE: Fate.DIE,
    Kind.FAIL_BEFORE: Fate.FAIL_BEFORE,
    Kind.FAIL_AFTER: Fate.FAIL_AFTER,
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """`kind` happens at the n-th effect (from 1), or nothing where there are fewer."""

    kind: Kind
    at: int


@dataclass(frozen=True, slots=True)
class GuestWrite:
    """`length` times `byte` at `offset` of a disk, both in bytes."""

    target: str
    offset: int
    length: int
    byte: int

    @property
    def command(self) -> str:
        """For qemu-io; zeros are written as such."""
        pattern = f"-P {self.byte}" if self.byte else "-z"
        return f"write -q {pattern} {self.offset} {self.length}"


def domain_now(made: MadeDomain) -> Domain:
    """What the domain XML says at this moment."""
    return DirectoryStore(made.folder, Files()).head(made.name).domain


def guest_write(made: MadeDomain, write: GuestWrite) -> str:
    """What a machine that is started now would do. Returns why QEMU refuses to, or nothing.

    'corrupt': the image is blocked; 'base': it is being pulled into, and names no base that there
    is; 'lock': somebody holds it. Raises AssertionError otherwise.
    """
    disk = domain_now(made).disk(write.target)
    assert disk is not None
    assert disk.source is not None
    try:
        qemu_io(disk.source, disk.format or Format.RAW, write.command)
    except AssertionError as error:
        if "corrupt; cannot be opened read/write" in str(error):
            return "corrupt"
        if "Could not open backing file" in str(error):
            return "base"
        if 'Failed to get "write" lock' in str(error):
            return "lock"
        raise
    return ""


def title(made: MadeDomain) -> str:
    """The `<title>` of a domain; empty where it has none."""
    return ElementTree.fromstring(made.xml.read_bytes()).findtext("title") or ""


def put_title(made: MadeDomain, number: int) -> None:
    """Somebody gives the domain the title 'edit NUMBER', with an editor."""
    text = made.xml.read_text(encoding="utf-8")
    before, found, rest = text.partition("  <title>")
    if found:
        text = before + rest.partition("</title>\n")[2]
    line = f"  <title>edit {number}</title>\n"
    made.xml.write_text(text.replace("  <memory", f"{line}  <memory", 1), encoding="utf-8")


@dataclass(slots=True)
class Meddler:
    """Somebody else, who edits the XML or starts the machine in the middle of an operation."""

    made: MadeDomain
    edits: int  # how often the XML has been edited
    transaction: str  # the last one that has pivoted before the operation
    early: list[GuestWrite] = field(default_factory=list)  # before the pivot, if there was one
    late: list[GuestWrite] = field(default_factory=list)  # after it
    edited_late: bool = False

    def doom(self, trouble: Trouble) -> Doom:
        """For the files and the qemu-img of the operation."""
        if trouble.kind in _FATE:
            return Doom(fate=_FATE[trouble.kind], at=trouble.at)
        if trouble.kind is Kind.EDIT:
            return Meddling(at=trouble.at, meddle=self._edit)
        if trouble.kind is Kind.WRITE:
            return Meddling(at=trouble.at, meddle=self._write)
        return Doom()

    def judge(
        self, ended: BaseException | None, refusals: tuple[type[ImgtoolError], ...], doom: Doom
    ) -> None:
        """Raises AssertionError unless the operation may end so after what was done.

        An edit between the store's comparison and its rename is lost: libvirt has no
        compare-and-swap, nor has a folder. Anywhere else it must be there, or have been refused.
        """
        allowed: list[type[ImgtoolError]] = [DomainChangedError, *refusals]
        if self.early:
            allowed += [ImageChangedError, ImageInUseError]
        fine = ended is None or isinstance(ended, tuple(allowed))
        assert fine, f"somebody else is no reason for {ended!r}"
        renaming = f"write_atomically({self.made.xml!r}"
        window = doom.trace[max(0, doom.at - 2) : doom.at + 1]  # it begins with an empty make_dirs
        if any(call.startswith(renaming) for call in window):
            self.edits = int(title(self.made).removeprefix("edit ") or 0)

    def _edit(self) -> None:
        self.edited_late = domain_now(self.made).transaction != self.transaction
        self.edits += 1
        put_title(self.made, self.edits)

    def _write(self) -> None:
        """To the end of the first disk, which takes a new cluster; another byte each time."""
        domain = domain_now(self.made)
        disk = domain.disks[0]
        assert disk.source is not None
        end = 512  # of an image that is half overwritten, and that QEMU will refuse to open
        with suppress(ChainError):
            end = read_image(disk.source, disk.format or Format.RAW).virtual_size
        byte = 1 + sum(domain.transaction.encode()) % 255
        write = GuestWrite(disk.target, end - 512, 512, byte)
        if not guest_write(self.made, write):
            (self.late if domain.transaction != self.transaction else self.early).append(write)
