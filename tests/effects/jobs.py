"""Domains with a chain of three layers, and what must be true of them after a block job."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, MadeDomain, guest_bytes_digest, make_image, write_pattern
from tests.crash.scenario import digest

from .asking import E, chain, disk, domain, named, qemu_img

SIZE = 4 * MIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Trio:
    """vda: base <- mid <- top, each with data of its own."""

    made: MadeDomain
    base: Path
    mid: Path
    top: Path
    guest: str  # sha256 of what the guest sees

    def layers(self) -> list[Path]:
        """What QEMU itself opens now, base first."""
        source = named(self.made)
        assert source.source is not None
        return [Path(name) for name in reversed(chain(source.source, source.format_name))]

    def assert_same(self) -> None:
        """The guest sees what it saw, and every image is whole."""
        source = named(self.made)
        assert source.source is not None
        assert source.format is not None
        assert guest_bytes_digest(source.source, source.format) == self.guest
        for path in (self.base, self.mid, self.top):
            if path.exists() and path.suffix != ".raw":
                assert qemu_img("check", "-f", "qcow2", path)


def trio(folder: Path, fmt: Format = Format.QCOW2, *, relative: bool = False) -> Trio:
    """The domain; its images are in `folder`/images."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    base = make_image(images / f"base.{fmt}", fmt, SIZE)
    mid, top = images / "mid.qcow2", images / "top.qcow2"
    make_image(mid, Format.QCOW2, SIZE, backing=base.name if relative else base, backing_format=fmt)
    below = mid.name if relative else mid
    make_image(top, Format.QCOW2, SIZE, backing=below, backing_format=Format.QCOW2)
    for number, path in enumerate((base, mid, top)):
        kind = fmt if path == base else Format.QCOW2
        write_pattern(path, kind, number * 512 * KIB, MIB, 0x11 * (number + 1))
    made = domain(folder, disk(top))
    guest = guest_bytes_digest(top, Format.QCOW2)
    return Trio(made=made, base=base, mid=mid, top=top, guest=guest)


def _hearing(said: list[str] | None) -> Callable[[str], None] | None:
    return None if said is None else said.append


def commit(made: MadeDomain, *disks: str, said: list[str] | None = None, **how: Any) -> Any:
    with api.open_world(made.uri, say=_hearing(said)) as world:
        return api.block_commit(world, made.name, disks or ["vda"], api.CommitOptions(**how))


def pull(made: MadeDomain, *disks: str, said: list[str] | None = None, **how: Any) -> Any:
    with api.open_world(made.uri, say=_hearing(said)) as world:
        return api.block_pull(world, made.name, disks or ["vda"], api.PullOptions(**how))


def resize(made: MadeDomain, size: int | None, **how: Any) -> Any:
    with api.open_world(made.uri) as world:
        return api.resize(world, made.name, "vda", api.ResizeOptions(size=size, **how))


def rebase(made: MadeDomain, *, said: list[str] | None = None, **how: Any) -> Any:
    with api.open_world(made.uri, say=_hearing(said)) as world:
        return api.rebase(world, made.name, "vda", api.RebaseOptions(**how))


def refuses(root: Path, kind: type[E], *says: str, job: Any, **how: Any) -> E:
    """A job is refused with this type and these words, and nothing changes below `root`."""
    before = digest(root)
    with pytest.raises(ImgtoolError) as raised:
        job(**how)
    error = raised.value
    assert digest(root) == before, f"something was written: {error!r}"
    assert type(error) is kind, repr(error)
    assert isinstance(error, kind)
    assert error.remedy, error
    for word in says:
        assert word in error.message, error.message
    return error


def move_folder(three: Trio, target: Path) -> Trio:
    """As somebody would by hand, who then only mends the domain XML."""
    shutil.move(three.base.parent, target)
    xml = three.made.xml
    old, new = os.fspath(three.base.parent), os.fspath(target)
    xml.write_text(xml.read_text().replace(old, new))
    return Trio(
        made=three.made,
        base=target / three.base.name,
        mid=target / three.mid.name,
        top=target / three.top.name,
        guest=three.guest,
    )
