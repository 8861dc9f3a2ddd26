"""However a command ends, it ends in an exit code and at most one sentence: never a traceback."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.cli import main as cli
from imgtool.testing.domains import MadeDomain, make_domain

ROOT = Path(__file__).parents[2]
COMMANDS = [
    ["list"],
    ["list", "--json"],
    ["dumpxml", "vm"],
    ["snapshot-list", "vm"],
    ["list", "--help"],
    ["--help"],
    ["recover", "--list"],
]


@pytest.fixture
def made(tmp_path: Path) -> MadeDomain:
    return make_domain(tmp_path, "vm", [])


def start(
    made: MadeDomain,
    *argv: str,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "imgtool", "-c", made.uri, *argv]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdin=stdin, stdout=stdout, stderr=stderr)


def told(process: subprocess.Popen[bytes]) -> str:
    """What it said on stderr until it ended."""
    _, errors = process.communicate(timeout=60)
    text = errors.decode()
    assert "Traceback" not in text
    assert "Exception" not in text
    return text


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_a_full_disk_under_stdout_is_exit_1(argv: list[str], made: MadeDomain) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(made, *argv, stdout=full.fileno(), stderr=subprocess.PIPE)
        text = told(process)
    assert process.returncode == 1
    assert "--help" in argv or "standard output: No space left on device" in text


@pytest.mark.parametrize("argv", COMMANDS, ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(argv: list[str], made: MadeDomain) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = start(made, *argv, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert told(process) == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_full_disk_under_stderr_does_not_change_what_is_true(made: MadeDomain) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(made, "dumpxml", "nobody", stdout=subprocess.PIPE, stderr=full.fileno())
        assert process.communicate(timeout=60)[0] == b""
    assert process.returncode == 2


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed: str, made: MadeDomain) -> None:
    """The next file that is opened must not be taken for one of them."""
    line = f'"$0" -m imgtool -c "$1" "$2" vm {closed}'
    for command, code in (("snapshot-list", 0), ("snapshot-info", 2), ("undefine", 0)):
        done = subprocess.run(
            ["sh", "-c", line, sys.executable, made.uri, command],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert list(made.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_while_waiting_for_stdin(
    signum: signal.Signals, code: int, made: MadeDomain
) -> None:
    reader, writer = os.pipe()
    process = start(made, "define", "-", stdin=reader, stderr=subprocess.PIPE)
    os.write(writer, b"<domain>")
    _until(lambda: _unread(writer) == 0)  # it has read that, and waits for more
    process.send_signal(signum)
    assert "nothing was begun" in told(process)
    assert process.returncode == code
    os.close(reader)
    os.close(writer)


# Python's own start is not ours to keep quiet: the signal comes after its first line.
RUN = """
import os, signal, sys
from imgtool.__main__ import run
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.write(1, b"ready")
sys.exit(run())
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_is_quiet(signum: signal.Signals, made: MadeDomain) -> None:
    """Before imgtool is up to it, and after its work, the signal just kills."""
    codes = set()
    for number in range(12):
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, "-c", made.uri, "-q", "snapshot-list", "vm"],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.read(5) == b"ready"
        time.sleep(0.015 * number)
        process.send_signal(signum)
        told(process)
        codes.add(process.returncode)
    assert codes <= {0, 128 + signum, -signum}


def _until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.02)


def _unread(pipe: int) -> int:
    """Bytes in it."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize(
    ("failure", "sentence"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/s\x1b"),
            "/s\\x1b: Permission denied",
        ),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("odd"), "odd"),
        (KeyError("x"), "an error in imgtool itself: KeyError: 'x' (test_cli_ends.py, line"),
        (RecursionError("deep"), "an error in imgtool itself: RecursionError: deep"),
    ],
    ids=repr,
)
def test_what_nobody_foresaw_is_one_sentence(
    failure: Exception,
    sentence: str,
    options: list[str],
    made: MadeDomain,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_arguments: object) -> int:
        raise failure

    monkeypatch.setattr("imgtool.cli.domains.run", fail)
    assert cli.main(["-c", made.uri, *options, "list"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {sentence}")
    assert "Traceback" not in captured.err
    assert "\x1b" not in captured.err
    assert bool(options) == bool(captured.out)
    if options:
        assert set(json.loads(captured.out)["error"]) == {"type", "message", "remedy"}


def test_a_signal_in_the_making_of_a_class_is_a_signal(
    made: MadeDomain, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every enum runs __set_name__ when it is imported, and Python 3.11 wraps what that raises."""

    class Late:
        def __set_name__(self, owner: type, name: str) -> None:
            signal.raise_signal(signal.SIGTERM)

    def imports(*_arguments: object) -> int:
        type("Word", (), {"late": Late()})
        return 0

    monkeypatch.setattr("imgtool.cli.domains.run", imports)
    assert cli.main(["-c", made.uri, "list"]) == 143
    assert "SIGTERM" in capsys.readouterr().err


def test_a_state_folder_that_is_no_folder_is_said(
    made: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-c", made.uri, "--state-dir", str(made.xml), "undefine", "vm"]) == 1
    assert str(made.xml) in capsys.readouterr().err
    assert made.xml.exists()


def test_signal_handlers_do_not_outlive_the_command(made: MadeDomain) -> None:
    before = [signal.getsignal(signum) for signum in cli.SIGNALS]
    assert cli.main(["-c", made.uri, "-q", "list"]) == 0
    assert [signal.getsignal(signum) for signum in cli.SIGNALS] == before


def test_xml_on_a_terminal_cannot_steer_it(made: MadeDomain) -> None:
    text = made.xml.read_text().replace("which stays", "\u009b2J\u202e")
    made.xml.write_text(text)
    leader, terminal = pty.openpty()
    process = start(made, "dumpxml", "vm", stdout=terminal)
    os.close(terminal)
    shown = b""
    while select.select([leader], [], [], 30)[0]:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # its last user has gone
            break
    os.close(leader)
    assert process.wait(60) == 0
    assert "&#x9b;2J&#x202e;" in shown.decode()


def test_reading_loads_no_program_runner_and_no_libvirt(made: MadeDomain) -> None:
    """In modules, not in seconds, which depend on what else the machine does."""
    program = (
        "import sys; from imgtool.cli.main import main; code = main(sys.argv[1:]);"
        "print(code, *sorted({'sh', 'libvirt', 'asyncio', 'subprocess'} & set(sys.modules)))"
    )
    for command in (["list"], ["snapshot-list", "vm"], ["domblklist", "vm"], ["chain", "vm"]):
        done = subprocess.run(
            [sys.executable, "-c", program, "-c", made.uri, "-q", *command],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "0", command
