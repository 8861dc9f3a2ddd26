"""Patches of domain XML: what they change, byte for byte, and what they leave alone.

Documents are generated from a template that can be rendered with any values in its slots, so the
template rendered with the new values is the one right answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from xml.sax.saxutils import escape

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imgtool.model.errors import XmlError
from imgtool.model.image import Format
from imgtool.model.plan import Move
from imgtool.xml.domain import parse_domain
from imgtool.xml.patch import pivot, stamp_record, unstamp

NS = "https://imgtool.dev/xmlns/domain/1"
QUOTES = {"'": "&apos;", '"': "&quot;"}

noise = st.lists(
    st.sampled_from(
        ["\n", "  ", "\t", "\r\n", '<!-- <disk> it\'s "x" > & -->', "<?app <source file='/no'?>"]
    ),
    max_size=3,
).map("".join)
quote = st.sampled_from("'\"")
equals = st.sampled_from(["=", " = ", "=\n"])
gap = st.sampled_from([" ", "\n\t", "  "])
names = st.text(
    st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs"), exclude_characters="/"),
    min_size=1,
    max_size=12,
)
paths = names.map(lambda name: f"/img/x{name}")
formats = st.sampled_from(list(Format))


@dataclass(frozen=True)
class DiskText:
    """One `<disk>`: what is in its slots, and all that lies around them."""

    target: str
    kind: str  # file, block, volume
    source: str
    driver: str | None  # None: no <driver>; empty: a <driver> without type
    backing: str | None  # an explicit backingStore
    q: str
    eq: str
    gap: str
    noises: tuple[str, ...]
    extra: str  # of the source tag
    children: str  # of the source
    self_closed: bool
    wrapped: tuple[str, str] = ("", "")
    inserted: bool = False  # the <driver> came by a pivot
    typed: bool = False  # its type did
    kind_written: bool = True

    def attribute(self, name: str, value: str) -> str:
        return f"{self.gap}{name}{self.eq}{self.q}{escape(value, QUOTES)}{self.q}"

    def location(self) -> str:
        if self.kind == "file":
            return self.attribute("file", self.source)
        if self.kind == "block":
            return self.attribute("dev", self.source)
        return self.attribute("pool", "p>1") + self.attribute("volume", self.source)

    def render(self) -> str:
        n = self.noises
        kind = self.attribute("type", self.kind) if self.kind_written else ""
        text = f"<disk device='disk' a:note='x>y&amp;'{kind}>{n[0]}"
        if self.driver is not None and not self.inserted:
            value = self.attribute("type", self.driver) if self.driver else ""
            value = f" type='{self.driver}'" if self.typed else value
            text += f'<driver name="qemu"{self.gap}cache="none"{value}/>'
        if self.backing is not None:
            text += n[1] + self.wrapped[0] + self.backing + self.wrapped[1]
        text += n[2]
        if self.inserted:
            text += f"<driver name='qemu' type='{self.driver}'/>" + indent(text)
        text += f"<source{self.extra}{self.location()}"
        text += "/>" if self.self_closed else f">{self.children}</source>"
        return text + f"{n[3]}<target bus='virtio' dev={self.q}{self.target}{self.q}/></disk>"

    def moved(self, path: str, fmt: str) -> DiskText:
        """What it must be after a pivot to `path`."""
        new = replace(self, kind="file", source=path, driver=fmt)
        new = replace(new, inserted=self.driver is None, typed=self.driver == "")
        if self.backing is not None and (self.kind, self.source) != ("file", path):
            location = replace(self, q="'", eq="=", gap=" ").location()
            outer = indent(self.render().split(self.backing)[0])
            inner = outer + "  " if outer else ""
            head = (
                f"<backingStore type='{self.kind}'>{inner}<format type='{self.driver or 'raw'}'/>"
            )
            head += f"{inner}<source{location}/>{inner}"
            new = replace(new, wrapped=(head, f"{outer}</backingStore>"))
        return new


def indent(text: str) -> str:
    blanks = text[len(text.rstrip()) :]
    return blanks[blanks.rfind("\n") :] if "\n" in blanks else ""


@dataclass(frozen=True)
class DomainText:
    head: str
    name: str
    description: str
    metadata: tuple[str, str] | None  # what is in it before and behind our element
    disks: tuple[DiskText, ...]
    noises: tuple[str, ...]
    tail: str
    state: str = ""
    state_indent: str = ""
    added: tuple[str, str] = field(default=("", ""))  # a <metadata> that a patch made

    def render(self) -> bytes:
        text = f"{self.head}<domain xmlns:a='urn:a' type='kvm'>{self.noises[0]}"
        added = self.added[0] + self.state + self.added[1] if self.metadata is None else ""
        text += f"<name>{self.name}</name>"
        text += f"{self.noises[1]}{self.description}{added}" if self.description else added
        if self.metadata is not None:
            before, behind = self.metadata
            text += f"{self.noises[2]}<metadata>{before}{self.state_indent}{self.state}{behind}"
            text += "</metadata>"
        disks = self.noises[3].join(disk.render() for disk in self.disks)
        text += f"{self.noises[4]}<devices>{self.noises[5]}{disks}</devices>{self.tail}</domain>\n"
        return text.encode()

    def marked(self, state: str) -> DomainText:
        """With our element, which comes where there was one or as the last in `<metadata>`."""
        if self.state:
            return replace(self, state=state)
        if self.metadata is None:
            outer = indent(f"</name>{self.noises[1]}") if self.description else ""
            outer = outer if self.description else indent(f">{self.noises[0]}")
            inner = outer + "  " if outer else ""
            added = (f"{outer}<metadata>{inner}", f"{outer}</metadata>")
            return replace(self, state=state, added=added)
        outer = indent(f"x{self.noises[2]}")
        return replace(self, state=state, state_indent=outer + "  " if outer else "")


@st.composite
def disk_texts(draw: st.DrawFn, target: str) -> DiskText:
    kind = draw(st.sampled_from(["file", "block", "volume"]))
    q = draw(quote)
    return DiskText(
        target=target,
        kind=kind,
        source=draw(paths),
        driver=draw(st.sampled_from([None, "", "raw", "qcow2"])),
        backing=draw(
            st.sampled_from(
                [
                    None,
                    "<backingStore/>",
                    "<backingStore type='file'>\n <format type='raw'/>"
                    "<source file='/b'/><!-- > --><backingStore/></backingStore>",
                ]
            )
        ),
        q=q,
        eq=draw(equals),
        gap=draw(gap),
        noises=tuple(draw(st.lists(noise, min_size=4, max_size=4))),
        extra=draw(st.sampled_from(["", " startupPolicy='optional'", ' index="1>0"'])),
        children=draw(st.sampled_from(["", " ", "<seclabel model='dac' relabel='no'/>"])),
        self_closed=draw(st.booleans()),
        kind_written=kind != "file" or draw(st.booleans()),
    )


@st.composite
def domain_texts(draw: st.DrawFn) -> DomainText:
    targets = draw(st.lists(st.sampled_from(["vda", "vdb", "sda"]), unique=True, min_size=1))
    foreign = (
        "<a:devices><disk><target dev='vda'/><source file='/foreign'/></disk></a:devices>",
        "<x:y xmlns:x='urn:ab'>&lt;&#x20AC;<![CDATA[<metadata>]]></x:y>",
    )
    state = f"<i:state xmlns:i='{NS}' recorded-by='r' transaction='old'/>"
    has_state = draw(st.booleans())
    text = DomainText(
        head=draw(st.sampled_from(["", "\ufeff", "<?xml version='1.0' encoding='utf-8'?>\n"])),
        name="vm",
        description=draw(
            st.sampled_from(["", "<description><![CDATA[<disk> & ]]>caf\u00e9</description>"])
        ),
        metadata=(draw(st.sampled_from(["", *foreign])), draw(noise)),
        disks=tuple(draw(disk_texts(target)) for target in targets),
        noises=tuple(draw(st.lists(noise, min_size=6, max_size=6))),
        tail=draw(
            st.sampled_from(
                [
                    "",
                    "<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>"
                    '<qemu:arg value="-x>\'y"/></qemu:commandline>',
                ]
            )
        ),
        state=state if has_state else "",
    )
    return text if has_state or draw(st.booleans()) else replace(text, metadata=None)


def state(attributes: str) -> str:
    return f'<imgtool:state xmlns:imgtool="{NS}" {attributes}/>'


@given(text=domain_texts(), path=paths, fmt=formats, data=st.data())
def test_a_pivot_changes_what_it_must_and_no_other_byte(
    text: DomainText, path: str, fmt: Format, data: st.DataObject
) -> None:
    chosen = data.draw(st.sets(st.sampled_from([disk.target for disk in text.disks])))
    moves = [Move(target=target, path=Path(path), format=fmt) for target in sorted(chosen)]
    after = pivot(text.render(), moves=moves, txid="tx-1")
    disks = tuple(d.moved(path, fmt) if d.target in chosen else d for d in text.disks)
    assert after == replace(text.marked(state('transaction="tx-1"')), disks=disks).render()


@given(text=domain_texts(), path=paths, fmt=formats)
def test_a_pivot_reads_back_and_pivoting_again_changes_nothing(
    text: DomainText, path: str, fmt: Format
) -> None:
    moves = [Move(target=disk.target, path=Path(path), format=fmt) for disk in text.disks]
    after = pivot(text.render(), moves=moves, txid="a&'\"<b")
    domain = parse_domain(after)
    assert domain.transaction == "a&'\"<b"
    assert [(d.source, d.format, d.type) for d in domain.disks] == [
        (Path(path), fmt, "file") for _ in domain.disks
    ]
    assert pivot(after, moves=moves, txid="a&'\"<b") == after


@given(text=domain_texts())
def test_a_stamp_goes_on_the_element_and_off_again(text: DomainText) -> None:
    pivoted = pivot(text.render(), moves=(), txid="tx-1")
    stamped = stamp_record(pivoted, txid="tx-2")
    both = state("transaction=\"tx-1\" recorded-by='tx-2'")
    assert stamped == text.marked(both).render()
    assert unstamp(stamped) == pivoted
    assert unstamp(pivoted) == pivoted


@given(text=domain_texts())
def test_a_stamp_makes_the_element_where_there_is_none(text: DomainText) -> None:
    stamped = stamp_record(text.render(), txid="tx-2")
    if not text.state:
        assert stamped == text.marked(state('recorded-by="tx-2"')).render()
    assert parse_domain(stamped).transaction == ("old" if text.state else "")
    assert stamp_record(stamped, txid="tx-2") == stamped


PLAIN = b"<domain><name>vm</name><devices>%s</devices></domain>"
DISK = b"<disk><source file='/a'/><target dev='vda'/></disk>"


def test_an_empty_metadata_element_is_opened() -> None:
    xml = b"<domain>\n  <name>vm</name>\n  <metadata />\n</domain>"
    assert pivot(xml, moves=(), txid="t") == (
        b"<domain>\n  <name>vm</name>\n  <metadata>\n    "
        + state('transaction="t"').encode()
        + b"\n  </metadata>\n</domain>"
    )


def test_only_one_element_of_ours_remains() -> None:
    ours = state('transaction="x"')
    xml = f"<domain><name>vm</name><metadata>{ours}<!-- -->{ours}</metadata></domain>".encode()
    once = state('transaction="t"')
    expected = f"<domain><name>vm</name><metadata>{once}<!-- --></metadata></domain>".encode()
    assert pivot(xml, moves=(), txid="t") == expected


def test_a_volume_loses_every_attribute_that_located_it() -> None:
    disk = (
        b"<disk type='volume'><source pool='p' volume='v' mode='host'/><target dev='vda'/></disk>"
    )
    move = Move(target="vda", path=Path("/n"), format=Format.QCOW2)
    assert b"<disk type='file'><driver name='qemu' type='qcow2'/><source file='/n'/>" in pivot(
        PLAIN % disk, moves=[move], txid="t"
    )


def test_ascii_documents_stay_ascii() -> None:
    xml = b"<?xml version='1.0' encoding='us-ascii'?>" + PLAIN % DISK
    move = Move(target="vda", path=Path("/caf\u00e9"), format=Format.QCOW2)
    after = pivot(xml, moves=[move], txid="t")
    assert after.isascii()
    assert parse_domain(after).disks[0].source == Path("/caf\u00e9")


def test_spans_hold_beyond_a_mebibyte() -> None:
    xml = b"<domain><name>vm</name><!--" + b"x" * 3_000_000 + b"--><devices>" + DISK * 1
    xml += b"</devices></domain>"
    move = Move(target="vda", path=Path("/n"), format=Format.QCOW2)
    after = pivot(xml, moves=[move], txid="t")
    assert parse_domain(after).disks[0].source == Path("/n")


@pytest.mark.parametrize(
    "path", ["/a\nb", "/a\tb", "/a\x01", "/a\rb", "/a\udcff", "/a\ufffe", "/a\0"]
)
def test_a_path_that_xml_cannot_hold_is_named(path: str) -> None:
    move = Move(target="vda", path=Path(path), format=Format.QCOW2)
    with pytest.raises(XmlError, match="cannot be written as XML") as caught:
        pivot(PLAIN % DISK, moves=[move], txid="t")
    assert repr(path) in caught.value.message


@pytest.mark.parametrize(
    ("disk", "message"),
    [
        (b"", "no disk named 'vda'"),
        (DISK.replace(b"<source file='/a'/>", b""), "without a local source"),
        (DISK.replace(b"<disk", b"<disk type='network'"), "a network disk"),
    ],
)
def test_disks_that_cannot_be_moved_are_refused(disk: bytes, message: str) -> None:
    move = Move(target="vda", path=Path("/n"), format=Format.QCOW2)
    with pytest.raises(XmlError, match=message):
        pivot(PLAIN % disk, moves=[move], txid="t")


def test_one_disk_is_moved_once() -> None:
    move = Move(target="vda", path=Path("/n"), format=Format.QCOW2)
    with pytest.raises(XmlError, match="moved twice"):
        pivot(PLAIN % DISK, moves=[move, move], txid="t")


def test_a_domain_without_name_has_no_place_for_metadata() -> None:
    with pytest.raises(XmlError, match="no <name>"):
        pivot(b"<domain/>", moves=(), txid="t")


@given(xml=st.binary())
@example(xml="<?xml version='1.0'?><domain/>".encode("utf-16"))
def test_rubbish_is_an_xml_error(xml: bytes) -> None:
    with pytest.raises(XmlError):
        pivot(xml, moves=(), txid="t")
