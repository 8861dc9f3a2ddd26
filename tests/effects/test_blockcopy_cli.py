"""Copy jobs as their users type them: words, JSON, Ctrl-C, SIGKILL in the middle of a copy."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from imgtool.cli.main import main
from imgtool.model.image import Format
from imgtool.testing import MIB, guest_bytes_digest, make_image
from imgtool.testing.images import write_pattern
from tests.crash.command import Done, assert_refused, imgtool, start
from tests.crash.scenario import digest

from .asking import disk, domain, named
from .jobs import Trio, trio

PER_SECOND = "2M"  # bytes that a slow copy writes
SLOW = """\
#!/bin/sh
# The real one; it only copies no faster than this.
if [ "$1" = convert ]; then shift; exec {real} convert -r {rate} "$@"; fi
exec {real} "$@"
"""


def typed(capsys: pytest.CaptureFixture[str], three: Trio, *words: str) -> Done:
    """Run a command in this process, which is quicker."""
    code = main(["-c", three.made.uri, *words])
    shown = capsys.readouterr()
    return Done(args=list(words), returncode=code, stdout=shown.out, stderr=shown.err)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["blockcopy", "vm", "vda", "{to}/c", "--wait", "--verbose", "--pivot"], "ly pivoted"),
        (["blockcopy", "vm", "{top}", "--dest", "{to}/c", "--shallow", "--finish"], "ly copied"),
        (["blockcopy", "vm", "vda", "{to}/c", "raw", "--transient-job"], "in mirroring phase"),
        (["blockcopy", "vm", "--path", "vda", "--dest", "{to}/c", "--format", "raw"], "mirroring"),
        (["blockcopy", "vm", "--disk", "vda,dest={to}/a,,b,format=raw", "--pivot"], "pivoted"),
        (["blockcopy", "vm", "vda", "{to}/c", "--timeout", "90", "--async"], "mirroring phase"),
        (["blockjob", "vm", "vda"], "No current block job for vda"),
    ],
)
def test_what_is_typed_and_answered(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = trio(tmp_path)
    (tmp_path / "to").mkdir()
    places = {"to": str(tmp_path / "to"), "top": str(three.top)}
    done = typed(capsys, three, *(word.format(**places) for word in words))
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    three.assert_same()


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["blockcopy", "vm"], "no disk is named"),
        (["blockcopy", "vm", "vda"], "--dest is missing"),
        (["blockcopy", "vm", "vda", "{to}/c", "vmdk"], "raw or qcow2"),
        (["blockcopy", "vm", "vda", "{to}/c", "--pivot", "--finish"], "mutually exclusive"),
        (["blockcopy", "vm", "vdz", "{to}/c"], "no disk named 'vdz'"),
        (["blockcopy", "vm", "vda", "{top}"], "already exists"),
        (["blockcopy", "vm", "vda", "{to}/c", "--disk", "vda,dest={to}/d"], "is named twice"),
        (["blockcopy", "vm", "--disk", "vda,to={to}/d"], "unable to parse disk"),
        (["blockcopy", "vm", "--disk", "vda"], "unable to parse disk"),
        (["blockcopy", "vm", "vda", "{to}/c", "--timeout", "0"], "is no time"),
        (["blockjob", "vm"], "--path is missing"),
        (["blockjob", "vm", "vda", "--abort"], "no current block job for vda"),
        (["blockjob", "vm", "vda", "--pivot"], "no current block job for vda"),
        (["blockjob", "vm", "vda", "--pivot", "--info"], "mutually exclusive"),
        (["blockjob", "vm", "vdz"], "no disk named 'vdz'"),
    ],
)
def test_what_is_refused(
    words: list[str], about: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = trio(tmp_path)
    (tmp_path / "to").mkdir()
    places = {"to": str(tmp_path / "to"), "top": str(three.top)}
    before = digest(tmp_path)
    done = typed(capsys, three, *(word.format(**places) for word in words))
    assert_refused(done, 2, about)
    assert digest(tmp_path) == before


def test_json_and_what_virsh_would_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = trio(tmp_path)
    dest = tmp_path / "copy"
    words = ["--json", "blockcopy", "vm", "vda", str(dest), "--shallow"]

    def run(*words: str) -> str:
        return typed(capsys, three, *words).stdout

    planned = json.loads(run(*words, "--dry-run"))
    assert planned["jobs"][0]["phase"] == "planned"
    assert not dest.exists()
    done = json.loads(run(*words))
    assert done["domain"] == "vm"
    (facts,) = done["jobs"]
    assert (facts["target"], facts["phase"], facts["dest"]) == ("vda", "ready", str(dest))
    assert facts["bytes"] == facts["total"] > MIB
    assert (facts["format"], facts["backing"]) == ("qcow2", str(three.mid))
    job = ["blockjob", "vm", "vda"]
    assert json.loads(run("--json", *job)) == done
    shown = run(*job, "--info").splitlines()
    assert shown[0] == "Block Copy: [100.00 %]"
    assert shown[1].startswith("vda: ready, ")
    listed = json.loads(run("--json", "recover", "--list"))
    assert listed["jobs"] == [{"domain": "vm", "targets": ["vda"], "phase": "ready"}]
    assert listed["pending"] == []
    told = "vm: a copy job of vda is open, ready: "
    assert run("recover", "vm", "--list").startswith(told)
    recovered = typed(capsys, three, "recover")
    assert (recovered.returncode, told in recovered.stderr) == (0, True)
    assert " type=Block Copy" in run(*job, "--raw").splitlines()
    lines = run(*job, "--pivot", "--dry-run").splitlines()
    assert lines[1:] == [f"  vda: switch to {dest}", "  pivot: redefine vm"]
    assert run(*job, "--abort", "--pivot") == "Successfully pivoted\n"
    assert json.loads(run("--json", *job)) == {"domain": "vm", "jobs": []}
    assert three.layers() == [three.base, three.mid, dest]


def test_a_dry_run_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three = trio(tmp_path)
    words = ["--dry-run", "blockcopy", "vm", "vda", str(tmp_path / "c"), "--shallow", "--pivot"]
    lines = typed(capsys, three, *words).stdout.splitlines()
    assert lines[0] == "block copy of vm (nothing is begun):"
    assert lines[1].startswith(f"  vda: create {tmp_path / 'c'} (qcow2 over {three.mid}), up to ")
    assert lines[2:] == [f"  vda: switch to {tmp_path / 'c'}", "  pivot: redefine vm"]


def test_verbose_says_how_far_it_is_where_nobody_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    three = trio(tmp_path)
    done = typed(capsys, three, "blockcopy", "vm", "vda", f"{tmp_path}/c", "--verbose")
    assert done.returncode == 0
    said = done.stderr
    assert "vda: copying to c, 100 %\n" in said
    assert "vda: comparing c, 100 %\n" in said
    assert "\r" not in said
    assert typed(capsys, three, "blockcopy", "vm", "vda", f"{tmp_path}/c", "-q").stderr == ""


def test_help_says_that_it_always_waits() -> None:
    shown = " ".join(imgtool("blockcopy", "--help").stdout.split())
    assert "always copies until the job is ready" in shown
    assert "If it is killed, the job stays: the same command goes on with it" in shown


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trio:
    """A disk of 16 MiB, which takes 8 s to copy."""
    image = make_image(tmp_path / "image", Format.RAW, 16 * MIB)
    write_pattern(image, Format.RAW, 0, 16 * MIB, 7)
    made = domain(tmp_path, disk(image, Format.RAW))
    tools = tmp_path / "tools"
    tools.mkdir()
    script = tools / "qemu-img"
    script.write_text(SLOW.format(real=shutil.which("qemu-img"), rate=PER_SECOND))
    script.chmod(0o755)
    guest = guest_bytes_digest(image, Format.RAW)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return Trio(made=made, base=image, mid=image, top=image, guest=guest)


def begin(slow: Trio) -> subprocess.Popen[str]:
    """A copy of which a part is there."""
    process = start("-c", slow.made.uri, "blockcopy", "vm", "vda", dest(slow))
    folder = slow.top.parent

    def written() -> bool:
        return any(path.stat().st_blocks > 1 << 11 for path in folder.glob(".imgtool-*"))

    wait_for(lambda: written() or process.poll() is not None, "1 MiB is written")
    assert process.poll() is None, process.communicate()
    return process


def dest(slow: Trio) -> Path:
    return slow.top.parent / "copy"


def wait_for(ready: Callable[[], bool], what: str) -> None:
    for _ in range(3000):
        if ready():
            return
        time.sleep(0.01)
    raise AssertionError(f"never: {what}")


def kill_all(process: subprocess.Popen[str], folder: Path) -> None:
    """As when the machine dies: the command, and what it has started."""
    process.kill()
    process.communicate()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has just ended
            if f"{folder}/.imgtool-" in entry.read_bytes().decode(errors="replace"):
                os.kill(int(entry.parent.name), signal.SIGKILL)
    wait_for(lambda: not _locked(folder), "the lock is free")


def _locked(folder: Path) -> bool:
    lines = Path("/proc/locks").read_text().splitlines()
    inodes = {path.stat().st_ino for path in folder.glob("store/.imgtool/*/lock")}
    return any(f":{inode} " in line for line in lines for inode in inodes)


@pytest.mark.parametrize(
    ("words", "code"), [([], 128 + signal.SIGINT), (["--timeout", "1"], 128 + signal.SIGALRM)]
)
@pytest.mark.long
def test_who_stops_a_copy_leaves_nothing(words: list[str], code: int, slow: Trio) -> None:
    before = digest(slow.top.parent)
    if words:
        done = imgtool("-c", slow.made.uri, "blockcopy", "vm", "vda", dest(slow), *words)
        returned, said = done.returncode, done.stderr
    else:
        process = begin(slow)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        returned = process.returncode
    assert returned == code, said
    assert "rolled back" in said
    assert digest(slow.top.parent) == before


@pytest.mark.parametrize("way", ["abort", "again"])
@pytest.mark.long
def test_killed_in_the_middle_of_a_copy(way: str, slow: Trio) -> None:
    folder = slow.top.parent
    before = digest(folder)
    process = begin(slow)
    store = ["-c", slow.made.uri]
    busy = imgtool(*store, "blockcopy", "vm", "vda", dest(slow))
    assert_refused(busy, 3, "another imgtool is working on this domain")
    kill_all(process, folder)
    assert imgtool(*store, "recover").returncode == 0
    (facts,) = json.loads(imgtool(*store, "--json", "blockjob", "vm", "vda").stdout)["jobs"]
    assert facts["phase"] == "copying"
    assert MIB < facts["bytes"] < facts["total"] == 16 * MIB
    shown = imgtool(*store, "blockjob", "vm", "vda").stdout
    assert shown.startswith("Block Copy: [")
    assert "vda: copying, " in shown
    early = imgtool(*store, "blockjob", "vm", "vda", "--pivot")
    assert_refused(early, 3, "not ready for pivot yet")
    other = imgtool(*store, "snapshot-create-as", "vm", "s1", "--disk-only")
    assert_refused(other, 3, "disk 'vda' already in active block job")
    assert not dest(slow).exists()
    (staged,) = folder.glob(".imgtool-*")
    assert imgtool(*store, "gc", "vm", "--force").returncode == 0
    assert staged.exists(), "gc has taken what a job needs"
    assert "note: vm: vda: a copy job" in imgtool(*store, "check", "vm").stdout
    if way == "abort":
        done = imgtool(*store, "blockjob", "vm", "vda", "--abort")
        assert done.stdout == "Job aborted: no copy is left\n", done.stderr
        assert digest(folder) == before
        return
    (slow.top.parent / "tools/qemu-img").unlink()  # fast again
    done = imgtool(*store, "blockcopy", "vm", "vda", dest(slow), "--pivot")
    assert done.returncode == 0, done.stderr
    assert "going on with the copy job of vda" in done.stderr
    assert guest_bytes_digest(dest(slow), Format.RAW) == slow.guest
    assert list(folder.glob(".imgtool-*")) == []
    assert named(slow.made).source == dest(slow)
