"""A base of such a name is found by the programs that we start, and by no other."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from imgtool.host.handed import handed_on
from imgtool.host.qemu_img import QemuImg
from imgtool.model.errors import QemuImgError
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, make_image, read_pattern, write_pattern


def test_only_our_own_programs_can_open_it(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    make_image(tmp_path / "below" / "raw", Format.RAW, MIB)
    base = make_image(tmp_path / "base", size=MIB, backing="below/raw", backing_format=Format.RAW)
    with handed_on(base) as name:
        assert QemuImg().check(Path(name), Format.QCOW2).errors == 0  # opens what is below, too
        stranger = subprocess.run(
            ["qemu-img", "check", "-q", "-f", "qcow2", name], capture_output=True, check=False
        )
    assert b"No such file" in stranger.stderr
    with pytest.raises(QemuImgError):
        QemuImg().check(Path(name), Format.QCOW2)


def test_an_empty_file_stands_for_no_base(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base", Format.RAW, MIB)
    write_pattern(base, Format.RAW, 0, 64 * KIB, 7)
    image = make_image(tmp_path / "image", size=MIB, backing="base", backing_format=Format.RAW)
    with handed_on(None) as name:
        QemuImg().rebase(image, name, Format.RAW)
    QemuImg().rebase(image, "", None, unsafe=True)
    base.unlink()
    shown = read_pattern(image, Format.QCOW2, 0, MIB)
    assert shown == bytes([7]) * (64 * KIB) + bytes(MIB - 64 * KIB)
