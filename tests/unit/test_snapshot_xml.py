"""`<domainsnapshot>`: requests and records, in libvirt's own words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import UnsupportedError, XmlError
from imgtool.model.snapshot import Snapshot, SnapshotDisk, SnapshotRequest
from imgtool.xml.snapshot import (
    format_snapshot,
    parse_redefine,
    parse_request,
    parse_snapshot,
    validate,
)

GOLDEN = Path(__file__).parents[2] / "testdata" / "golden"
# As libvirt 9.0 printed them, but for "everything": what it only keeps for domains that ran.
RECORDS = ["snapshot-internal", "snapshot-external", "snapshot-memory", "snapshot-everything"]
STATE = b'<i:state xmlns:i="https://imgtool.dev/xmlns/domain/1" transaction="a" recorded-by="t1"/>'

texts = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs"), exclude_characters="\ufffe\uffff")
    | st.sampled_from("\t\n\r<>&'\""),
    min_size=1,
    max_size=12,
)
paths = texts.map(lambda text: f"/{text}")
modes = st.sampled_from(SnapshotMode)


@st.composite
def disks(draw: st.DrawFn) -> SnapshotDisk:
    kind = draw(st.sampled_from(["file", "block", "network"]))
    network = (("protocol", "rbd"), ("name", draw(texts)))
    details = draw(st.booleans())
    seclabel = b"<seclabel model='dac' relabel='no'/>"
    cache = b"<metadata_cache>\n <max_size unit='KiB'>1</max_size></metadata_cache>"
    return SnapshotDisk(
        name=draw(texts),
        mode=draw(modes) if details else draw(st.none() | modes),
        type=kind,
        driver=draw(st.sampled_from(["", "qcow2", "qed"])) if details else "",
        driver_extra=draw(st.sampled_from([b"", cache])) if details else b"",
        source=draw(paths) if details and kind != "network" else "",
        location=network if details and kind == "network" else (),
        extra=draw(st.sampled_from([b"", seclabel, seclabel + b"<!-- -->\n<a:b xmlns:a='u'/>"])),
        deleting=draw(st.booleans()),
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    ours = draw(st.booleans())
    name = draw(st.sampled_from([b"v", b"<![CDATA[<domain>]]>", "\u20ac<!-- -->".encode()]))
    domain = b"<domain type='kvm'>\n<name>%s</name>\n\t<metadata>%s</metadata></domain>"
    return Snapshot(
        name=draw(texts),
        created=draw(st.integers(-(2**63), 2**63 - 1)),
        state=draw(st.sampled_from(["shutoff", "running", "paused", "disk-snapshot"])),
        description=draw(st.none() | texts),
        parent=draw(st.none() | texts),
        memory=(memory := draw(st.sampled_from(["no", "internal", "external"]))),
        memory_file=draw(paths) if memory == "external" else None,
        disks=tuple(draw(st.lists(disks(), max_size=3))),
        revert_disks=tuple(draw(st.lists(disks(), max_size=2))),
        domain_xml=domain % (name, STATE if ours else b""),
        inactive_xml=draw(st.sampled_from([b"", b"<inactiveDomain type='kvm'/>"])),
        cookie=draw(st.sampled_from([b"", b"<cookie><c:x xmlns:c='u'> </c:x></cookie>"])),
        active=draw(st.none() | st.booleans()),
        transaction="t1" if ours else "",
    )


@given(snapshot=snapshots())
def test_a_record_reads_back(snapshot: Snapshot) -> None:
    assert parse_snapshot(format_snapshot(snapshot), where="x") == snapshot


@given(snapshot=snapshots(), declaration=st.sampled_from([b"", b"<?xml version='1.0'?>\n<!-- -->"]))
def test_what_stands_around_the_domain_is_left_out(snapshot: Snapshot, declaration: bytes) -> None:
    written = format_snapshot(snapshot)
    around = Snapshot(
        **{name: getattr(snapshot, name) for name in Snapshot.__slots__}
        | {"domain_xml": declaration + snapshot.domain_xml + b"\n<!-- -->\n"}
    )
    assert format_snapshot(around) == written
    assert format_snapshot(parse_snapshot(written, where="x")) == written


@pytest.mark.parametrize("name", RECORDS)
def test_libvirts_own_records_come_out_as_they_went_in(name: str) -> None:
    xml = (GOLDEN / f"{name}.xml").read_bytes()
    snapshot = parse_snapshot(xml, where=name)
    assert format_snapshot(snapshot) == xml
    assert snapshot.transaction == "tx-1"


def test_everything_is_read() -> None:
    xml = (GOLDEN / "snapshot-everything.xml").read_bytes()
    snapshot = parse_snapshot(xml, where="x")
    assert (snapshot.name, snapshot.parent, snapshot.state) == ("ran", "root", "running")
    assert (snapshot.memory, snapshot.memory_file) == ("external", "/m/em")
    assert [disk.mode for disk in snapshot.disks] == ["external", "no", "no", "external"]
    assert [disk.deleting for disk in snapshot.disks] == [False, False, False, True]
    assert [disk.source for disk in snapshot.revert_disks] == ["/o/1.1700000003"]
    assert snapshot.inactive_xml.startswith(b"<inactiveDomain type='test'>")
    assert snapshot.cookie.endswith(b"</cookie>")
    assert snapshot.active
    assert snapshot.location == "external"


def test_details_of_disks_are_kept() -> None:
    xml = (GOLDEN / "snapshot-external.xml").read_bytes()
    snapshot = parse_redefine(xml, where="x")
    block, network, left_out, encrypted = snapshot.disks
    assert (snapshot.name, snapshot.description) == ("a&'b\"", "two\n lines <y")
    assert (block.type, block.source, block.driver) == ("block", "/dev/x", "qcow2")
    assert b"<max_size unit='bytes'>2097152</max_size>" in block.driver_extra
    assert block.extra.endswith(b"<reservations managed='yes'/>")
    assert network.location == (("protocol", "gluster"), ("name", "vol/img"))
    assert left_out == SnapshotDisk(name="vdc", mode=SnapshotMode.NO)
    assert (encrypted.source, encrypted.extra[:11]) == ("/a/b>", b"<encryption")


def test_namespaces_of_the_whole_go_with_its_parts() -> None:
    xml = (
        b"<domainsnapshot xmlns:q='urn:q'><name>s</name><state>shutoff</state>"
        b"<creationTime>1</creationTime><disks><disk name='vda'><source file='/x'><q:a/><q:b/>"
        b"</source></disk></disks><domain><q:c/></domain></domainsnapshot>"
    )
    snapshot = parse_snapshot(xml, where="x")
    written = format_snapshot(snapshot)
    assert snapshot.domain_xml == b'<domain xmlns:q="urn:q"><q:c/></domain>'
    assert parse_snapshot(written, where="x") == snapshot


def request(inside: str) -> SnapshotRequest:
    return parse_request(f"<domainsnapshot>{inside}</domainsnapshot>".encode(), where="f.xml")


def test_an_empty_request() -> None:
    assert request("") == SnapshotRequest()


def test_a_request_says_what_it_says_and_no_more() -> None:
    asked = request(
        "<disks><disk name='/a/b'/><disk name='vdb'><source file='/x'/></disk>"
        "<disk snapshot='internal' name='vdc'/></disks><creationTime>rubbish</creationTime>"
        "<state>running</state><name>a<!-- no -->b</name><description/><memory snapshot='no'/>"
    )
    assert asked == SnapshotRequest(
        name="ab",
        memory="no",
        disks=(
            SnapshotDisk(name="/a/b"),
            SnapshotDisk(name="vdb", mode=SnapshotMode.EXTERNAL, source="/x"),
            SnapshotDisk(name="vdc", mode=SnapshotMode.INTERNAL),
        ),
    )


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("<memory snapshot='bogus'/>", "attribute 'snapshot' in element 'memory': 'bogus'."),
        ("<memory snapshot='manual'/>", "'manual' memory snapshot mode not supported"),
        ("<memory snapshot='no' file='/x'/>", "memory filename '/x' requires external snapshot"),
        ("<memory snapshot='external'/>", "external memory snapshots require a filename"),
        ("<memory file='x'/>", "memory snapshot file path (x) must be absolute"),
        ("<disks><disk snapshot='no'/></disks>", "missing name from disk snapshot element"),
        ("<disks><disk name='v' snapshot='x'/></disks>", "'snapshot' in element 'disk': 'x'."),
        ("<disks><disk name='v' type='volume'/></disks>", "unsupported disk snapshot type 'vol"),
        ("<disks><disk name='v' type='dir'/></disks>", "unsupported disk snapshot type 'dir'"),
        (
            "<disks><disk name='v'><driver type='x'/></disk></disks>",
            "unknown disk snapshot driver 'x'",
        ),
        (
            "<disks><disk name='v'><source file='x'/></disk></disks>",
            "disk snapshot image path 'x' must be absolute",
        ),
        (
            "<disks><disk name='v' type='network'><source name='x'/></disk></disks>",
            "Missing required attribute 'protocol' in element 'source'",
        ),
        ("<name>", "not well-formed"),
    ],
)
def test_requests_that_libvirt_refuses(inside: str, message: str) -> None:
    with pytest.raises(XmlError) as caught:
        request(inside)
    assert message in caught.value.message
    assert caught.value.message.startswith("f.xml: ")


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("", "a redefined snapshot must have a name"),
        ("<name/>", "a redefined snapshot must have a name"),
        ("<name>a</name>", "missing creationTime from existing snapshot"),
        ("<name>a</name><creationTime>1.5</creationTime>", "missing creationTime from"),
        ("<name>a</name><creationTime>1</creationTime>", "missing state from existing snapshot"),
        (
            "<name>a</name><creationTime>1</creationTime><state>nostate</state>",
            "Invalid state 'nostate' in domain snapshot XML",
        ),
        (
            "<name>a</name><creationTime>1</creationTime><state>shutoff</state>"
            "<memory snapshot='internal'/>",
            "memory state cannot be saved with offline or disk-only snapshot",
        ),
        (
            "<name>a</name><creationTime>1</creationTime><state>shutoff</state>"
            "<disks><disk name='v' type='volume'/></disks>",
            "unsupported disk snapshot type 'volume'",
        ),
    ],
)
def test_records_that_libvirt_refuses(inside: str, message: str) -> None:
    with pytest.raises(XmlError) as caught:
        parse_redefine(f"<domainsnapshot>{inside}</domainsnapshot>".encode(), where="x")
    assert message in caught.value.message


@pytest.mark.parametrize("name", ["a\x01", "a\udcff", "a\uffff"])
def test_a_text_that_xml_cannot_hold_is_named(name: str) -> None:
    with pytest.raises(XmlError, match="cannot be written as XML"):
        format_snapshot(Snapshot(name=name, created=1))


# Not "external": its driver of a network disk and its <reservations> are libvirt's, but not in
# libvirt's schema.
@pytest.mark.parametrize("name", ["snapshot-internal", "snapshot-memory"])
def test_libvirts_schema_knows_libvirts_records(name: str) -> None:
    xml = (GOLDEN / f"{name}.xml").read_bytes().replace(b"'test'", b"'qemu'")
    validate(xml, where=name)


@pytest.mark.parametrize(
    "inside",
    ["<bogus/>", "<disks><disk/></disks>", "<memory/>", "<state>nostate</state>"],
)
def test_what_the_schema_refuses(inside: str) -> None:
    with pytest.raises(XmlError, match=r"failed to validate against schema: [EI]"):
        validate(f"<domainsnapshot>{inside}</domainsnapshot>".encode(), where="x")


def test_a_schema_that_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not installed") as caught:
        validate(b"<domainsnapshot/>", where="x", schemas=tmp_path)
    assert "--validate" in caught.value.remedy


def test_a_schema_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "domainsnapshot.rng").write_text("<grammar/>")
    with pytest.raises(UnsupportedError, match=r"domainsnapshot\.rng"):
        validate(b"<domainsnapshot/>", where="x", schemas=tmp_path)
