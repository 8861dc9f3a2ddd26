"""The checker of every crash test, checked: no kind of difference gets past it."""

from __future__ import annotations

import dataclasses
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from imgtool.engine import redo
from imgtool.host.files import Files
from imgtool.host.qemu_img import QemuImg
from imgtool.model.domain import Disk
from imgtool.model.image import Format, Qcow2Features
from imgtool.stores.directory import DirectoryStore
from imgtool.testing import (
    KIB,
    MIB,
    AfterSnapshot,
    MadeDomain,
    Memory,
    Outcome,
    State,
    assert_old_or_new,
    capture,
    differences,
    guest_bytes_digest,
    make_domain,
    make_image,
    make_three_disks,
    qemu_io,
    read_pattern,
    same,
    write_pattern,
)
from imgtool.testing.images import file_digest
from imgtool.testing.state import IDS_AND_TIMES
from imgtool.testing.strategies import (
    DiskDraft,
    disk_lists,
    names,
    snapshot_names,
    snapshot_requests,
)
from imgtool.xml.domain import NAMESPACE, parse_domain

ROOT = Path(__file__).parents[2]
RECORD = """<domainsnapshot><name>{name}</name><creationTime>{created}</creationTime>
<state>shutoff</state>{parent}<disks>{disks}</disks>
<metadata><i:state xmlns:i='{namespace}' transaction='{transaction}'/></metadata>
</domainsnapshot>"""


def record(
    name: str, *, parent: str = "", disks: str = "", created: int = 1, transaction: str = "t1"
) -> bytes:
    return RECORD.format(
        name=name,
        parent=f"<parent><name>{parent}</name></parent>" if parent else "",
        disks=disks,
        created=created,
        transaction=transaction,
        namespace=NAMESPACE,
    ).encode()


@dataclasses.dataclass(frozen=True)
class World:
    """vda: base (raw) <- top (qcow2, with a tag, a bitmap); vdb: qcow2; vdc: raw. Two snapshots."""

    made: MadeDomain
    store: DirectoryStore
    memory: Memory = dataclasses.field(default_factory=Memory)

    @property
    def folder(self) -> Path:
        return self.made.folder

    def image(self, target: str) -> Path:
        return self.made.image(target)

    def capture(self) -> State:
        """With a memory: what changes is noticed all the same."""
        return capture(self.store, "vm", [self.folder], memory=self.memory)

    def edit(self, old: str, new: str) -> None:
        text = self.made.xml.read_text()
        assert old in text
        self.made.xml.write_text(text.replace(old, new, 1))


@pytest.fixture
def world(tmp_path: Path) -> World:
    folder = tmp_path / "domains"
    folder.mkdir()
    made = make_three_disks(folder)
    base = make_image(folder / "base", Format.RAW, 8 * MIB)
    write_pattern(base, Format.RAW, MIB, 64 * KIB, 0x42)
    vda = made.image("vda")
    vda.unlink()
    make_image(vda, backing="base", backing_format=Format.RAW)
    QemuImg().run("snapshot", "-c", "t", vda)
    QemuImg().run("bitmap", "--add", "-f", "qcow2", vda, "b")
    qemu_io(vda, Format.QCOW2, "write -q -P 0 2M 64k")  # a cluster whose loss no guest would see
    (folder / "notes").write_text("mine")
    store = DirectoryStore(folder, Files())
    store.record("vm", "s1", record("s1"), current=False)
    store.record("vm", "s2", record("s2", parent="s1"), current=True)
    return World(made, store)


def test_nothing_changed_is_no_difference(world: World) -> None:
    before = world.capture()
    for path in world.folder.rglob("*"):
        os.utime(path, ns=(1, 1))  # documented: times do not count
    assert differences(before, world.capture()) == []
    assert differences(before, capture(world.made.uri, "vm", [world.folder])) == []
    assert not any(layer.error for disk in before.disks for layer in disk.layers)
    assert not any(layer.check for disk in before.disks for layer in disk.layers)
    assert [layer.guest[:6] != "cannot" for layer in before.disk("vda").layers] == [True, True]


def flip(path: Path, offset: int, bits: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ bits]))


def leak_a_cluster(path: Path) -> None:
    """Forget the cluster of zeros at 2 MiB: its base reads as zeros there, too."""
    with path.open("r+b") as file:
        file.seek(40)
        (l1,) = struct.unpack(">Q", file.read(8))
        file.seek(l1)
        (entry,) = struct.unpack(">Q", file.read(8))
        file.seek((entry & 0x00FFFFFFFFFFFE00) + 8 * (2 * MIB // (64 * KIB)))
        file.write(bytes(8))


def replace_tag(path: Path) -> None:
    """The same id and tag, another content in it; the active layer reads as before."""
    QemuImg().run("snapshot", "-d", "t", path)
    write_pattern(path, Format.QCOW2, 3 * MIB, 512, 0x99)
    QemuImg().run("snapshot", "-c", "t", path)
    write_pattern(path, Format.QCOW2, 3 * MIB, 512, 0)


def corrupt(path: Path) -> None:
    with path.open("r+b") as file:
        redo.mark(file.fileno(), Files())


def give_acl(path: Path) -> None:
    entries = ((1, 6, -1), (2, 4, 12345), (4, 4, -1), (16, 4, -1), (32, 4, -1))
    path.chmod(0o644)
    packed = b"".join(struct.pack("<HHi", *entry) for entry in entries)
    os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + packed)


def make_folder_of(path: Path) -> None:
    path.unlink()
    path.mkdir()


def qemu(*arguments: str) -> Callable[[World], object]:
    return lambda world: QemuImg().run(*arguments, world.image("vda"))


def on_vda(change: Callable[[Path], object]) -> Callable[[World], object]:
    return lambda world: change(world.image("vda"))


VDA = r"disks\[vda\]"
TOP = VDA + r"\.layers\[[^]]*vda.qcow2\]"
CHANGES: dict[str, tuple[Callable[[World], object], str]] = {
    "xml": (lambda world: world.edit("a comment", "no comment"), r"xml: .*no comment"),
    "source": (
        lambda world: world.edit("vm-vda.qcow2", "../domains/vm-vda.qcow2"),
        VDA + r"\.source",
    ),
    "disk format": (lambda world: world.edit('type="raw"', 'type="qcow2"'), r"\[vdc\]\.format"),
    "no disk": (lambda world: world.edit('dev="vdc"', 'dev="vdd"'), r"\[vdc\]: is g"),
    "virtual size": (
        lambda world: QemuImg().run("resize", "-q", "-f", "qcow2", world.image("vda"), "9M"),
        TOP + r"\.virtual_size",
    ),
    "backing": (qemu("rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "./base"), r"\.backing: "),
    "backing format": (
        qemu("rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base"),
        r"\.backing_format",
    ),
    "no backing": (qemu("rebase", "-u", "-f", "qcow2", "-b", ""), r"base\]: is gone"),
    "features": (
        qemu("amend", "-f", "qcow2", "-o", "lazy_refcounts=on"),
        r"\.features\.lazy_refcounts",
    ),
    "new tag": (qemu("snapshot", "-c", "u"), r"\.tags\[2 u\]: is new"),
    "lost tag": (qemu("snapshot", "-d", "t"), r"\.tags\[1 t\]: is gone"),
    "content of a tag": (on_vda(replace_tag), r"\.tags\[1 t\]\.guest"),
    "bitmap": (
        lambda world: QemuImg().run("bitmap", "--remove", "-f", "qcow2", world.image("vda"), "b"),
        r"\.bitmaps",
    ),
    "corrupt bit": (on_vda(corrupt), TOP + r"\.corrupt: False became True"),
    "dirty bit": (on_vda(lambda path: flip(path, 79, 1)), TOP + r"\.dirty"),
    "leak": (on_vda(leak_a_cluster), TOP + r"\.check: '' became '1 leaks'"),
    "guest bytes": (
        on_vda(lambda path: write_pattern(path, Format.QCOW2, 4 * MIB, 512, 9)),
        TOP + r"\.guest",
    ),
    "guest bytes below an overlay": (
        lambda world: flip(world.folder / "base", 2 * MIB + 5, 1),
        r"base\]\.guest",
    ),
    "guest bytes of a raw disk": (lambda world: flip(world.image("vdc"), 77, 1), r"raw\]\.guest"),
    "layer missing": (lambda world: (world.folder / "base").unlink(), r"base\]\.error"),
    "layer truncated": (
        on_vda(lambda path: os.truncate(path, path.stat().st_size // 2)),
        TOP + r"\.(check|error|guest)",
    ),
    "record missing": (lambda world: world.store.forget("vm", "s2"), r"records\[s2\]: is gone"),
    "record new": (
        lambda world: world.store.record("vm", "s3", record("s3"), current=False),
        r"records\[s3\]: is new",
    ),
    "parent": (
        lambda world: world.store.record("vm", "s2", record("s2"), current=False),
        r"records\[s2\]\.parent: 's1' became None",
    ),
    "disks of a record": (
        lambda world: world.store.record(
            "vm", "s1", record("s1", disks="<disk name='vda' snapshot='no'/>"), current=False
        ),
        r"records\[s1\]\.disks",
    ),
    "text of a record": (
        lambda world: world.store.record(
            "vm", "s1", record("s1").replace(b"shutoff", b"running"), current=False
        ),
        r"records\[s1\]\.xml",
    ),
    "current": (lambda world: world.store.set_current("vm", "s1"), r"current: 's2' became 's1'"),
    "no current": (lambda world: world.store.set_current("vm", None), r"current: 's2' became None"),
    "stray file": (
        lambda world: (world.folder / ".vm-vda.s3.imgtool-t1").touch(),
        r"entries\[.*imgtool-t1\]: is new",
    ),
    "stray folder": (lambda world: (world.folder / "empty").mkdir(), r"empty\]: is new"),
    "stray link": (lambda world: (world.folder / "to").symlink_to("x"), r"to\]: is new"),
    "journal left": (
        lambda world: (world.store.state_dir / "journal").write_text("x"),
        r"journal\]: is new",
    ),
    "file of somebody else gone": (lambda world: (world.folder / "notes").unlink(), r"notes\]: is"),
    "file of somebody else changed": (
        lambda world: (world.folder / "notes").write_text("ours"),
        r"notes\]\.content",
    ),
    "mode": (on_vda(lambda path: path.chmod(0o604)), r"vda\.qcow2\]\.mode"),
    "mode of the XML": (lambda world: world.made.xml.chmod(0o666), r"vm\.xml\]\.mode"),
    "kind": (
        lambda world: make_folder_of(world.folder / "notes"),
        r"notes\]\.kind",
    ),
    "ACL": (on_vda(give_acl), r"vda\.qcow2\]\.attributes"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_noticed_and_named(world: World, kind: str) -> None:
    change, named = CHANGES[kind]
    before = world.capture()
    change(world)
    now = world.capture()
    found = differences(before, now)
    assert re.search(named, "\n".join(found), re.DOTALL), found
    assert not same(before, now)
    with pytest.raises(AssertionError, match="neither old nor new"):
        assert_old_or_new(before, lambda _: ["not new"], now)


def altered(value: object) -> Iterator[object]:
    """`value` with one thing in it changed, for each thing in it."""
    if is_dataclass(value) and not isinstance(value, type):
        for field in fields(value):
            for other in altered(getattr(value, field.name)):
                changes: dict[str, Any] = {field.name: other}
                yield replace(value, **changes)
    elif isinstance(value, tuple) and value:
        yield value[1:]
        yield (*value, value[0])
        if value[::-1] != value:
            yield value[::-1]
        for index, item in enumerate(value):
            for other in altered(item):
                yield (*value[:index], other, *value[index + 1 :])
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, str):
        yield value + "x"
    else:
        yield "something"


def test_no_field_is_left_out(world: World) -> None:
    before = world.capture()
    others = [other for other in altered(before) if isinstance(other, State)]
    assert len(others) > 150
    assert [other for other in others if not differences(before, other)] == []


def test_only_ids_and_times_may_differ_between_two_runs(world: World) -> None:
    def mark(transaction: str, created: int) -> State:
        world.made.xml.write_text(
            plain.replace(
                "  <devices>",
                f"<metadata><i:state xmlns:i='{NAMESPACE}' transaction='{transaction}'/>"
                "</metadata><devices>",
            )
        )
        xml = record("s2", parent="s1", created=created, transaction=transaction)
        world.store.record("vm", "s2", xml, current=True)
        return world.capture()

    plain = world.made.xml.read_text()
    before = world.capture()
    first, second = mark("t1", 1), mark("t2", 2)
    assert same(first, second)
    changed = {text.partition(":")[0].rpartition(".")[2] for text in differences(first, second)}
    assert changed == IDS_AND_TIMES
    assert not same(before, first)
    assert assert_old_or_new(before, first, second) is Outcome.NEW
    with pytest.raises(AssertionError):  # it is no longer the old one: somebody has pivoted it
        assert_old_or_new(first, before, second)


def test_old_new_and_between(world: World) -> None:
    before = world.capture()
    QemuImg().run("snapshot", "-c", "u", world.image("vda"))
    between = world.capture()
    QemuImg().run("snapshot", "-c", "u", world.image("vdb"))
    new = world.capture()
    assert assert_old_or_new(before, new, before) is Outcome.OLD
    assert assert_old_or_new(before, new, new) is Outcome.NEW
    with pytest.raises(AssertionError, match=r"vda.*tags\[2 u\]: is new(.|\n)*vdb.*: is gone"):
        assert_old_or_new(before, new, between)
    with pytest.raises(ValueError, match="prove nothing"):
        assert_old_or_new(before, before, before)


def take(world: World) -> AfterSnapshot:
    """A mixed snapshot by hand: vdc external, vdb internal, vda not at all."""
    before, overlay = world.capture(), world.folder / "vm-vdc.s3"
    base = world.image("vdc")
    make_image(overlay, backing=base, backing_format=Format.RAW)
    overlay.chmod(base.stat().st_mode & 0o770)
    QemuImg().run("snapshot", "-c", "s3", world.image("vdb"))
    world.edit(
        f'type="raw"/>\n      <source file="{base}', f"type='qcow2'/><source file=\"{overlay}"
    )
    metadata = f"<metadata><i:state xmlns:i='{NAMESPACE}' transaction='t3'/></metadata>\n"
    world.edit("  <devices>", metadata + "  <devices>")
    disks = (
        "<disk name='vdb' snapshot='internal'/>"
        "<disk name='vdc' snapshot='external'>"
        f"<driver type='qcow2'/><source file='{overlay}'/></disk>"
    )
    world.store.record("vm", "s3", record("s3", parent="s2", disks=disks), current=True)
    return AfterSnapshot(
        before=before, name="s3", overlays={"vdc": overlay}, internal=frozenset({"vdb"})
    )


SABOTAGE: dict[str, Callable[[World], object]] = {
    "overlay written": lambda world: write_pattern(
        world.folder / "vm-vdc.s3", Format.QCOW2, 0, 512, 0xEE
    ),
    "base written": lambda world: flip(world.image("vdc"), 3 * MIB, 1),
    "overlay readable by all": lambda world: (world.folder / "vm-vdc.s3").chmod(0o644),
    "no internal": lambda world: QemuImg().run("snapshot", "-d", "s3", world.image("vdb")),
    "blocked": lambda world: corrupt(world.image("vdb")),
    "no record": lambda world: world.store.forget("vm", "s3"),
    "not current": lambda world: world.store.set_current("vm", "s1"),
    "other parent": lambda world: world.store.record(
        "vm", "s3", world.store.snapshots("vm")[-1].replace(b"s2", b"s1"), current=True
    ),
    "record of another disk": lambda world: world.store.record(
        "vm", "s3", world.store.snapshots("vm")[-1].replace(b"'vdb'", b"'vda'"), current=True
    ),
    "XML line lost": lambda world: world.edit("    <vcpu>1</vcpu>\n".strip(), ""),
    "not pivoted": lambda world: world.edit("transaction='t3'", "transaction=''"),
    "disk back on its base": lambda world: world.edit("vm-vdc.s3", "vm-vdc.raw"),
    "journal": lambda world: (world.store.state_dir / "journal").touch(),
    "stray": lambda world: (world.folder / "stray").mkdir(),
    "another disk": lambda world: QemuImg().run("snapshot", "-c", "s3", world.image("vda")),
    "foreign base": lambda world: QemuImg().run(
        "rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", "base", world.folder / "vm-vdc.s3"
    ),
}


def test_a_snapshot_is_new_when_nothing_is_missing(world: World) -> None:
    after = take(world)
    assert after(world.capture()) == []
    assert assert_old_or_new(after.before, after, world.capture()) is Outcome.NEW


@pytest.mark.parametrize("kind", SABOTAGE)
def test_a_snapshot_with_a_fault_is_neither(world: World, kind: str) -> None:
    after = take(world)
    SABOTAGE[kind](world)
    with pytest.raises(AssertionError, match="neither old nor new"):
        assert_old_or_new(after.before, after, world.capture())


def test_chains_that_cannot_be_read_are_told_not_raised(world: World) -> None:
    QemuImg().run(
        "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "vm-vda.qcow2", world.image("vda")
    )
    assert "a loop" in world.capture().disk("vda").layers[0].error


def test_what_is_ignored_is_left_out_with_all_it_holds(world: World) -> None:
    before = world.capture()
    hidden = world.folder / "hidden"
    hidden.mkdir()
    (hidden / "file").touch()
    now = capture(world.store, "vm", [world.folder], ignore=[hidden])
    assert differences(before, now) == []


def test_a_file_digest_is_of_all_bytes_and_of_no_hole(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def digest(*parts: tuple[int, bytes], size: int) -> str:
        with path.open("wb") as file:
            for at, data in parts:
                file.seek(at)
                file.write(data)
            file.truncate(size)
        return file_digest(path)

    odd = 3 * MIB + 1
    mine = digest((MIB - 1, b"ab"), size=odd)
    assert digest((0, bytes(odd)), (MIB - 1, b"ab"), size=odd) == mine
    others = {
        digest(size=odd),
        digest(size=odd + 1),
        digest((MIB - 1, b"ab"), size=odd + 1),
        digest((MIB - 1, b"a"), size=odd),
        digest((MIB, b"b"), size=odd),
        digest((2 * MIB - 1, b"ab"), size=odd),
        digest((MIB - 1, b"ab"), (odd - 1, b"c"), size=odd),
        digest((0, b"c"), (MIB - 1, b"ab"), size=odd),
    }
    assert len(others) == 8
    assert mine not in others


@settings(max_examples=25, deadline=None)
@given(name=names(), byte=st.integers(1, 255), sector=st.integers(0, 100))
def test_a_pattern_is_read_back_through_a_chain(name: str, byte: int, sector: int) -> None:
    with tempfile.TemporaryDirectory() as parent:
        base = make_image(Path(parent, name), Format.RAW, MIB)
        write_pattern(base, Format.RAW, sector * 512, 512, byte)
        top = make_image(
            Path(parent, name + "2"), size=MIB, backing=base, backing_format=Format.RAW
        )
        assert guest_bytes_digest(top, Format.QCOW2) == guest_bytes_digest(base, Format.RAW)
        write_pattern(top, Format.QCOW2, 64 * KIB, 512, byte)
        assert guest_bytes_digest(top, Format.QCOW2) != guest_bytes_digest(base, Format.RAW)
        assert read_pattern(top, Format.QCOW2, sector * 512, 512) == bytes([byte]) * 512


@settings(max_examples=50, deadline=None)
@given(drafts=disk_lists(), data=st.data(), flag=st.booleans())
def test_a_made_domain_reads_as_it_was_made(
    drafts: tuple[DiskDraft, ...], data: st.DataObject, flag: bool
) -> None:
    assume(
        not any(
            re.search("[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", one.file_name) for one in drafts
        )
    )
    with tempfile.TemporaryDirectory() as parent:
        disks = tuple(
            Disk(
                target=draft.target,
                source=Path(parent, draft.file_name),
                format=draft.image.format,
                format_name=draft.image.format,
                readonly=flag,
            )
            for draft in drafts
        )
        made = make_domain(Path(parent), "vm & <co>", disks)
        domain = parse_domain(made.xml.read_bytes())
        assert (domain.name, domain.disks) == ("vm & <co>", disks)
        request = data.draw(snapshot_requests(tuple(disk.target for disk in disks)))
        assert {disk.name for disk in request.disks} <= {disk.target for disk in disks}


@given(name=snapshot_names())
def test_a_snapshot_name_may_be_a_file_name(name: str) -> None:
    assert name.isprintable()
    assert "/" not in name
    assert name[0] not in ".-"


def test_the_plugin_gives_images_and_a_domain(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from imgtool.testing import capture\n"
        "def test_it(imgtool_images, imgtool_domain):\n"
        "    base = imgtool_images('base', 'raw')\n"
        "    imgtool_images('top', backing=base, backing_format='raw')\n"
        "    state = capture(imgtool_domain.uri, imgtool_domain.name, [imgtool_domain.folder])\n"
        "    assert [disk.format for disk in state.disks] == ['qcow2', 'qcow2', 'raw']\n"
        "    assert len({disk.top.guest for disk in state.disks}) == 3\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
    ]
    installed = "imgtool.testing.plugin" in sys.modules
    plugin = [] if installed else ["-p", "imgtool.testing.plugin"]
    done = subprocess.run(
        [*command, *plugin, str(tmp_path / "test_it.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_features_reach_the_image(tmp_path: Path) -> None:
    features = Qcow2Features(cluster_size=32768, extended_l2=True, refcount_bits=8)
    path = make_image(tmp_path / "q", features=features)
    domain = make_domain(tmp_path, "d", [Disk(target="vda", source=path, format=Format.QCOW2)])
    assert capture(domain.uri, "d", []).disk("vda").top.features == features
