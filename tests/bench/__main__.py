"""python -m tests.bench [--quick] [--only NAME] [--json FILE] [--folder DIR]"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.bench.aims import MIB, Verdict, verdicts
from tests.bench.contests import Effort, contests
from tests.bench.machines import QEMU_IMG, VIRSH, Hosts
from tests.bench.measure import Contest, stopwatch
from tests.libvirt_fixtures import embedded_uri, private_libvirtd

QUICK = Effort(runs=3, few=1, quick=True)
FULL = Effort(runs=9, few=3, quick=False)


def main() -> None:
    options = _options()
    effort = QUICK if options.quick else FULL
    wanted = [
        (name, hold)
        for name, hold in contests(effort)
        if not options.only or any(_means(word, name) for word in options.only)
    ]
    if not wanted:
        sys.exit(f"--only: there are {', '.join(name for name, _ in contests(effort))}")
    held: dict[str, Contest] = {}
    with _hosts(options.folder) as hosts, stopwatch(hosts.folder) as watch:
        print(f"medians; x: in times of {VIRSH}, of {QEMU_IMG}; on {os.cpu_count()} processors")
        for name, hold in wanted:
            held[name] = hold(hosts, watch, effort)
            print(_table(held[name]), flush=True)
    found = tuple(verdicts(held))
    print("\naims")
    for verdict in found:
        print(_line(verdict))
    if options.json:
        options.json.write_text(json.dumps(_facts(held, found), indent=1) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few runs, nothing that takes minutes")
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="this contest, or all that begin so"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument(
        "--folder", type=Path, default=tempfile.gettempdir(), help="on the file system to measure"
    )
    return parser.parse_args()


def _means(word: str, name: str) -> bool:
    return name == word or name.startswith(f"{word}-")


@contextmanager
def _hosts(parent: Path) -> Iterator[Hosts]:
    folder = Path(tempfile.mkdtemp(prefix="imgtool-bench-", dir=parent))
    root = folder / "embedded"
    try:
        with private_libvirtd() as libvirtd:
            yield Hosts(
                folder=folder,
                libvirtd=libvirtd,
                embedded=embedded_uri(root),
                embedded_root=root,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _table(contest: Contest) -> str:
    lines = [f"\n{contest.name:22}     ms   CPU ms  x virsh  x qemu-img  peak MiB  runs"]
    for row in contest.rows:
        ratios = (contest.ratio(row.name, peer) for peer in (VIRSH, QEMU_IMG))
        virsh, qemu_img = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        lines.append(
            f"  {row.name:18} {1000 * row.seconds:8.0f} {1000 * row.cpu:8.0f}"
            f" {virsh:>8} {qemu_img:>11}"
            f" {row.peak / MIB:9.0f} {len(row.samples):5}"
        )
    return "\n".join(lines)


def _line(verdict: Verdict) -> str:
    word = "not measured" if verdict.met is None else "met" if verdict.met else "MISSED"
    return f"  {word:13} {verdict.aim}" + (f": {verdict.measured}" if verdict.measured else "")


def _facts(held: Mapping[str, Contest], found: tuple[Verdict, ...]) -> dict[str, object]:
    return {
        "contests": {
            name: {
                row.name: [dataclasses.asdict(sample) for sample in row.samples]
                for row in contest.rows
            }
            for name, contest in held.items()
        },
        "aims": [{"aim": v.aim, "met": v.met, "measured": v.measured} for v in found],
    }


if __name__ == "__main__":
    main()
