"""Block jobs as their users type them: words, JSON, progress on a terminal, Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.cli.progress import Progress
from imgtool.cli.sizes import scaled
from imgtool.model.errors import BadRequestError
from imgtool.model.image import Format, Qcow2Features
from imgtool.testing import MIB, guest_bytes_digest, make_image
from imgtool.testing.images import qemu_io
from tests.crash.command import assert_refused, imgtool
from tests.crash.scenario import digest

from .asking import disk, domain, info, named, qemu_img
from .jobs import Trio, trio


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["blockcommit", "vm", "vda", "--active", "--pivot", "--delete"], "Successfully pivoted"),
        (["blockcommit", "vm", "{top}", "--pivot", "--shallow"], "Successfully pivoted"),
        (["blockcommit", "vm", "vda", "0", "{base}", "{mid}", "--wait"], "Commit complete"),
        (["blockcommit", "vm", "vda", "--keep-overlay"], "Commit complete, overlay image kept"),
        (["blockcommit", "vm", "--all-disks", "--pivot", "--timeout", "90"], "Successfully"),
        (["blockpull", "vm", "vda", "--wait", "--verbose", "--async"], "Pull complete"),
        (["blockpull", "vm", "vda", "--base", "{base}", "--keep-relative"], "Pull complete"),
        (["flatten", "vm", "vda"], "Pull complete"),
        (["flatten", "vm", "--all-disks"], "Pull complete"),
        (["rebase", "vm", "vda", "--relative"], "is rebased"),
        (["rebase", "vm", "vda", "--absolute"], "Nothing to do"),
        (["rebase", "vm", "vda", "--base", "{base}"], "is rebased"),
        (["rebase", "vm", "vda", "--base", "{mid}", "--unsafe"], "Nothing to do"),
    ],
)
def test_what_is_typed_and_answered(words: list[str], said: str, tmp_path: Path) -> None:
    three = trio(tmp_path)
    places = {"base": str(three.base), "mid": str(three.mid), "top": str(three.top)}
    done = imgtool("-c", three.made.uri, *(word.format(**places) for word in words))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    three.assert_same()


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["blockcommit", "vm", "vda", "--active"], "no job to pivot"),
        (["blockcommit", "vm", "vda"], "requires active flag"),
        (["blockcommit", "vm"], "--path or --all-disks"),
        (["blockcommit", "vm", "vda", "--pivot", "--keep-overlay"], "mutually exclusive"),
        (["blockcommit", "vm", "vda", "--base", "x", "--shallow"], "mutually exclusive"),
        (["blockcommit", "vm", "--all-disks", "--pivot", "--base", "x"], "of one disk"),
        (["blockpull", "vm", "vda", "--all-disks"], "mutually exclusive"),
        (["blockpull", "vm", "vdz"], "no disk named 'vdz'"),
        (["blockpull", "vm", "vda", "--timeout", "0"], "is no time"),
        (["resize", "vm", "vda"], "--size or --capacity"),
        (["resize", "vm", "vda", "--capacity"], "raw images on block devices"),
        (["resize", "vm", "vda", "12X"], "malformed or out of range"),
        (["resize", "vm", "vda", "1M"], "would be lost"),
        (["rebase", "vm", "vda"], "--relative, --absolute or --base"),
        (["rebase", "vm", "vda", "--unsafe", "--relative"], "is about --base"),
    ],
)
def test_what_is_refused(words: list[str], about: str, tmp_path: Path) -> None:
    three = trio(tmp_path)
    before = digest(tmp_path)
    assert_refused(imgtool("-c", three.made.uri, *words), 2, about)
    assert digest(tmp_path) == before


def test_json(tmp_path: Path) -> None:
    three = trio(tmp_path)
    words = ["-c", three.made.uri, "--json", "blockcommit", "vm", "vda", "--pivot", "--delete"]
    planned = json.loads(imgtool(*words, "--dry-run").stdout)
    kinds = [step["kind"] for step in planned["plan"]]
    assert kinds == ["MergeDown", "Drop", "Drop"]
    done = json.loads(imgtool(*words).stdout)
    assert done["domain"] == "vm"
    assert done["transaction"]
    (facts,) = done["disks"]
    assert facts["target"] == "vda"
    assert facts["source"] == str(three.base)
    assert facts["dropped"] == [str(three.top), str(three.mid)], "no chain is ever without a base"
    assert facts["bytes"] > MIB


def test_a_dry_run_in_words(tmp_path: Path) -> None:
    three = trio(tmp_path, Format.RAW)
    words = ["-c", three.made.uri, "--dry-run", "blockcommit", "vm", "vda"]
    lines = imgtool(*words, "--pivot", "--delete").stdout.splitlines()
    assert lines[0] == "block commit of vm (nothing is begun):"
    assert lines[1] == f"  vda: merge {three.mid}, {three.top} into {three.base}"
    assert lines[2] == f"  vda: switch to {three.base}"
    assert lines[3] == "  pivot: redefine vm"
    assert lines[4] == f"  then vda: remove {three.top}"
    assert "up to" in lines[6]
    lines = imgtool(*words, "--top", str(three.mid)).stdout.splitlines()
    assert lines[2:4] == [
        "  pivot: redefine vm",
        f"  then vda: let {three.top} name {three.base} as its base",
    ]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1024),
        ("512B", 512),
        ("512bytes", 512),
        ("3k", 3 << 10),
        ("3KiB", 3 << 10),
        ("3KB", 3000),
        ("2M", 2 << 20),
        ("2 mib", 2 << 20),
        ("2MB", 2_000_000),
        ("1G", 1 << 30),
        ("1T", 1 << 40),
        ("1P", 1 << 50),
        ("7E", 7 << 60),
    ],
)
def test_sizes_as_virsh_reads_them(text: str, size: int) -> None:
    assert scaled(text) == size


@pytest.mark.parametrize("text", ["", "G", "1X", "-1G", "1.5G", "1Gi", "8E", "0x10", "1 2", "²G"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(BadRequestError, match="malformed or out of range"):
        scaled(text)


def test_resize_by_the_command_line(tmp_path: Path) -> None:
    three = trio(tmp_path)
    for name, size in (("resize", "6M"), ("blockresize", "8MiB")):
        done = imgtool("-c", three.made.uri, name, "vm", "vda", size, "--extend")
        assert done.stdout == "Block device 'vda' is resized\n", done.stderr
    assert info(three.top)["virtual-size"] == 8 * MIB


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_says_how_far_and_how_long() -> None:
    clock, shown = Clock(), io.StringIO()
    progress = Progress(shown, clock)
    progress("vda", "merging into base", 0.0, 4 << 30)
    clock.now += 0.9
    progress("vda", "merging into base", 0.1, 4 << 30)
    assert shown.getvalue() == "", "what is short needs no line"
    clock.now += 9.1
    progress("vda", "merging into base", 0.25, 4 << 30)
    assert shown.getvalue() == "\r\x1b[Kvda: merging into base, 25 % of 4 GiB, 0:30 left"
    progress("vda", "merging into base", 0.26, 4 << 30)
    assert shown.getvalue().count("vda") == 1, "not faster than anybody reads"
    clock.now += 1
    progress("vdb", "pulling into top", 0.5, 0)
    clock.now += 1
    progress("vdb", "pulling into top", 0.6, 0)
    last = shown.getvalue().rpartition("\x1b[K")[2]
    both = "vda: merging into base, 26 % of 4 GiB, 0:34 left | vdb: pulling into top, 60 %, 0:01"
    assert last == both[:79], "cut to the width of the terminal"
    progress.clear()
    assert shown.getvalue().endswith("\r\x1b[K")


def long_commit(folder: Path) -> Trio:
    """Little data in tiny clusters, so that the commit takes seconds, and reading it does not."""
    folder.mkdir()
    size, tiny = 192 * MIB, Qcow2Features(cluster_size=512)
    base = make_image(folder / "base", size=size, features=tiny)
    top = make_image(
        folder / "top", size=size, features=tiny, backing=base, backing_format=Format.QCOW2
    )
    writes = [f"write -q -P {number + 1} {number * MIB} 1M" for number in range(192)]
    qemu_io(top, Format.QCOW2, *writes)
    made = domain(folder, disk(top))
    return Trio(made=made, base=base, mid=top, top=top, guest=guest_bytes_digest(top, Format.QCOW2))


def wait_for(ready: Callable[[], bool], what: str) -> None:
    for _ in range(3000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")


def test_ctrl_c_in_a_long_commit(tmp_path: Path) -> None:
    three = long_commit(tmp_path / "long")
    leader, terminal = pty.openpty()
    words = ["-c", three.made.uri, "blockcommit", "vm", "vda", "--pivot", "--delete"]
    process = subprocess.Popen(
        [sys.executable, "-m", "imgtool", *words], stderr=terminal, stdout=subprocess.DEVNULL
    )
    os.close(terminal)
    wait_for(lambda: three.base.stat().st_blocks > 8 << 11, "8 MiB are merged")
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    merged = three.base.stat().st_blocks
    assert b"rolled back" in _rest(leader)
    three.assert_same()
    assert three.layers() == [three.base, three.top]
    assert not imgtool("-c", three.made.uri, "recover", "--list").stdout.count("will")
    again = imgtool(*words)
    assert again.returncode == 0, again.stderr
    assert merged < three.base.stat().st_blocks / 2, "it did not stop at once"
    three.assert_same()
    assert three.layers() == [three.base]


def test_a_timeout_rolls_back(tmp_path: Path) -> None:
    three = long_commit(tmp_path / "long")
    done = imgtool("-c", three.made.uri, "blockcommit", "vm", "vda", "--pivot", "--timeout", "1")
    assert done.returncode == 128 + signal.SIGALRM, done.stderr
    assert "rolled back" in done.stderr
    three.assert_same()
    assert named(three.made).source == three.top
    assert qemu_img("check", "-f", "qcow2", three.base)


def _rest(leader: int) -> bytes:
    shown = b""
    while True:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # its last user has gone
            os.close(leader)
            return shown
