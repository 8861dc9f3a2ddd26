"""What only the libvirt store promises: stopped domains, syncs, pools, silence, other URIs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgtool.host.files import Files
from imgtool.model.domain import DomainState, Head
from imgtool.model.errors import (
    BadRequestError,
    DomainActiveError,
    DomainChangedError,
    ImgtoolError,
    NotDurableError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    XmlError,
)
from imgtool.model.image import Format
from imgtool.model.plan import Move
from imgtool.stores.libvirt import NOBODY, LibvirtStore
from imgtool.stores.libvirt_files import LibvirtFiles, Place, place_of
from imgtool.stores.open import open_store
from imgtool.testing.images import make_image
from tests.libvirt_fixtures import embedded_uri, virsh

from .stores import (
    OTHER_UUID,
    UUID,
    BrokenFiles,
    crash,
    domain_xml,
    io_error,
    moved,
    seen,
    snapshot_xml,
)

MOVE = Move(target="vdb", path=Path("/nowhere/b.s1"), format=Format.QCOW2)


def emptied(store: LibvirtStore) -> None:
    for name in store.domains():
        store.undefine(name, snapshots_metadata=True)
    store.close()


@pytest.fixture
def embedded(embed_uri: str) -> Iterator[LibvirtStore]:
    """An empty embedded driver."""
    store = LibvirtStore(embed_uri, Files())
    yield store
    emptied(store)


@pytest.fixture
def daemon(libvirtd_uri: str) -> Iterator[LibvirtStore]:
    """An empty libvirtd; what still runs at the end is destroyed."""
    store = LibvirtStore(libvirtd_uri, Files())
    yield store
    for name in virsh(libvirtd_uri, "list", "--name").split():
        virsh(libvirtd_uri, "destroy", name)
    for name in virsh(libvirtd_uri, "list", "--all", "--with-managed-save", "--name").split():
        virsh(libvirtd_uri, "managedsave-remove", name)
    emptied(store)


@pytest.fixture
def bootable(daemon: LibvirtStore, tmp_path: Path) -> Head:
    """A domain with real images, defined in libvirtd."""
    make_image(tmp_path / "vm-a.qcow2")
    make_image(tmp_path / "vm-b.raw", Format.RAW)
    daemon.define(domain_xml().replace(b"/nowhere", os.fsencode(tmp_path)))
    return daemon.head("vm")


def refused_pivot(store: LibvirtStore, head: Head) -> DomainActiveError:
    with pytest.raises(DomainActiveError) as caught:
        store.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))
    assert store.head("vm").digest == head.digest
    return caught.value


@pytest.mark.libvirtd
@pytest.mark.qemu
def test_a_domain_that_is_not_plainly_stopped_is_refused(
    daemon: LibvirtStore, bootable: Head
) -> None:
    virsh(daemon.uri, "start", "vm")
    assert daemon.state("vm") is DomainState.RUNNING
    error = refused_pivot(daemon, bootable)
    assert (error.exit_code, error.remedy) == (3, "shut it down: virsh shutdown vm")
    with pytest.raises(DomainActiveError):
        daemon.undefine("vm")
    virsh(daemon.uri, "suspend", "vm")
    assert daemon.state("vm") is DomainState.PAUSED
    refused_pivot(daemon, bootable)
    virsh(daemon.uri, "managedsave", "vm")
    assert daemon.state("vm") is DomainState.SAVED
    assert "managedsave-remove vm" in refused_pivot(daemon, bootable).remedy
    virsh(daemon.uri, "managedsave-remove", "vm")
    daemon.pivot("vm", expected=bootable.digest, xml=moved(bootable, txid="t1"))
    assert daemon.head("vm").domain.transaction == "t1"


@pytest.mark.libvirtd
@pytest.mark.qemu
def test_a_transient_domain_is_refused(daemon: LibvirtStore, bootable: Head) -> None:
    virsh(daemon.uri, "start", "vm")
    daemon_xml = daemon.head("vm")
    virsh(daemon.uri, "undefine", "vm")
    assert daemon.domains() == ()
    assert daemon.state("vm") is DomainState.TRANSIENT
    assert "persistent" in refused_pivot(daemon, daemon_xml).remedy


@pytest.mark.libvirtd
@pytest.mark.qemu
def test_the_inactive_xml_is_read_of_a_running_domain(daemon: LibvirtStore, bootable: Head) -> None:
    virsh(daemon.uri, "start", "vm")
    assert daemon.head("vm").xml == bootable.xml


@pytest.mark.libvirtd
def test_virsh_sees_records_and_its_edits_are_noticed(daemon: LibvirtStore) -> None:
    daemon.define(domain_xml())
    head = daemon.head("vm")
    for name, parent in (("s1", ""), ("s2", "s1")):
        daemon.record("vm", name, snapshot_xml(head, name, parent=parent), current=True)
    assert virsh(daemon.uri, "snapshot-list", "vm", "--name").split() == ["s1", "s2"]
    assert virsh(daemon.uri, "snapshot-current", "vm", "--name") == "s2"
    assert virsh(daemon.uri, "snapshot-parent", "vm", "s2") == "s1"
    shown = virsh(daemon.uri, "snapshot-dumpxml", "--security-info", "vm", "s2")
    assert shown.encode().strip() in [xml.strip() for xml in daemon.snapshots("vm")]
    virsh(daemon.uri, "snapshot-delete", "vm", "s2", "--metadata")
    assert daemon.current("vm") == "s1"
    virsh(daemon.uri, "desc", "vm", "--config", "somebody was here")
    with pytest.raises(DomainChangedError):
        daemon.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))
    assert daemon.head("vm").domain.transaction == ""


@pytest.mark.libvirtd
def test_a_restarted_libvirtd_reads_back_the_same(daemon: LibvirtStore, libvirtd_uri: str) -> None:
    """libvirtd parses its files only when it starts: an embedded driver reads copies of them."""
    daemon.define(domain_xml())
    head = daemon.head("vm")
    daemon.record("vm", "s1", snapshot_xml(head, "s1"), current=True)
    daemon.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))
    folder = Path(libvirtd_uri.partition("socket=")[2]).parent.parent
    root = folder / "copy"
    uri = embedded_uri(root)
    for source, target in (("etc/qemu", "etc/qemu"), ("lib/qemu/snapshot", "lib/qemu/snapshot")):
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-r", folder / source, root / target], check=True)
    work = f"""
from imgtool.stores.open import open_store
store = open_store({uri!r})
print(store.head("vm").digest, store.current("vm"), len(store.snapshots("vm")))
"""
    done = subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [daemon.head("vm").digest, "s1", "1"], done.stderr


@pytest.mark.libvirtd
def test_a_volume_is_found_through_its_active_pool(daemon: LibvirtStore, tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk.qcow2")
    virsh(daemon.uri, "pool-define-as", "images", "dir", "--target", tmp_path)
    try:
        with pytest.raises(StoreError, match="not active") as caught:
            daemon.volume("images", "disk.qcow2")
        assert caught.value.remedy == "virsh pool-start images"
        virsh(daemon.uri, "pool-start", "images")
        assert daemon.volume("images", "disk.qcow2") == image
        with pytest.raises(NotFoundError, match=r"other\.qcow2") as missing:
            daemon.volume("images", "other.qcow2")
        assert "pool-refresh images" in missing.value.remedy
        virsh(daemon.uri, "pool-destroy", "images")
    finally:
        virsh(daemon.uri, "pool-undefine", "images", check=False)


def test_libvirts_own_output_is_a_fixpoint(embedded: LibvirtStore) -> None:
    embedded.define(domain_xml())
    head = embedded.head("vm")
    embedded.pivot("vm", expected=head.digest, xml=head.xml)
    assert embedded.head("vm") == head


def test_what_libvirt_does_not_keep_is_noticed_and_taken_back(embedded: LibvirtStore) -> None:
    """libvirt sorts disks by target; that stands for a change that matters."""
    embedded.define(domain_xml())
    head = embedded.head("vm")
    new = moved(head, MOVE, txid="t1")
    first, second, third = [m.start() for m in re.finditer(rb"    <(disk|controller) ", new)][:3]
    with pytest.raises(StoreError, match="the old XML is back"):
        embedded.pivot(
            "vm",
            expected=head.digest,
            xml=new[:first] + new[second:third] + new[first:second] + new[third:],
        )
    assert embedded.head("vm") == head


def test_a_record_needs_its_parent(embedded: LibvirtStore) -> None:
    embedded.define(domain_xml())
    head = embedded.head("vm")
    with pytest.raises(BadRequestError, match="parent never"):
        embedded.record("vm", "s1", snapshot_xml(head, "s1", parent="never"), current=True)
    assert embedded.snapshots("vm") == ()


def test_the_stand_in_that_a_crash_leaves_is_hidden_and_dropped(embedded: LibvirtStore) -> None:
    embedded.define(domain_xml())
    head = embedded.head("vm")
    embedded.record("vm", "s1", snapshot_xml(head, "s1"), current=True)
    embedded.record("vm", NOBODY, snapshot_xml(head, NOBODY), current=True)
    assert (len(embedded.snapshots("vm")), embedded.current("vm")) == (1, None)
    folder = place_of(embedded.uri)
    assert folder is not None
    assert (folder.snapshots / f"vm/{NOBODY}.xml").exists()
    embedded.settle("vm")
    assert not (folder.snapshots / f"vm/{NOBODY}.xml").exists()
    assert embedded.current("vm") is None


# --- durability -----------------------------------------------------------------------------


def place(uri: str) -> Place:
    found = place_of(uri)
    assert found is not None
    return found


def test_a_pivot_syncs_the_file_and_its_folder(embedded: LibvirtStore, embed_uri: str) -> None:
    embedded.define(domain_xml())
    head = embedded.head("vm")
    files = BrokenFiles(fail=crash)
    LibvirtStore(embed_uri, files).pivot("vm", expected=head.digest, xml=head.xml)
    domains = place(embed_uri).domains
    assert files.calls[:1] == [f"sync_file {domains}/vm.xml"]
    assert f"sync_dir {domains}" in files.calls


def test_a_record_syncs_its_folders(embedded: LibvirtStore, embed_uri: str) -> None:
    embedded.define(domain_xml())
    files = BrokenFiles(fail=crash)
    store = LibvirtStore(embed_uri, files)
    store.record("vm", "s1", snapshot_xml(embedded.head("vm"), "s1"), current=True)
    snapshots = place(embed_uri).snapshots
    assert {f"sync_dir {snapshots / 'vm'}", f"sync_dir {snapshots}"} <= set(files.calls)
    files.calls.clear()
    store.forget("vm", "s1")
    assert f"sync_dir {snapshots}" in files.calls
    files.calls.clear()
    store.undefine("vm")
    assert f"sync_dir {place(embed_uri).domains}" in files.calls


def test_a_pivot_that_cannot_be_synced_says_so(embedded: LibvirtStore, embed_uri: str) -> None:
    embedded.define(domain_xml())
    head = embedded.head("vm")
    store = LibvirtStore(embed_uri, BrokenFiles(1, fail=io_error))
    with pytest.raises(NotDurableError, match="Input/output error") as caught:
        store.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))
    assert caught.value.exit_code == 4
    assert embedded.head("vm").domain.transaction == "t1"


def test_a_pivot_that_libvirt_cannot_save_changes_nothing(
    embedded: LibvirtStore, embed_uri: str
) -> None:
    embedded.define(domain_xml())
    head = embedded.head("vm")
    blocker = place(embed_uri).domains / "vm.xml.new"
    blocker.mkdir()  # where libvirt writes before it renames
    try:
        with pytest.raises(StoreError, match=r"vm\.xml\.new"):
            embedded.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))
    finally:
        blocker.rmdir()
    assert embedded.head("vm") == head


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("qemu:///system", ("/etc/libvirt/qemu", "/var/lib/libvirt/qemu/snapshot")),
        ("qemu:///session", ("/home/me/.cfg/libvirt/qemu", "/home/me/.cfg/libvirt/qemu/snapshot")),
        ("qemu:///embed?root=/r", ("/r/etc/qemu", "/r/lib/qemu/snapshot")),
        ("qemu+unix:///system?socket=/s", None),
        ("qemu:///other", None),
    ],
)
def test_where_libvirt_keeps_its_files(
    uri: str, expected: tuple[str, str] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", "/home/me/.cfg")
    wanted = None if expected is None else Place(Path(expected[0]), Path(expected[1]))
    assert place_of(uri) == wanted


def test_the_embedded_driver_keeps_its_journals_in_its_root(
    embedded: LibvirtStore, embed_uri: str
) -> None:
    assert embedded.state_dir == Path(embed_uri.partition("root=")[2]) / "imgtool"


# --- other URIs, no libvirt, silence ----------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "qemu://host/system",
        "qemu://localhost/system",
        "qemu+ssh://me@host/system",
        "qemu+tls:///system",
        "qemu+tcp:///system",
        "qemu+libssh2://host/system",
        "qemu+ext:///system?command=x",
    ],
)
def test_another_host_is_refused_before_libvirt_is_loaded(uri: str) -> None:
    with pytest.raises(UnsupportedError, match="images are on that host") as caught:
        open_store(uri)
    assert "run imgtool there" in caught.value.remedy


@pytest.mark.parametrize("uri", ["test:///default", "xen:///system", "lxc:///", "esx://h/"])
def test_another_hypervisor_is_refused(uri: str) -> None:
    with pytest.raises(UnsupportedError, match="not a QEMU URI"):
        open_store(uri)


@pytest.mark.parametrize("uri", ["", "dir:", "vm", "/images", "qemu:", "qemu://[/system"])
def test_what_is_no_uri_is_bad_input(uri: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        open_store(uri)
    assert caught.value.remedy


def python(work: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", work], capture_output=True, text=True, check=False)


def test_refusing_a_uri_loads_no_slow_library() -> None:
    done = python(
        "import sys\n"
        "from imgtool.stores.open import open_store\n"
        "from imgtool.model.errors import UnsupportedError\n"
        "try: open_store('qemu+ssh://h/system')\n"
        "except UnsupportedError: print('libvirt' in sys.modules)\n"
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_without_the_libvirt_module_the_remedy_names_it() -> None:
    done = python(
        "import sys\n"
        "sys.modules['libvirt'] = None\n"
        "from imgtool.stores.open import open_store\n"
        "from imgtool.model.errors import StoreError\n"
        "try: open_store('qemu:///system')\n"
        "except StoreError as error: print(error.remedy)\n"
    )
    assert done.stdout == "pip install imgtool[libvirt], or apt install python3-libvirt\n"


def test_libvirt_prints_nothing_and_its_error_is_ours(tmp_path: Path) -> None:
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    done = python(
        "from imgtool.stores.open import open_store\n"
        "from imgtool.model.errors import StoreError\n"
        f"try: open_store({uri!r})\n"
        "except StoreError as error: print(error, error.remedy)\n"
    )
    assert "Failed to connect socket" in done.stdout
    assert "virsh -c" in done.stdout
    assert done.stderr == ""


@pytest.mark.libvirtd
def test_a_connection_that_is_gone_is_a_store_error(libvirtd_uri: str) -> None:
    store = LibvirtStore(libvirtd_uri, Files())
    store.close()
    with pytest.raises(ImgtoolError):
        store.domains()


def test_libvirts_words_become_our_types(embedded: LibvirtStore) -> None:
    embedded.define(domain_xml())
    head = embedded.head("vm")
    with pytest.raises(BadRequestError, match="furlong"):
        embedded.define(domain_xml().replace(b"<memory unit='MiB'>", b"<memory unit='furlong'>"))
    with pytest.raises(UnsupportedError, match="lun"):
        embedded.define(domain_xml().replace(b"device='disk'", b"device='lun'"))
    with pytest.raises(XmlError, match="libvirt: "):
        embedded.define(domain_xml().replace(b"bus='virtio'", b"bus='bicycle'"))
    assert seen(embedded) == (head, [], None)


def test_files_of_another_domain_are_not_taken_for_ours(
    embedded: LibvirtStore, embed_uri: str
) -> None:
    embedded.define(domain_xml())
    files = LibvirtFiles(embed_uri, Files())
    assert files.found("vm", UUID)
    assert not files.found("vm", OTHER_UUID)
    assert not files.found("never", UUID)
