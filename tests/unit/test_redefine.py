"""What is changed in a record before libvirt gets it, and what is not."""

from __future__ import annotations

import pytest

from imgtool.xml.redefine import for_libvirt

DOMAIN = b"""<domain type='qemu'><!-- kept --><name>vm</name><devices>
    <disk type='file'><target dev='vda'/></disk>
    <disk type="file" snapshot="external" ><target dev='vdb'/></disk>
    <disk type='file'/>
  </devices></domain>"""


def record(vda: str, vdb: str, memory: str = "no") -> bytes:
    return f"""<domainsnapshot><name>s1</name><memory snapshot='{memory}'/>
  <disks><disk name='vda' snapshot='{vda}'/><disk name='vdb' snapshot='{vdb}'/></disks>
  {DOMAIN.decode()}
</domainsnapshot>
""".encode()


def test_a_disk_left_out_of_an_internal_snapshot_is_left_out_in_its_domain_too() -> None:
    expected = record("internal", "no").replace(b'snapshot="external"', b'snapshot="no"')
    assert for_libvirt(record("internal", "no")) == expected
    assert b"<disk type='file' snapshot='no'>" in for_libvirt(record("no", "internal"))


@pytest.mark.parametrize(
    "xml",
    [
        record("internal", "internal"),
        record("external", "no"),
        record("internal", "external"),
        record("no", "no", memory="external"),
        b"<domainsnapshot><name>s1</name></domainsnapshot>",
    ],
)
def test_every_other_record_stays_as_it_is(xml: bytes) -> None:
    assert for_libvirt(xml) == xml
