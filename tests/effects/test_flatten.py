"""Flattening any chain shows the guest what it saw, and reads no more than what is there."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.model.image import Format, Qcow2Features
from imgtool.testing import KIB, MIB, guest_bytes_digest, make_image
from imgtool.testing.images import qemu_io

from .asking import disk, domain, info, qemu_img
from .jobs import pull

WRITES = ("write -q -P {byte}", "write -q -z", "write -q -z -u", "discard -q")


@st.composite
def layers(draw: st.DrawFn) -> list[tuple[int, int, list[str]]]:
    """Of each layer, base first: its size in MiB, its cluster size in KiB, and what wrote it."""
    made = []
    for _ in range(draw(st.integers(2, 4))):
        size = draw(st.integers(1, 5))
        commands = []
        for _ in range(draw(st.integers(0, 4))):
            start = draw(st.integers(0, 16 * size - 1))  # in 64 KiB
            length = draw(st.integers(1, 16 * size - start))
            command = draw(st.sampled_from(WRITES)).format(byte=draw(st.integers(1, 255)))
            commands.append(f"{command} {start * 64 * KIB} {length * 64 * KIB}")
        made.append((size, draw(st.sampled_from([4, 64, 512])), commands))
    return made


@settings(max_examples=25, deadline=None)
@given(layers())
def test_any_chain(drawn: list[tuple[int, int, list[str]]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        top: Path | None = None
        for number, (size, cluster, commands) in enumerate(drawn):
            path = folder / f"{number}.qcow2"
            features = Qcow2Features(cluster_size=cluster * KIB)
            top = make_image(
                path,
                Format.QCOW2,
                size * MIB,
                features=features,
                backing=top,
                backing_format=None if top is None else Format.QCOW2,
            )
            if commands:
                qemu_io(path, Format.QCOW2, *commands)
        assert top is not None
        before = guest_bytes_digest(top, Format.QCOW2)
        made = domain(folder, disk(top))
        pull(made)
        assert "backing-filename" not in info(top)
        assert guest_bytes_digest(top, Format.QCOW2) == before
        assert qemu_img("check", "-f", "qcow2", top)


@pytest.mark.timeout(100)
def test_what_no_layer_has_is_not_read(tmp_path: Path) -> None:
    """Of 2 TiB, qemu-img alone would read all, for five minutes."""
    size = 2 << 40
    base = make_image(tmp_path / "base.qcow2", Format.QCOW2, size)
    qemu_io(base, Format.QCOW2, f"write -q -P 7 {size // 2} {MIB}")
    top = make_image(
        tmp_path / "top.qcow2", Format.QCOW2, size, backing=base, backing_format=Format.QCOW2
    )
    made = domain(tmp_path, disk(top))
    pull(made)
    base.unlink()
    qemu_io(top, Format.QCOW2, f"read -q -P 7 {size // 2} {MIB}", f"read -q -P 0 0 {MIB}")
