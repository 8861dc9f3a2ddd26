"""qemu-img compare, and whether it is understood: with somebody who watches, and without."""

from __future__ import annotations

from pathlib import Path

import pytest

from imgtool.host.qemu_img import QemuImg
from imgtool.model.errors import QemuImgError
from imgtool.model.image import Format
from imgtool.model.plan import Node
from imgtool.testing import MIB, make_image, write_pattern


@pytest.mark.parametrize("watched", [False, True], ids=["alone", "watched"])
def test_whether_a_guest_reads_the_same(watched: bool, tmp_path: Path) -> None:
    told: list[float] = []
    watch = told.append if watched else None
    one, other = make_image(tmp_path / "one"), make_image(tmp_path / "other", Format.RAW)
    nodes = Node(path=one, format=Format.QCOW2), Node(path=other, format=Format.RAW)
    for path, fmt in ((one, Format.QCOW2), (other, Format.RAW)):
        write_pattern(path, fmt, MIB, MIB, 7)
    assert QemuImg().same_content(*nodes, watch)
    assert bool(told) is watched
    write_pattern(other, Format.RAW, 7 * MIB, 512, 1)
    assert not QemuImg().same_content(*nodes, watch)
    other.unlink()
    with pytest.raises(QemuImgError, match=r"compare: .*No such file"):
        QemuImg().same_content(*nodes, watch)
