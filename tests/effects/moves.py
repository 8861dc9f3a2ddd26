"""Domains with trees of images, moved to another folder, and what must be true of them then."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imgtool import api
from imgtool.host.headers import read_image
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Format
from imgtool.testing import KIB, MIB, MadeDomain, guest_bytes_digest, make_image, write_pattern
from imgtool.xml.domain import parse_domain
from tests.crash.scenario import digest

from .asking import E, disk, domain, qemu_img, take

SIZE = MIB


def migrate(made: MadeDomain, to: Path, said: list[str] | None = None, **how: Any) -> Any:
    """As the command does; `how` are MigrateOptions, `said` collects the notes."""
    notes: list[str] = [] if said is None else said
    with api.open_world(made.uri, say=notes.append) as world:
        return api.migrate(world, made.name, api.MigrateOptions(to=to, **how))


def refuses(root: Path, made: MadeDomain, to: Path, kind: type[E], *says: str, **how: Any) -> E:
    """It is refused with this type and these words, and nothing changes below `root`."""
    before = digest(root)
    with pytest.raises(ImgtoolError) as raised:
        migrate(made, to, **how)
    error = raised.value
    assert digest(root) == before, f"something was written: {error!r}"
    assert type(error) is kind, repr(error)
    assert isinstance(error, kind)
    assert error.remedy, error
    for word in says:
        assert word in error.message, error.message
    return error


def layer(path: Path, byte: int, base: str | Path = "", base_format: Format = Format.QCOW2) -> Path:
    """An image with a KiB of its own; raw if its name says so."""
    fmt = Format.RAW if path.suffix == ".raw" else Format.QCOW2
    if base:
        make_image(path, fmt, SIZE, backing=base, backing_format=base_format)
    else:
        make_image(path, fmt, SIZE)
    write_pattern(path, fmt, byte * 64 * KIB, KIB, byte)
    return path


def tree(folder: Path, *, relative: bool = True) -> MadeDomain:
    """Two disks over one base, in two folders; three snapshots; two branches of the first disk.

    base <- a.qcow2 <- a.one <- a.two <- a.three, base <- b.qcow2 ..., and a.one <- a.one.one-1.
    """
    images, golden = folder / "images", folder / "golden"
    for each in (images, golden):
        each.mkdir()
    base = layer(golden / "base.raw", 1)
    named = os.path.relpath(base, images) if relative else base
    tops = [layer(images / f"{name}.qcow2", 2, named, Format.RAW) for name in "ab"]
    made = domain(folder, *(disk(top, target=f"vd{top.stem}") for top in tops))
    for number, name in enumerate(("one", "two", "three"), start=3):
        take(made, name=name, disk_only=True, relative=relative)
        guest_writes(made, number)
    with api.open_world(made.uri) as world:
        api.revert_to(world, made.name, "two", api.RevertOptions(keep_as="left"))
    guest_writes(made, 9)
    take(made, name="inside")
    guest_writes(made, 10)
    return made


def twig(folder: Path) -> MadeDomain:
    """Less of the same: base.raw <- a.qcow2 <- a.one, in two folders."""
    images, golden = folder / "images", folder / "golden"
    for each in (images, golden):
        each.mkdir()
    top = layer(images / "a.qcow2", 2, layer(golden / "base.raw", 1), Format.RAW)
    made = domain(folder, disk(top))
    take(made, name="one", disk_only=True)
    guest_writes(made, 3)
    return made


def guest_writes(made: MadeDomain, byte: int) -> None:
    with api.open_world(made.uri) as world:
        for chain in api.chains(world, made.name).values():
            write_pattern(chain.active.path, chain.active.format, byte * 64 * KIB, KIB, byte)


def shown(made: MadeDomain) -> dict[str, str]:
    """What a guest reads, now and at every snapshot: of each disk, by QEMU itself."""
    found = {}
    for what, target, path, fmt in named_images(made):
        tags = read_image(path.resolve(), fmt).snapshots if fmt is Format.QCOW2 else ()
        found[f"{what} {target}"] = guest_bytes_digest(path, fmt)
        for tag in tags:
            digest_ = guest_bytes_digest(path, fmt, snapshot_id=tag.id)
            found[f"{what} {target} {tag.tag}"] = digest_
    return found


def named_images(made: MadeDomain) -> Iterator[tuple[str, str, Path, Format]]:
    """Every image that the domain's XML or a snapshot's names."""
    with api.open_world(made.uri) as world:
        documents = [("now", world.store.head(made.name).xml)]
        documents += [(each.name, each.domain_xml) for each in api.snapshots(world, made.name)]
    for what, xml in documents:
        for each in parse_domain(xml).disks:
            assert each.source is not None
            assert each.format is not None
            yield what, each.target, each.source, each.format


def sources(made: MadeDomain) -> set[Path]:
    """Every path that the domain's XML, its snapshots' or their own disks name."""
    found = {path for _what, _target, path, _fmt in named_images(made)}
    with api.open_world(made.uri) as world:
        for snapshot in api.snapshots(world, made.name):
            for part in (*snapshot.disks, *snapshot.revert_disks):
                if part.source:
                    found.add(Path(part.source))
    return found


def backings(folder: Path) -> dict[str, str | None]:
    """What each qcow2 in a folder names as its base."""
    return {
        path.name: read_image(path, Format.QCOW2).backing
        for path in sorted(folder.iterdir())
        if path.suffix != ".raw"
    }


def whole(folder: Path) -> None:
    """Every image there is sound by itself, and no other file is there."""
    for path in folder.iterdir():
        if path.suffix != ".raw":
            qemu_img("check", "-f", "qcow2", path)
