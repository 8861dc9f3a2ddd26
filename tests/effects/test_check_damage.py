"""Whatever is damaged, check and gc end in findings, never in an error of their own."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from imgtool.cli.main import main
from imgtool.testing import make_three_disks
from tests.effects.breaking import snapshot

TRIALS = 60
COMMANDS = (["check", "--all", "--quick"], ["check", "vm", "--quick"], ["gc", "--all", "--dry-run"])
WORDS = (b"vm-vda", b"e1", b"qcow2", b"external", b"0")


def damage(path: Path, chance: random.Random) -> None:
    """Cut it short, flip bytes of it, swap words in it, or replace it."""
    data = bytearray(path.read_bytes())
    how = chance.randrange(4)
    if how == 0:
        del data[chance.randrange(len(data) + 1) :]
    elif how == 1 and data:
        for _ in range(chance.choice([1, 3, 30])):
            data[chance.randrange(min(len(data), chance.choice([120, 400000])))] ^= 0x55
    elif how == 2:
        word = chance.choice(WORDS)
        data = data.replace(word, chance.choice([b"", word * 2, b"i1", b"../a"]), 1)
    else:
        data = bytearray(chance.randbytes(200))
    path.write_bytes(data)


def test_damage_is_told_in_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, template = tmp_path / "store", tmp_path / "template"
    folder.mkdir()
    made = make_three_disks(folder)
    snapshot(made, "e1")
    snapshot(made, "i1", disk_only=False)
    snapshot(made, "e2")
    folder.rename(template)
    codes = set()
    for seed in range(TRIALS):
        chance = random.Random(seed)
        shutil.copytree(template, folder)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in chance.sample(files, chance.choice([1, 1, 2, 4])):
            if path.suffix != ".raw":
                damage(path, chance)
        codes.add(code := main(["-c", made.uri, *chance.choice(COMMANDS)]))
        said = "".join(capsys.readouterr())
        assert code in (0, 1), (seed, said)
        assert "imgtool itself" not in said, (seed, said)
        shutil.rmtree(folder)
    assert codes == {0, 1}
