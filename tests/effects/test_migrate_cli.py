"""Migration as its users type it: words, JSON, Ctrl-C, a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool import api
from imgtool.engine.interrupt import Interrupt
from imgtool.host.files import Files
from imgtool.model.errors import FailedError, Interrupted
from imgtool.model.image import Format
from imgtool.testing import MIB, MadeDomain, make_image, write_pattern
from tests.crash.command import assert_refused, imgtool
from tests.crash.scenario import digest

from .asking import disk, domain, named
from .moves import layer, twig


@pytest.fixture
def new(tmp_path: Path) -> Path:
    folder = tmp_path / "new"
    folder.mkdir()
    return folder


def test_what_is_said(tmp_path: Path, new: Path) -> None:
    made = twig(tmp_path)
    words = ["-c", made.uri, "migrate", "vm", "--to", str(new)]
    planned = imgtool(*words, "--dry-run").stdout.splitlines()
    assert planned[0] == f"migration of vm to {new} (nothing is begun):"
    assert f"  vda: copy {tmp_path}/golden/base.raw to {new}/base.raw ({MIB} bytes)" in planned
    assert "  pivot: redefine vm" in planned
    assert "  record snapshot one" in planned
    done = imgtool(*words)
    assert done.stdout == f"Domain 'vm' migrated to {new}\n", done.stderr
    assert imgtool(*words).stdout == "Nothing to do\n"


def test_json(tmp_path: Path, new: Path) -> None:
    made = twig(tmp_path)
    words = ["-c", made.uri, "--json", "migrate", "vm", "--to", str(new), "--disk", "vda"]
    planned = json.loads(imgtool(*words, "--dry-run").stdout)
    assert {step["kind"] for step in planned["plan"]} == {"CopyLayer", "PutRecord"}
    done = json.loads(imgtool(*words).stdout)
    assert done["domain"] == "vm"
    assert done["transaction"]
    assert done["to"] == str(new)
    (facts,) = done["disks"]
    assert facts["target"] == "vda"
    assert facts["source"].startswith(f"{tmp_path}/images/a.")
    assert Path(facts["dest"]) == new / Path(facts["source"]).name
    assert facts["layers"] == len(list(new.iterdir())) == len(done["kept"])
    assert facts["bytes"] > 0
    assert done["dropped"] == []


@pytest.mark.parametrize(
    ("words", "code", "about"),
    [
        ([], 2, "--to"),
        (["--to", "{folder}/none"], 2, "no such folder"),
        (["--to", "{folder}", "--disk", "vdz"], 2, "no disk named 'vdz'"),
    ],
)
def test_what_is_refused(words: list[str], code: int, about: str, tmp_path: Path) -> None:
    made = domain(tmp_path, disk(layer(tmp_path / "top", 1)))
    before = digest(tmp_path)
    wanted = [word.format(folder=tmp_path) for word in words]
    assert_refused(imgtool("-c", made.uri, "migrate", "vm", *wanted), code, about)
    assert digest(tmp_path) == before


class StoppedFiles(Files):
    """Something happens as soon as a part of the first disk is copied."""

    def __init__(self, happens: Callable[[], None]) -> None:
        self._happens = happens

    def copy(
        self,
        source: Path,
        destination: Path,
        *,
        watch: Callable[[int], None],
        check: Callable[[], None],
        done: int = 0,
        compare: bool = False,
    ) -> bool:
        def told(count: int) -> None:
            watch(count)
            self._happens()

        return super().copy(
            source, destination, watch=told, check=check, done=done, compare=compare
        )


def large(folder: Path) -> MadeDomain:
    """More than is copied between two looks at whether to stop."""
    image = make_image(folder / "large.raw", Format.RAW, 12 * MIB)
    write_pattern(image, Format.RAW, 0, 12 * MIB, 1)
    return domain(folder, disk(image, Format.RAW))


def test_ctrl_c_half_way(tmp_path: Path, new: Path) -> None:
    made, interrupt = large(tmp_path), Interrupt()
    before = digest(tmp_path)
    files = StoppedFiles(lambda: interrupt.deliver(signal.SIGINT))
    with pytest.raises(Interrupted) as raised:
        with api.open_world(made.uri, files=files, interrupt=interrupt) as world:
            api.migrate(world, "vm", api.MigrateOptions(to=new))
    assert raised.value.exit_code == 130
    assert "rolled back" in raised.value.message
    assert digest(tmp_path) == before


def test_killed_half_way(tmp_path: Path, new: Path) -> None:
    made = large(tmp_path)
    before = digest(tmp_path)
    if (child := os.fork()) == 0:
        try:
            files = StoppedFiles(lambda: os.kill(os.getpid(), signal.SIGKILL))
            with api.open_world(made.uri, files=files) as world:
                api.migrate(world, "vm", api.MigrateOptions(to=new))
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    (left,) = new.iterdir()
    assert left.name.startswith(".imgtool-")
    assert imgtool("-c", made.uri, "recover", "vm").returncode == 0
    assert digest(tmp_path) == before
    assert imgtool("-c", made.uri, "migrate", "vm", "--to", new).returncode == 0
    assert named(made).source == new / "large.raw"


class FullFiles(Files):
    """No space for vdb; vda takes for ever, unless it is told to stop."""

    def copy(
        self,
        source: Path,
        destination: Path,
        *,
        watch: Callable[[int], None],
        check: Callable[[], None],
        done: int = 0,
        compare: bool = False,
    ) -> bool:
        if source.name == "two":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))
        while True:
            check()
            time.sleep(0.01)


def test_one_that_fails_stops_the_others(tmp_path: Path, new: Path) -> None:
    one, two = layer(tmp_path / "one", 1), layer(tmp_path / "two", 2)
    made = domain(tmp_path, disk(one), disk(two, target="vdb"))
    before = digest(tmp_path)
    with pytest.raises(FailedError, match=r"^vdb: .*/new/two: No space left") as raised:
        with api.open_world(made.uri, files=FullFiles(), jobs=2) as world:
            api.migrate(world, "vm", api.MigrateOptions(to=new))
    assert raised.value.remedy == "free some space there"
    assert digest(tmp_path) == before


def test_progress_counts_all_layers_of_a_disk(tmp_path: Path, new: Path) -> None:
    base = layer(tmp_path / "base", 1)
    made = domain(tmp_path, disk(layer(tmp_path / "top", 2, base)))
    told: list[tuple[str, str, float, int]] = []
    with api.open_world(made.uri, jobs=1, progress=lambda *facts: told.append(facts)) as world:
        api.migrate(world, "vm", api.MigrateOptions(to=new))
    assert {(target, what) for target, what, _share, _size in told} == {
        ("vda", f"copying to {new}")
    }
    shares = [share for _target, _what, share, _size in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert {size for *_, size in told} == {base.stat().st_size + (new / "top").stat().st_size}
