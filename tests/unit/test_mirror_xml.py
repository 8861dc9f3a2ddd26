"""Mirrors in the metadata of a record: written, read, shown, replaced, taken out again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import XmlError
from imgtool.model.snapshot import Snapshot, SnapshotDisk
from imgtool.xml import patch
from imgtool.xml.mirrors import shown
from imgtool.xml.schema import SCHEMAS, validate
from imgtool.xml.snapshot import format_snapshot, parse_request, parse_snapshot

DOMAIN = b"""<domain>
  <name>vm</name>
  <uuid>6a1f3f0e-9f0c-4f0e-8a4e-0c1f6d0b7a11</uuid>
</domain>
"""
MIRRORS = {"vda": "/there/a&b'\"<", "vdb": "/there/\u00e4,b:c"}


def record(domain: bytes) -> Snapshot:
    disks = (
        SnapshotDisk(name="vda", mode=SnapshotMode.EXTERNAL, driver="qcow2", source="/here/f"),
        SnapshotDisk(name="vdb", mode=SnapshotMode.EXTERNAL),
        SnapshotDisk(name="vdc", mode=SnapshotMode.NO),
    )
    return Snapshot(name="s1", created=1, disks=disks, domain_xml=domain)


def mirrors(xml: bytes) -> dict[str, str]:
    disks = parse_snapshot(xml, where="test").disks
    return {disk.name: disk.mirror for disk in disks if disk.mirror}


@pytest.mark.parametrize("before", [DOMAIN, patch.pivot(DOMAIN, moves=(), txid="old")])
def test_what_is_stamped_is_read(before: bytes) -> None:
    stamped = patch.stamp_record(before, txid="new", mirrors=MIRRORS)
    xml = format_snapshot(record(stamped))
    assert mirrors(xml) == MIRRORS
    assert parse_snapshot(xml, where="test").transaction == "new"
    # An element of ours that libvirt has carried into the domain is not mistaken for a new one.
    assert mirrors(format_snapshot(record(patch.stamp_record(stamped, txid="next")))) == {}
    assert patch.unstamp(patch.stamp_record(stamped, txid="next")) == patch.unstamp(stamped)
    assert b"mirror" not in patch.pivot(stamped, moves=(), txid="next")


def test_what_is_shown_is_read_as_well() -> None:
    xml = format_snapshot(record(patch.stamp_record(DOMAIN, txid="t", mirrors=MIRRORS)))
    dumped = shown(xml, where="test")
    assert dumped.count(b"<mirror ") == 2
    assert shown(dumped, where="test") == dumped
    assert mirrors(dumped) == MIRRORS
    request = parse_request(dumped, where="test")
    assert [disk.mirror for disk in request.disks] == [*MIRRORS.values(), ""]
    assert [disk.mode for disk in request.disks[:2]] == [SnapshotMode.EXTERNAL] * 2


def test_a_record_without_mirrors_is_shown_as_it_is() -> None:
    xml = format_snapshot(record(patch.stamp_record(DOMAIN, txid="t")))
    assert shown(xml, where="test") == xml


def test_a_record_keeps_its_mirrors_when_it_is_written_again() -> None:
    xml = format_snapshot(record(patch.stamp_record(DOMAIN, txid="t", mirrors=MIRRORS)))
    again = format_snapshot(replace(parse_snapshot(xml, where="test"), parent="s0"))
    assert mirrors(again) == MIRRORS


def test_a_path_that_xml_cannot_hold_is_refused() -> None:
    with pytest.raises(XmlError):
        patch.stamp_record(DOMAIN, txid="t", mirrors={"vda": "/a\x01"})


def test_a_mirror_is_no_reason_for_the_schema_to_refuse(tmp_path: Path) -> None:
    assert SCHEMAS.is_dir()
    xml = b"""<domainsnapshot><disks><disk name='vda' snapshot='external'>
      <source file='/f'/><mirror file='/m'/></disk></disks></domainsnapshot>"""
    validate(xml, where="test")
    with pytest.raises(XmlError):
        validate(xml.replace(b"<mirror", b"<wrong"), where="test")
