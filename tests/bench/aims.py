"""What imgtool wants of itself, and whether a run of the benchmark shows it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.bench import storage
from tests.bench.machines import FOLDER, LIBVIRT, QEMU_IMG, VIRSH
from tests.bench.measure import Contest

MIB = 1 << 20
LINEAR = 1.5  # a disk may cost so many times what it costs among fewer
CONSTANT = 1.25  # the largest image, in times of the smallest


@dataclass(frozen=True, slots=True)
class Verdict:
    """One aim. `met` is None where this run has not measured it."""

    aim: str
    met: bool | None
    measured: str


Contests = Mapping[str, Contest]


def verdicts(contests: Contests) -> Iterator[Verdict]:
    """Every aim, also those that were not measured."""
    for mine in (FOLDER, LIBVIRT):
        yield _ratio(contests, "external-16", mine, VIRSH, 1.0)
    for mine in (FOLDER, LIBVIRT):
        yield _ratio(contests, "internal-16", mine, VIRSH, 1.5)
    for name in ("internal-16", "internal-full-64G", "internal-full-1T"):
        yield _ratio(contests, name, FOLDER, QEMU_IMG, 1.5)
    for name in ("delete-1", "delete-4", "delete-16", "pull"):
        yield _ratio(contests, name, FOLDER, QEMU_IMG, 1.2)
    for name in ("revert-1", "revert-4", "revert-16"):
        yield _ratio(contests, name, LIBVIRT, VIRSH, 1.0)
    for command in storage.COMMAND:
        for kind in storage.KINDS:
            yield _best(contests, f"{command}-{kind}")
    for mode in ("external", "internal"):
        yield _linear(contests, mode)
    yield _constant(contests)
    yield _start(contests)
    yield _memory(contests)


def _ratio(contests: Contests, name: str, mine: str, peer: str, most: float) -> Verdict:
    aim = f"{name}: {mine} takes at most {most:g} times as long as {peer}"
    ratio = contests[name].ratio(mine, peer) if name in contests else None
    if ratio is None:
        return Verdict(aim, None, "")
    return Verdict(aim, ratio <= most, f"{ratio:.2f} times")


def _best(contests: Contests, name: str) -> Verdict:
    """What it takes to look is taken off: a reflink takes less than any Python does to begin."""
    aim = f"{name}: looking apart, no slower than the fastest of {', '.join(storage.PEERS)}"
    if name not in contests:
        return Verdict(aim, None, "")
    known, looking = (contests[name].seconds(mine) for mine in (FOLDER, storage.LOOKING))
    peers = [contests[name].seconds(peer) for peer in storage.PEERS]
    seconds = [each for each in peers if each is not None]
    if known is None or looking is None or not seconds:
        return Verdict(aim, None, "")
    said = f"{known:.2f} s, of which {looking:.2f} s to look, and {min(seconds):.2f} s"
    return Verdict(aim, known - looking <= min(seconds), said)


def _linear(contests: Contests, mode: str) -> Verdict:
    """By what a disk more costs, so that what is paid once does not hide it."""
    aim = f"{mode}: cost is linear in disks"
    known = {
        disks: contests[name].seconds(FOLDER)
        for disks in (4, 16, 64)
        if (name := f"{mode}-{disks}") in contests
    }
    four, sixteen, many = (known.get(disks) for disks in (4, 16, 64))
    if four is None or sixteen is None or many is None:
        return Verdict(aim, None, "")
    few, more = (sixteen - four) / 12, (many - sixteen) / 48
    said = f"{1000 * few:.1f} ms a disk from 4 to 16, {1000 * more:.1f} ms from 16 to 64"
    return Verdict(aim, more <= LINEAR * few, said)


def _constant(contests: Contests) -> Verdict:
    aim = "external: cost is independent of image size"
    known = [contests[name].seconds(FOLDER) for name in contests if "external-full" in name]
    seconds = [each for each in known if each is not None]
    if len(seconds) < 2:
        return Verdict(aim, None, "")
    ratio = seconds[-1] / seconds[0]
    return Verdict(aim, ratio <= CONSTANT, f"the largest takes {ratio:.2f} times the smallest")


def _start(contests: Contests) -> Verdict:
    aim = "start-up (--version) takes under 100 ms"
    seconds = contests["version"].seconds(FOLDER) if "version" in contests else None
    if seconds is None:
        return Verdict(aim, None, "")
    return Verdict(aim, seconds < 0.1, f"{1000 * seconds:.0f} ms")


def _memory(contests: Contests) -> Verdict:
    aim = "memory stays under 100 MiB"
    peaks = [
        (row.peak, contest.name)
        for contest in contests.values()
        for row in contest.rows
        if row.name in (FOLDER, LIBVIRT)
    ]
    if not peaks:
        return Verdict(aim, None, "")
    most, where = max(peaks)
    return Verdict(aim, most < 100 * MIB, f"{most / MIB:.0f} MiB in {where}")
