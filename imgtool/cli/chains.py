"""imgtool chain: the backing chains of a domain, as a picture or as JSON."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from imgtool.cli.arguments import Parser
from imgtool.cli.context import Context
from imgtool.cli.main import parse
from imgtool.cli.visible import visible_line
from imgtool.model.errors import ImgtoolError
from imgtool.model.image import Chain, Image

if TYPE_CHECKING:
    from imgtool.engine.world import World
    from imgtool.model.domain import Domain

WIDTH = 79  # columns
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


@dataclass(frozen=True, slots=True)
class Found:
    """What became of looking at one disk."""

    target: str
    chain: Chain | None
    error: ImgtoolError | None = None


def run(_command: str, parser: Parser, argv: list[str], context: Context) -> int:
    """`chain DOMAIN [--disk TARGET]...`.

    A chain that cannot be read is an error if its disk was named. Else it is told in its place,
    and the others are shown.
    """
    parser.data("domain", "name, UUID, or path of a domain's XML file", required=True)
    parser.rest("disk", "target of a disk, as domblklist has it; default: every disk")
    options = parse(parser, argv, context)
    with context.world(options.domain) as (world, name):
        domain = world.store.head(name).domain
        found = _named(world, domain, options.disk) if options.disk else _all(world, domain)
    facts = {"domain": domain.name, "disks": [_facts(each) for each in found]}
    return context.answer(facts, lambda: "\n\n".join(map(picture, found)), data=True)


def _named(world: World, domain: Domain, targets: list[str]) -> list[Found]:
    from imgtool import api

    chains = api.chains(world, domain.name, targets)
    return [Found(target, chain) for target, chain in chains.items()]


def _all(world: World, domain: Domain) -> list[Found]:
    from imgtool import api

    found = []
    for disk in domain.disks:
        if disk.device not in ("disk", "lun") or disk.empty:
            continue
        try:
            chain = api.chains(world, domain.name, [disk.target])[disk.target]
        except ImgtoolError as error:
            found.append(Found(disk.target, None, error))
        else:
            found.append(Found(disk.target, chain))
    return found


def _facts(found: Found) -> dict[str, Any]:
    if found.chain is None:
        error = found.error
        told = error and {"type": error.type, "message": error.message, "remedy": error.remedy}
        return {"target": found.target, "chain": [], "error": told}
    return {"target": found.target, "chain": [_layer(image) for image in found.chain.images]}


def _layer(image: Image) -> dict[str, Any]:
    return {
        "path": image.path,
        "format": image.format,
        "virtual_size": image.virtual_size,
        "allocation": image.allocation,
        "snapshots": [asdict(snapshot) for snapshot in image.snapshots],
        "backing": image.backing,
        "corrupt": image.corrupt,
        "dirty": image.dirty,
    }


def picture(found: Found) -> str:
    """A disk and its layers below each other, oldest first; each `<-` reads: is the base of.

    vda
        /images/base.qcow2
        |       qcow2, 8 MiB, 456 KiB allocated
        |       snapshots inside: s1
        <- vda.s2
                qcow2, 8 MiB, 196 KiB allocated, active layer
    """
    name = visible_line(found.target)
    if found.chain is None:
        error = found.error
        reason = f"cannot be read: {error.message}" if error else "cannot be read"
        lines = [*_wrapped(reason), *_wrapped(f"remedy: {error.remedy}" if error else "")]
        return "\n".join([name, *(f"    {line}" for line in lines)])
    return "\n".join([name, *(f"    {line}" for line in _ladder(found.chain))])


def _ladder(chain: Chain) -> Iterator[str]:
    folder = None
    for image in chain.images:
        path = image.spelled
        shown = path.name if path.parent == folder else os.fspath(path)
        folder = path.parent
        yield ("" if image is chain.base else "<- ") + visible_line(shown)
        rung = " " if image is chain.active else "|"
        for line in _described(image, active=image is chain.active):
            yield f"{rung}       {line}"


def _described(image: Image, *, active: bool) -> Iterator[str]:
    words = [image.format, size(image.virtual_size), f"{size(image.allocation)} allocated"]
    marks = {"corrupt": image.corrupt, "dirty": image.dirty, "block device": image.block_device}
    words += [mark for mark, there in marks.items() if there]
    yield ", ".join([*words, *(["active layer"] if active else [])])
    if image.snapshots:
        tags = ", ".join(visible_line(snapshot.tag) for snapshot in image.snapshots)
        yield from _wrapped(f"snapshots inside: {tags}", indent="  ")


def _wrapped(text: str, *, indent: str = "") -> list[str]:
    """Lines that fit behind a rung; a long path or tag stays whole, for copying."""
    return textwrap.wrap(
        visible_line(text),
        WIDTH - 12,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def size(count: int) -> str:
    """Bytes for people: whole where it is whole, else with one digit behind the point."""
    unit = 0
    while count >= 1024 ** (unit + 1) and unit < len(_UNITS) - 1:
        unit += 1
    whole, rest = divmod(count, 1024**unit)
    return f"{whole} {_UNITS[unit]}" if not rest else f"{count / 1024**unit:.1f} {_UNITS[unit]}"
