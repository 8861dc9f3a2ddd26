"""One contract over every store: a folder, the embedded libvirt, and a real libvirtd."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID as ParsedUuid

import pytest
from lxml import etree

from imgtool.model.domain import DomainState, Head
from imgtool.model.errors import (
    BadRequestError,
    DomainChangedError,
    ExistsError,
    NotFoundError,
    RefusedError,
    XmlError,
)
from imgtool.model.image import Format
from imgtool.model.plan import Move
from imgtool.stores.base import DomainStore
from imgtool.stores.open import open_store

from .stores import OTHER_UUID, UUID, domain_xml, moved, seen, snapshot_xml

MOVE = Move(target="vdb", path=Path("/nowhere/b.s1"), format=Format.QCOW2)

KINDS = ["directory", "embed", pytest.param("libvirtd", marks=pytest.mark.libvirtd)]


@pytest.fixture(params=KINDS)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "directory":
        return f"dir:{tmp_path}"
    fixture = {"embed": "embed_uri", "libvirtd": "libvirtd_uri"}[request.param]
    return str(request.getfixturevalue(fixture))


@pytest.fixture
def store(uri: str) -> Iterator[DomainStore]:
    """An empty store."""
    store = open_store(uri)
    yield store
    for name in store.domains():
        store.undefine(name, snapshots_metadata=True)
    store.close()


@pytest.fixture
def vm(store: DomainStore) -> Head:
    """A defined domain called vm."""
    store.define(domain_xml())
    return store.head("vm")


def record(store: DomainStore, head: Head, name: str, parent: str = "", note: str = "x") -> None:
    xml = snapshot_xml(head, name, parent=parent, note=note)
    store.record("vm", name, xml, current=True)


def names(store: DomainStore) -> set[str | None]:
    return {etree.fromstring(xml).findtext("name") for xml in store.snapshots("vm")}


def test_a_defined_domain_is_listed_and_read_by_name_and_uuid(store: DomainStore) -> None:
    assert store.domains() == ()
    assert store.define(domain_xml("vm")) == "vm"
    assert store.define(domain_xml("aa", uuid=OTHER_UUID)) == "aa"
    assert store.domains() == ("aa", "vm")
    head = store.head("vm")
    assert (head.domain.name, head.domain.uuid) == ("vm", UUID)
    assert [disk.target for disk in head.domain.disks] == ["vda", "vdb"]
    assert head.state is store.state("vm") is DomainState.SHUTOFF
    assert store.head(UUID) == head
    assert store.head(UUID.upper()) == store.head(UUID.replace("-", "")) == head


def test_the_digest_is_of_the_whole_xml_and_stays(store: DomainStore, vm: Head) -> None:
    assert vm.digest == hashlib.sha256(vm.xml).hexdigest()
    assert b"sesame" in vm.xml
    assert store.head("vm") == vm


def test_another_process_sees_the_same(store: DomainStore, vm: Head, uri: str) -> None:
    record(store, vm, "s1")
    store.pivot("vm", expected=vm.digest, xml=moved(vm, MOVE, txid="t1"))
    other = open_store(uri)
    assert seen(other) == seen(store)
    assert other.domains() == store.domains()


def test_a_domain_without_uuid_gets_one_and_keeps_it(store: DomainStore) -> None:
    store.define(domain_xml(uuid=""))
    first = store.head("vm")
    assert ParsedUuid(first.domain.uuid).version == 4
    assert first.domain.uuid.encode() in first.xml
    store.define(domain_xml(uuid="", note="again"))
    assert store.head("vm").domain.uuid == first.domain.uuid


def test_define_replaces_the_xml_of_a_domain(store: DomainStore, vm: Head) -> None:
    record(store, vm, "s1")
    store.define(domain_xml().replace(b"b.raw", b"c.raw"))
    disk = store.head("vm").domain.disk("vdb")
    assert disk is not None
    assert disk.source == Path("/nowhere/vm-c.raw")
    assert names(store) == {"s1"}


@pytest.mark.parametrize(
    ("name", "uuid"), [("vm", OTHER_UUID), ("other", UUID)], ids=["same name", "same uuid"]
)
def test_define_refuses_half_a_collision(
    store: DomainStore, vm: Head, name: str, uuid: str
) -> None:
    with pytest.raises(ExistsError):
        store.define(domain_xml(name, uuid=uuid))
    assert store.domains() == ("vm",)
    assert store.head("vm") == vm


@pytest.mark.parametrize("xml", [b"", b"<domain", b"<domain/>", b"<network/>", b"\xff"])
def test_define_refuses_what_is_no_domain(store: DomainStore, xml: bytes) -> None:
    with pytest.raises(XmlError):
        store.define(xml)
    assert store.domains() == ()


@pytest.mark.parametrize("name", ["a/b", "a&#10;b"])
def test_define_refuses_a_name_that_is_no_file_name(store: DomainStore, name: str) -> None:
    with pytest.raises(BadRequestError):
        store.define(domain_xml(name))
    assert store.domains() == ()


def test_pivot_replaces_source_format_and_transaction(store: DomainStore, vm: Head) -> None:
    store.pivot("vm", expected=vm.digest, xml=moved(vm, MOVE, txid="t1"))
    head = store.head("vm")
    disk = head.domain.disk("vdb")
    assert disk is not None
    assert (disk.source, disk.format) == (Path("/nowhere/b.s1"), Format.QCOW2)
    assert head.domain.disk("vda") == vm.domain.disk("vda")
    assert head.domain.transaction == "t1"
    assert b"sesame" in head.xml


def test_a_transaction_that_moves_no_disk_is_seen_too(store: DomainStore, vm: Head) -> None:
    store.pivot("vm", expected=vm.digest, xml=moved(vm, txid="t1"))
    first = store.head("vm")
    assert (first.domain.transaction, first.domain.disks) == ("t1", vm.domain.disks)
    store.pivot("vm", expected=first.digest, xml=moved(first, txid="t2"))
    assert store.head("vm").domain.transaction == "t2"


def test_pivot_after_a_foreign_edit_changes_nothing(store: DomainStore, vm: Head) -> None:
    store.define(domain_xml().replace(b"b.raw", b"edited.raw"))
    edited = store.head("vm")
    with pytest.raises(DomainChangedError):
        store.pivot("vm", expected=vm.digest, xml=moved(vm, MOVE, txid="t1"))
    assert store.head("vm") == edited


def test_of_two_pivots_from_one_survey_the_second_is_refused(store: DomainStore, vm: Head) -> None:
    store.pivot("vm", expected=vm.digest, xml=moved(vm, MOVE, txid="t1"))
    with pytest.raises(DomainChangedError):
        store.pivot("vm", expected=vm.digest, xml=moved(vm, MOVE, txid="t2"))
    assert store.head("vm").domain.transaction == "t1"


@pytest.mark.parametrize(
    "xml",
    [domain_xml("other"), domain_xml(uuid=OTHER_UUID), b"<domain", b""],
    ids=["other name", "other uuid", "malformed", "empty"],
)
def test_pivot_to_what_is_not_this_domain_changes_nothing(
    store: DomainStore, vm: Head, xml: bytes
) -> None:
    with pytest.raises(XmlError):
        store.pivot("vm", expected=vm.digest, xml=xml)
    assert store.head("vm") == vm
    assert store.domains() == ("vm",)


def test_settle_changes_nothing_that_is_seen(store: DomainStore, vm: Head) -> None:
    store.settle("vm")
    record(store, vm, "s1")
    store.pivot("vm", expected=vm.digest, xml=moved(vm, MOVE, txid="t1"))
    before = seen(store)
    store.settle("vm")
    store.settle("vm")
    assert seen(store) == before


def test_a_record_keeps_mixed_disks_and_the_domain_of_before(store: DomainStore, vm: Head) -> None:
    store.pivot("vm", expected=vm.digest, xml=moved(vm, txid="t1"))
    record(store, store.head("vm"), "s1")
    (xml,) = store.snapshots("vm")
    root = etree.fromstring(xml)
    disks = [(disk.get("name"), disk.get("snapshot")) for disk in root.iterfind("disks/disk")]
    assert disks == [("vda", "internal"), ("vdb", "external")]
    assert root.findtext("creationTime") == "1700000000"
    assert b'transaction="t1"' in xml
    assert b"sesame" in xml


def test_records_are_a_tree_with_one_current(store: DomainStore, vm: Head) -> None:
    assert (store.snapshots("vm"), store.current("vm")) == ((), None)
    record(store, vm, "s1")
    record(store, vm, "s2", parent="s1")
    assert (names(store), store.current("vm")) == ({"s1", "s2"}, "s2")
    store.record("vm", "s3", snapshot_xml(vm, "s3", parent="s1"), current=False)
    assert (names(store), store.current("vm")) == ({"s1", "s2", "s3"}, "s2")
    parents = {
        root.findtext("name"): root.findtext("parent/name")
        for root in map(etree.fromstring, store.snapshots("vm"))
    }
    assert parents == {"s1": None, "s2": "s1", "s3": "s1"}


@pytest.mark.parametrize("current", [True, False])
def test_replacing_a_record_keeps_the_others(store: DomainStore, vm: Head, current: bool) -> None:
    record(store, vm, "s1")
    record(store, vm, "s2", parent="s1")
    new = snapshot_xml(vm, "s1", note="second").replace(b"'internal'", b"'no'")
    store.record("vm", "s1", new, current=current)
    found = {r.findtext("name"): r for r in map(etree.fromstring, store.snapshots("vm"))}
    assert set(found) == {"s1", "s2"}
    assert found["s1"].findtext("description") == "second"
    assert found["s1"].xpath("disks/disk/@snapshot") == ["no", "external"]
    assert found["s2"].findtext("parent/name") == "s1"
    assert store.current("vm") == ("s1" if current else "s2")


def test_what_is_recorded_can_be_recorded_again_as_it_is(store: DomainStore, vm: Head) -> None:
    """An undo puts back what it has read."""
    record(store, vm, "s1")
    before = store.snapshots("vm")
    record(store, vm, "s1", note="overwritten")
    assert store.snapshots("vm") != before
    store.record("vm", "s1", before[0], current=False)
    assert store.snapshots("vm") == before


def test_forget_makes_the_parent_current(store: DomainStore, vm: Head) -> None:
    record(store, vm, "s1")
    record(store, vm, "s2", parent="s1")
    store.forget("vm", "s2")
    assert (names(store), store.current("vm")) == ({"s1"}, "s1")
    store.forget("vm", "s1")
    assert (store.snapshots("vm"), store.current("vm")) == ((), None)


def test_forget_of_another_than_the_current_leaves_it(store: DomainStore, vm: Head) -> None:
    record(store, vm, "s1")
    record(store, vm, "s2", parent="s1")
    record(store, vm, "s3", parent="s1")
    store.forget("vm", "s2")
    assert (names(store), store.current("vm")) == ({"s1", "s3"}, "s3")


def test_forget_twice_is_forget_once(store: DomainStore, vm: Head) -> None:
    store.forget("vm", "never")
    record(store, vm, "s1")
    store.forget("vm", "s1")
    store.forget("vm", "s1")
    assert store.snapshots("vm") == ()
    assert store.head("vm") == vm


def test_current_can_be_any_record_or_none(store: DomainStore, vm: Head) -> None:
    record(store, vm, "s1")
    record(store, vm, "s2", parent="s1")
    before = sorted(store.snapshots("vm"))
    for name in ("s1", None, "s2", None, None, "s1", "s1"):
        store.set_current("vm", name)
        assert store.current("vm") == name
        assert sorted(store.snapshots("vm")) == before
    with pytest.raises(NotFoundError):
        store.set_current("vm", "never")
    assert store.current("vm") == "s1"


@pytest.mark.parametrize("name", ["a/b", ".hidden"])
def test_record_refuses_a_name_that_is_no_file_name(
    store: DomainStore, vm: Head, name: str
) -> None:
    with pytest.raises(BadRequestError):
        store.record("vm", name, snapshot_xml(vm, name), current=True)
    assert (store.snapshots("vm"), store.current("vm")) == ((), None)


@pytest.mark.parametrize("damage", ["other name", "malformed", "a domain"])
def test_record_refuses_what_is_not_that_snapshot(
    store: DomainStore, vm: Head, damage: str
) -> None:
    xml = {
        "other name": snapshot_xml(vm, "s2"),
        "malformed": snapshot_xml(vm, "s1")[:-5],
        "a domain": vm.xml,
    }
    record(store, vm, "s1")
    before = seen(store)
    with pytest.raises(XmlError):
        store.record("vm", "s1", xml[damage], current=False)
    assert seen(store) == before


def test_names_of_snapshots_are_not_file_patterns(store: DomainStore, vm: Head) -> None:
    odd = ["a b", "a;b", "*", "-x", "s.xml", "ünï"]
    for name in odd:
        record(store, vm, name)
        assert store.current("vm") == name
    assert names(store) == set(odd)
    for name in odd:
        store.forget("vm", name)
    assert store.snapshots("vm") == ()


CALLS: dict[str, Callable[[DomainStore, Head], object]] = {
    "state": lambda store, head: store.state("never"),
    "head": lambda store, head: store.head("never"),
    "head of a uuid": lambda store, head: store.head(OTHER_UUID),
    "pivot": lambda store, head: store.pivot("never", expected=head.digest, xml=head.xml),
    "settle": lambda store, head: store.settle("never"),
    "snapshots": lambda store, head: store.snapshots("never"),
    "current": lambda store, head: store.current("never"),
    "record": lambda store, head: store.record(
        "never", "s1", snapshot_xml(head, "s1"), current=True
    ),
    "forget": lambda store, head: store.forget("never", "s1"),
    "set_current": lambda store, head: store.set_current("never", None),
    "undefine": lambda store, head: store.undefine("never"),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_domain_is_not_found(store: DomainStore, vm: Head, call: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        CALLS[call](store, vm)
    assert caught.value.remedy
    assert (store.domains(), store.snapshots("vm")) == (("vm",), ())


def test_undefine_forgets_the_domain(store: DomainStore, vm: Head) -> None:
    store.undefine("vm")
    assert store.domains() == ()
    with pytest.raises(NotFoundError):
        store.head("vm")


def test_undefine_with_snapshots_needs_to_be_told(store: DomainStore, vm: Head) -> None:
    record(store, vm, "s1")
    record(store, vm, "s2", parent="s1")
    before = seen(store)
    with pytest.raises(RefusedError, match="2 snapshot"):
        store.undefine("vm")
    assert seen(store) == before
    store.undefine("vm", snapshots_metadata=True)
    assert store.domains() == ()


def test_a_new_domain_inherits_no_snapshots_by_its_uuid(store: DomainStore, vm: Head) -> None:
    record(store, vm, "s1")
    store.undefine("vm", snapshots_metadata=True)
    store.define(domain_xml())
    assert (store.snapshots("vm"), store.current("vm")) == ((), None)


def test_domains_do_not_share_snapshots(store: DomainStore, vm: Head) -> None:
    store.define(domain_xml("other", uuid=OTHER_UUID))
    record(store, vm, "s1")
    assert (store.snapshots("other"), store.current("other")) == ((), None)
    store.undefine("other")
    assert names(store) == {"s1"}


def test_a_volume_that_is_not_there_is_bad_input(store: DomainStore) -> None:
    with pytest.raises(BadRequestError) as caught:
        store.volume("never", "disk.qcow2")
    assert caught.value.remedy
