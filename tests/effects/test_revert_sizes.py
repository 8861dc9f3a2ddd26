"""Reverts to internal snapshots of another size, out of an image that others build on."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from imgtool import api
from imgtool.model.errors import UnsupportedError
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, MadeDomain, make_image, qemu_io, write_pattern
from tests.crash.scenario import digest

from .asking import disk, domain, external, info, internal, named, qemu_img, take
from .jobs import resize


def grown(folder: Path) -> tuple[MadeDomain, Path]:
    """vda with tags inside: one of 1 MiB (small), one of 3 MiB (large), with data at their ends."""
    image = make_image(folder / "vda.qcow2", Format.QCOW2, MIB)
    made = domain(folder, disk(image))
    write_pattern(image, Format.QCOW2, MIB - 64 * KIB, 64 * KIB, 0x11)
    take(made, internal(), name="small")
    resize(made, 3 * MIB)
    write_pattern(image, Format.QCOW2, 3 * MIB - 64 * KIB, 64 * KIB, 0x33)
    take(made, internal(), name="large")
    return made, image


def revert(made: MadeDomain, name: str) -> None:
    with api.open_world(made.uri) as world:
        api.revert_to(world, made.name, name, api.RevertOptions(force=True))


def shows(made: MadeDomain, image: Path, size: int, byte: int) -> None:
    """A copy of `image`, of that size, with `byte` at its end."""
    now = named(made).source
    assert now is not None
    assert now != image
    assert info(now)["virtual-size"] == size
    qemu_io(now, Format.QCOW2, f"read -q -P {byte} {size - 64 * KIB} {64 * KIB}")
    assert qemu_img("check", "-f", "qcow2", now)


def test_a_disk_that_has_grown_since_is_small_again(tmp_path: Path) -> None:
    made, image = grown(tmp_path)
    take(made, external(), name="s")
    revert(made, "small")
    shows(made, image, MIB, 0x11)


def test_a_disk_that_is_smaller_now_is_not_cut(tmp_path: Path) -> None:
    """qemu-img reads of an internal snapshot only what is not beyond the image's present end."""
    made, image = grown(tmp_path)
    revert(made, "small")
    take(made, external(), name="s")
    before = digest(tmp_path)
    with pytest.raises(UnsupportedError, match=f"had {3 * MIB} bytes") as refused:
        revert(made, "large")
    assert digest(tmp_path) == before
    subprocess.run(shlex.split(refused.value.remedy.partition(": ")[2]), check=True)
    revert(made, "large")
    shows(made, image, 3 * MIB, 0x33)
