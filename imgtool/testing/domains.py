"""Domains for the directory store, written as a person or virsh would."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing.images import KIB, MIB, make_image, write_pattern

DOMAIN = """\
<domain type='qemu'>
  <name>{name}</name>
  <uuid>{uuid}</uuid>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64'>hvm</type>
  </os>
  <!-- a comment, which stays -->
  <devices>
{disks}  </devices>
</domain>
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeDomain:
    """A domain in a directory store."""

    folder: Path
    name: str
    disks: tuple[Disk, ...]

    @property
    def uri(self) -> str:
        """The store, for `-c`."""
        return f"dir:{self.folder}"

    @property
    def xml(self) -> Path:
        return self.folder / f"{self.name}.xml"

    def image(self, target: str) -> Path:
        """The image that a disk had when the domain was made."""
        (source,) = (disk.source for disk in self.disks if disk.target == target)
        if source is None:
            raise ValueError(f"disk {target} is empty")
        return source


def make_domain(
    folder: Path, name: str, disks: Iterable[Disk], *, domain_uuid: str | None = None
) -> MadeDomain:
    """Write NAME.xml with these disks into `folder`. Their images are not looked at.

    Without `domain_uuid` the domain gets one that depends on where it is.
    """
    made = MadeDomain(folder=folder, name=name, disks=tuple(disks))
    text = DOMAIN.format(
        name=escape(name),
        uuid=domain_uuid or uuid.uuid5(uuid.NAMESPACE_URL, str(made.xml)),
        disks="".join(map(disk_xml, made.disks)),
    )
    made.xml.write_text(text, encoding="utf-8")
    return made


def disk_xml(disk: Disk) -> str:
    """The `<disk>` element of a file, block or empty disk."""
    if disk.type not in ("file", "block"):
        raise ValueError(f"a {disk.type} disk has no local path")
    mode = "" if disk.snapshot is None else f" snapshot='{disk.snapshot}'"
    attribute = "file" if disk.type == "file" else "dev"
    driver = disk.format or disk.format_name
    lines = [
        f"<disk type='{disk.type}' device='{disk.device}'{mode}>",
        f"  <driver name='qemu' type={quoteattr(driver)}/>",
        *([f"  <source {attribute}={quoteattr(str(disk.source))}/>"] if disk.source else []),
        f"  <target dev={quoteattr(disk.target)}/>",
        *(f"  <{flag}/>" for flag in ("readonly", "shareable", "transient") if getattr(disk, flag)),
        "</disk>",
    ]
    return "".join(f"    {line}\n" for line in lines)


def make_three_disks(folder: Path, name: str = "vm") -> MadeDomain:
    """A domain with two qcow2 disks and a raw one, each with data of its own, made in `folder`."""
    disks = []
    for number, (target, fmt) in enumerate(
        (("vda", Format.QCOW2), ("vdb", Format.QCOW2), ("vdc", Format.RAW)), start=1
    ):
        path = make_image(folder / f"{name}-{target}.{fmt}", fmt, 8 * MIB)
        write_pattern(path, fmt, 0, 256 * KIB, number)
        write_pattern(path, fmt, 5 * MIB + 512, 3 * KIB, 0x10 + number)
        disks.append(Disk(target=target, source=path, format=fmt, format_name=fmt))
    return make_domain(folder, name, disks)
