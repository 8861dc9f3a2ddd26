"""A stopped machine in three stores at once: a folder, a libvirtd, the embedded driver."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgtool.host.headers import read_image
from imgtool.model.domain import Disk
from imgtool.model.image import Format
from imgtool.testing.domains import MadeDomain, make_domain
from imgtool.testing.images import make_image
from tests.bench.measure import Contender
from tests.libvirt_fixtures import embedded_uri, virsh

NAME = "s"  # of the snapshot; overlays are called after it
SNAPSHOT = ("snapshot-create-as", "vm", NAME)

FOLDER = "imgtool, folder"
LIBVIRT = "imgtool, libvirtd"
VIRSH = "virsh, libvirtd"
EMBEDDED = "virsh, embedded"
QEMU_IMG = "qemu-img"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """What all the machines of one run share."""

    folder: Path  # images, stores and state are made in here
    libvirtd: str  # URI of a daemon that is ours alone
    embedded: str  # URI; what it keeps is below `embedded_root`
    embedded_root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A domain `vm`, its disks, and how to put it back to what it was before a snapshot."""

    hosts: Hosts
    made: MadeDomain
    xml: str  # as it was defined

    @property
    def images(self) -> tuple[Path, ...]:
        return tuple(disk.source for disk in self.made.disks if disk.source is not None)

    def imgtool(self, *words: str) -> list[str]:
        """imgtool on the folder."""
        return [*imgtool(), "-q", "-c", self.made.uri, *words]

    def imgtool_libvirt(self, *words: str) -> list[str]:
        """imgtool on the libvirtd; its state stays with us."""
        state = str(self.made.folder / "state")
        return [*imgtool(), "-q", "-c", self.hosts.libvirtd, "--state-dir", state, *words]

    def virsh(self, *words: str) -> list[str]:
        return ["virsh", "-q", "-c", self.hosts.libvirtd, *words]

    def reset_folder(self) -> None:
        """No snapshot in the images nor in the directory store."""
        self.reset_images()
        self.made.xml.write_text(self.xml)
        shutil.rmtree(self.made.folder / ".imgtool", ignore_errors=True)

    def reset_libvirtd(self) -> None:
        """No snapshot in the images nor in libvirtd."""
        self.reset_images()
        uri = self.hosts.libvirtd
        if NAME in virsh(uri, "snapshot-list", "vm", "--name").split():
            virsh(uri, "snapshot-delete", "vm", NAME, "--metadata")
        self.reset_folder()
        virsh(uri, "define", self.made.xml)

    def reset_embedded(self) -> None:
        """Without opening the driver, which takes seconds where its user cannot use KVM."""
        self.reset_images()
        _replace(self.made.folder / "embedded", self.hosts.embedded_root)

    def reset_images(self) -> None:
        for overlay in self.made.folder.glob(f"*.{NAME}"):
            overlay.unlink()
        for image in self.images:
            if read_image(image, Format.QCOW2).snapshots:
                subprocess.run(["qemu-img", "snapshot", "-d", NAME, image], check=True)


def imgtool() -> list[str]:
    """The command as it is installed beside this Python, else the package."""
    script = Path(sys.executable).with_name("imgtool")
    return [str(script)] if script.exists() else [sys.executable, "-m", "imgtool"]


def contenders(machine: Machine, *options: str, embedded_runs: int = 0) -> list[Contender]:
    """All who can take that snapshot: `--disk-only` for an external one, nothing for internal."""
    words = (*SNAPSHOT, *options)
    found = [
        Contender(name=FOLDER, argv=machine.imgtool(*words), reset=machine.reset_folder),
        Contender(name=LIBVIRT, argv=machine.imgtool_libvirt(*words), reset=machine.reset_libvirtd),
        Contender(name=VIRSH, argv=machine.virsh(*words), reset=machine.reset_libvirtd),
    ]
    if embedded_runs:
        argv = ["virsh", "-q", "-c", machine.hosts.embedded, *words]
        found.append(
            Contender(name=EMBEDDED, argv=argv, reset=machine.reset_embedded, runs=embedded_runs)
        )
    return [*found, qemu_img(machine, external=bool(options))]


def qemu_img(machine: Machine, *, external: bool) -> Contender:
    """What a script would do: no lock, no domain XML, no check, and half done if it is killed."""
    if external:
        work = f'qemu-img create -q -f qcow2 -F qcow2 -b "$i" "${{i%.*}}.{NAME}"'
    else:
        work = f'qemu-img snapshot -c {NAME} "$i"'
    argv = ["sh", "-ec", f"for i do {work}; done", "sh", *map(str, machine.images)]
    return Contender(name=QEMU_IMG, argv=argv, reset=machine.reset_images)


@contextmanager
def machine(
    hosts: Hosts,
    sizes: Sequence[int],
    *,
    options: str = "",
    depth: int = 1,
    embedded: bool = False,
) -> Iterator[Machine]:
    """A machine with a disk of each of these virtual sizes, `depth` layers deep.

    `options` are qemu-img's for the base of each disk, as in 'preallocation=metadata'.
    """
    folder = hosts.folder / "machine"
    folder.mkdir()
    disks = []
    for number, size in enumerate(sizes):
        top = _make_chain(folder, f"disk{number}", size, options, depth)
        disks.append(
            Disk(target=_target(number), source=top, format=Format.QCOW2, format_name="qcow2")
        )
    made = make_domain(folder, "vm", disks)
    found = Machine(hosts=hosts, made=made, xml=made.xml.read_text())
    virsh(hosts.libvirtd, "define", made.xml)
    try:
        if embedded:
            shutil.rmtree(hosts.embedded_root, ignore_errors=True)
            embedded_uri(hosts.embedded_root)
            virsh(hosts.embedded, "define", made.xml)
            _replace(hosts.embedded_root, folder / "embedded")
        yield found
    finally:
        virsh(hosts.libvirtd, "undefine", "vm", "--snapshots-metadata", check=False)
        shutil.rmtree(folder)


def _make_chain(folder: Path, name: str, size: int, options: str, depth: int) -> Path:
    top = make_image(folder / f"{name}.qcow2", Format.QCOW2, size, options=options)
    for layer in range(1, depth):
        path = folder / f"{name}-{layer}.qcow2"
        top = make_image(path, Format.QCOW2, size, backing=top, backing_format=Format.QCOW2)
    return top


def _target(number: int) -> str:
    """vda to vdz, vdaa, vdab ..., as the kernel names them."""
    name = ""
    number += 1
    while number:
        number, letter = divmod(number - 1, 26)
        name = chr(ord("a") + letter) + name
    return f"vd{name}"


def _replace(source: Path, target: Path) -> None:
    """Make `target` what `source` is, where libvirt keeps XML; sockets and locks are left out."""
    for part in ("etc/qemu", "lib/qemu/snapshot"):
        shutil.rmtree(target / part, ignore_errors=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part)
