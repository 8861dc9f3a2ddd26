"""Deletions, pulls and reverts: how long data take to move, against who moves them bare."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imgtool.model.image import Format
from imgtool.testing.images import qemu_io
from tests.bench.machines import FOLDER, LIBVIRT, NAME, QEMU_IMG, VIRSH, Hosts, Machine, machine
from tests.bench.measure import Contender, Contest, Stopwatch, contest
from tests.libvirt_fixtures import virsh

MIB = 1 << 20
DATA = 256 * MIB  # in each overlay, or in each base
SIZE = 10 << 30  # of each disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A machine as it was before an operation, to be put back before each run."""

    machine: Machine
    copy: Path

    def reset(self) -> None:
        folder = self.machine.made.folder
        for path in folder.iterdir():
            if path != self.copy:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.copy, folder, dirs_exist_ok=True)


@contextmanager
def overlaid(hosts: Hosts, disks: int, *, data_in_base: bool = False) -> Iterator[Kept]:
    """A machine with an external snapshot, and data on one side of it."""
    with machine(hosts, [SIZE] * disks) as vm:
        for image in vm.images if data_in_base else ():
            _fill(image)
        _run(vm.imgtool("snapshot-create-as", "vm", NAME, "--disk-only"))
        for image in () if data_in_base else vm.images:
            _fill(image.with_suffix(f".{NAME}"))
        copy = vm.made.folder / "kept"
        shutil.copytree(vm.made.folder, copy)
        yield Kept(machine=vm, copy=copy)


def delete(disks: int) -> Callable[[Hosts, Stopwatch, int], Contest]:
    """Delete an external snapshot: its overlays' data go down. Old virsh cannot, offline."""

    def hold(hosts: Hosts, watch: Stopwatch, runs: int) -> Contest:
        with overlaid(hosts, disks) as kept:
            vm = kept.machine
            work = f'for i do qemu-img commit -q -f qcow2 -t writeback -d "${{i%.*}}.{NAME}"; done'
            bare = ["sh", "-ec", work, "sh", *map(str, vm.images)]
            found = [
                Contender(
                    name=FOLDER, argv=vm.imgtool("snapshot-delete", "vm", NAME), reset=kept.reset
                ),
                Contender(name=QEMU_IMG, argv=bare, reset=kept.reset),
            ]
            return contest(f"delete-{disks}", found, watch, runs=runs, folder=hosts.folder)

    return hold


def pull(hosts: Hosts, watch: Stopwatch, runs: int) -> Contest:
    """Copy a base up into its overlay."""
    with overlaid(hosts, 1, data_in_base=True) as kept:
        vm = kept.machine
        (image,) = vm.images
        overlay = str(image.with_suffix(f".{NAME}"))
        bare = ["qemu-img", "rebase", "-f", "qcow2", "-t", "writeback", "-b", "", overlay]
        _run(vm.imgtool("snapshot-delete", "vm", NAME, "--metadata"))
        shutil.rmtree(kept.copy)
        shutil.copytree(vm.made.folder, kept.copy)
        found = [
            Contender(name=FOLDER, argv=vm.imgtool("flatten", "vm", "vda"), reset=kept.reset),
            Contender(name=QEMU_IMG, argv=bare, reset=kept.reset),
        ]
        return contest("pull", found, watch, runs=runs, folder=hosts.folder)


def revert(disks: int) -> Callable[[Hosts, Stopwatch, int], Contest]:
    """Revert to an internal snapshot, again and again: it is the same work each time."""

    def hold(hosts: Hosts, watch: Stopwatch, runs: int) -> Contest:
        with machine(hosts, [SIZE] * disks) as vm:
            _run(vm.imgtool("snapshot-create-as", "vm", NAME))
            virsh(hosts.libvirtd, "snapshot-create-as", "vm", "peer")
            work = f'for i do qemu-img snapshot -a {NAME} "$i"; done'
            bare = ["sh", "-ec", work, "sh", *map(str, vm.images)]
            words = ("snapshot-revert", "vm")
            found = [
                Contender(name=FOLDER, argv=vm.imgtool(*words, NAME, "--force")),
                Contender(name=LIBVIRT, argv=vm.imgtool_libvirt(*words, "peer", "--force")),
                Contender(name=VIRSH, argv=vm.virsh(*words, "peer")),
                Contender(name=QEMU_IMG, argv=bare),
            ]
            return contest(f"revert-{disks}", found, watch, runs=runs, folder=hosts.folder)

    return hold


def _fill(image: Path) -> None:
    qemu_io(image, Format.QCOW2, f"write -q -P 0x5a 0 {DATA}")


def _run(argv: list[str]) -> None:
    subprocess.run(argv, check=True)
