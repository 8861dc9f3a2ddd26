"""What is measured: a name, and how to hold the contest of that name."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.bench import branches, storage
from tests.bench.machines import (
    FOLDER,
    LIBVIRT,
    QEMU_IMG,
    VIRSH,
    Hosts,
    contenders,
    imgtool,
    machine,
)
from tests.bench.measure import Contender, Contest, Stopwatch, contest

GIB = 1 << 30
TIB = 1 << 40
ROOM = 4 * GIB  # bytes that the metadata of a 1 TiB image, its redo and its undo may need
DISKS = (1, 4, 16, 64)
DEPTHS = (1, 50, 200)
SIZES = {"1G": GIB, "64G": 64 * GIB, "1T": TIB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How often things are run."""

    runs: int
    few: int  # of what takes seconds
    quick: bool  # leave out what takes minutes


Hold = Callable[[Hosts, Stopwatch, Effort], Contest]


def contests(effort: Effort) -> Iterator[tuple[str, Hold]]:
    """All of them, the short ones first."""
    yield "version", _version
    yield "list", _list
    for disks in DISKS[:3] if effort.quick else DISKS:
        yield f"external-{disks}", _disks(f"external-{disks}", disks, "--disk-only")
        yield f"internal-{disks}", _disks(f"internal-{disks}", disks)
    for depth in DEPTHS:
        yield f"chain-{depth}", _chain(depth)
    for disks in DISKS[:3]:
        yield f"delete-{disks}", _moving(branches.delete(disks))
        yield f"revert-{disks}", _moving(branches.revert(disks))
    yield "pull", _moving(branches.pull)
    for name, kind in storage.names():
        yield name, _moving(storage.copying(name, kind, GIB // 4 if effort.quick else GIB))
    for size in list(SIZES)[:2] if effort.quick else SIZES:
        yield f"external-full-{size}", _full(f"external-full-{size}", SIZES[size], "--disk-only")
        yield f"internal-full-{size}", _full(f"internal-full-{size}", SIZES[size])


def _moving(hold: Callable[[Hosts, Stopwatch, int], Contest]) -> Hold:
    return lambda hosts, watch, effort: hold(hosts, watch, effort.few)


def _version(hosts: Hosts, watch: Stopwatch, effort: Effort) -> Contest:
    """Starting, and nothing else."""
    found = [
        Contender(name=FOLDER, argv=[*imgtool(), "--version"]),
        Contender(name=VIRSH, argv=["virsh", "--version"]),
        Contender(name=QEMU_IMG, argv=["qemu-img", "--version"]),
        Contender(name="python -c pass", argv=[sys.executable, "-c", "pass"]),
    ]
    return contest("version", found, watch, runs=2 * effort.runs, folder=hosts.folder)


def _list(hosts: Hosts, watch: Stopwatch, effort: Effort) -> Contest:
    """The shortest thing that looks at a domain."""
    words = ("snapshot-list", "vm")
    with machine(hosts, [GIB]) as vm:
        found = [
            Contender(name=FOLDER, argv=vm.imgtool(*words)),
            Contender(name=LIBVIRT, argv=vm.imgtool_libvirt(*words)),
            Contender(name=VIRSH, argv=vm.virsh(*words)),
        ]
        return contest("list", found, watch, runs=2 * effort.runs, folder=hosts.folder)


def _disks(name: str, disks: int, *options: str) -> Hold:
    def hold(hosts: Hosts, watch: Stopwatch, effort: Effort) -> Contest:
        embedded = disks in (1, 16) or not effort.quick
        with machine(hosts, [10 * GIB] * disks, embedded=embedded) as vm:
            found = contenders(vm, *options, embedded_runs=effort.few if embedded else 0)
            return contest(name, found, watch, runs=effort.runs, folder=hosts.folder)

    return hold


def _chain(depth: int) -> Hold:
    """`depth` layers once the snapshot is taken: QEMU starts no chain beyond 200."""

    def hold(hosts: Hosts, watch: Stopwatch, effort: Effort) -> Contest:
        with machine(hosts, [GIB], depth=max(1, depth - 1)) as vm:
            found = contenders(vm, "--disk-only")
            return contest(f"chain-{depth}", found, watch, runs=effort.runs, folder=hosts.folder)

    return hold


def _full(name: str, size: int, *options: str) -> Hold:
    """One image with every cluster allocated: its metadata is all there, its data is a hole."""

    def hold(hosts: Hosts, watch: Stopwatch, effort: Effort) -> Contest:
        free = shutil.disk_usage(hosts.folder).free
        if free < ROOM:
            sys.exit(f"{hosts.folder}: {ROOM} bytes are needed, {free} free; see --folder")
        with machine(hosts, [size], options="preallocation=metadata") as vm:
            found = [each for each in contenders(vm, *options) if each.name != LIBVIRT]
            runs = effort.runs if options else effort.few
            return contest(name, found, watch, runs=runs, folder=hosts.folder)

    return hold
