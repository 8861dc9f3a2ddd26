"""What only the directory store promises: bytes kept, atomic files, nothing left behind."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.host.files import Files
from imgtool.model.errors import (
    BadRequestError,
    ExistsError,
    NotDurableError,
    NotFoundError,
    StoreError,
    UnsupportedError,
    XmlError,
)
from imgtool.model.image import Format
from imgtool.model.plan import Move
from imgtool.stores.directory import DirectoryStore
from imgtool.stores.open import open_store
from tests.crash.disks import read_only

from .stores import (
    OTHER_UUID,
    UUID,
    BrokenFiles,
    Crash,
    crash,
    domain_xml,
    folder_state,
    io_error,
    moved,
    seen,
    snapshot_xml,
)

MOVE = Move(target="vdb", path=Path("/nowhere/b.s1"), format=Format.QCOW2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one hand-written domain, in a folder of its own."""
    folder = tmp_path / "domains"
    folder.mkdir()
    (folder / "vm.xml").write_bytes(domain_xml())
    return folder


def opened(folder: Path, files: Files | None = None) -> DirectoryStore:
    return DirectoryStore(folder, files or Files())


def test_uri_and_state_belong_to_the_folder(folder: Path) -> None:
    store = open_store(f"dir:{folder}/../domains")
    assert (store.uri, store.state_dir) == (f"dir:{folder}", folder / ".imgtool")


def test_a_relative_folder_stays_when_the_process_moves(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    store = open_store("dir:.")
    monkeypatch.chdir(tmp_path)
    assert store.domains() == ("vm",)


@pytest.mark.parametrize("name", ["missing", "vm.xml"])
def test_a_store_is_a_folder(folder: Path, name: str) -> None:
    with pytest.raises(StoreError, match="not a folder") as caught:
        open_store(f"dir:{folder / name}")
    assert caught.value.remedy


def test_hidden_and_other_files_are_no_domains(folder: Path) -> None:
    for name in (".hidden.xml", ".xml", "vm.xml~", "notes.txt"):
        (folder / name).write_bytes(b"not looked at")
    (folder / ".imgtool").mkdir()
    assert opened(folder).domains() == ("vm",)


def test_bytes_outside_the_edit_survive(folder: Path) -> None:
    store = opened(folder)
    head = store.head("vm")
    store.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))
    text = (folder / "vm.xml").read_text()
    assert "<!-- as written -->" in text
    assert text.replace("b.s1", "vm-b.raw").count("\n") == domain_xml().count(b"\n") + 3
    assert store.head("vm").xml == text.encode()


def test_define_writes_what_it_was_given(folder: Path) -> None:
    xml = domain_xml("new", uuid=OTHER_UUID)
    opened(folder).define(xml)
    assert (folder / "new.xml").read_bytes() == xml


def test_a_random_uuid_goes_behind_the_name(folder: Path) -> None:
    opened(folder).define(domain_xml("new", uuid=""))
    lines = (folder / "new.xml").read_text().splitlines()
    assert lines[2] == "  <name>new</name>"
    assert lines[3].startswith("  <uuid>")
    assert [*lines[:3], *lines[4:]] == domain_xml("new", uuid="").decode().splitlines()


def test_a_domain_without_uuid_can_be_worked_with(folder: Path) -> None:
    (folder / "vm.xml").write_bytes(domain_xml(uuid=""))
    store = opened(folder)
    head = store.head("vm")
    store.record("vm", "s1", snapshot_xml(head, "s1"), current=True)
    store.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))
    assert b"uuid" not in (folder / "vm.xml").read_bytes()
    assert (len(store.snapshots("vm")), store.current("vm")) == (1, "s1")


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640])
def test_mode_and_owner_stay(folder: Path, mode: int) -> None:
    path = folder / "vm.xml"
    path.chmod(mode)
    owner = (path.stat().st_uid, path.stat().st_gid)
    store = opened(folder)
    head = store.head("vm")
    store.pivot("vm", expected=head.digest, xml=moved(head, txid="t1"))
    store.define(domain_xml(note="again"))
    after = path.stat()
    assert (stat.S_IMODE(after.st_mode), (after.st_uid, after.st_gid)) == (mode, owner)


def test_what_may_hold_passwords_is_for_the_owner_alone(folder: Path) -> None:
    store = opened(folder)
    store.define(domain_xml("new", uuid=OTHER_UUID))
    store.record("vm", "s1", snapshot_xml(store.head("vm"), "s1"), current=True)
    record = folder / ".imgtool" / UUID / "snapshots/s1.xml"
    for path in (folder / "new.xml", record, record.parent.parent / "current"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for path in (record.parent, record.parent.parent, folder / ".imgtool"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_file_that_is_of_another_domain_is_refused(folder: Path) -> None:
    (folder / "vm.xml").rename(folder / "copy.xml")
    with pytest.raises(XmlError, match="called 'vm'") as caught:
        opened(folder).head("copy")
    assert "agree" in caught.value.remedy


def test_a_symbolic_link_is_refused(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.xml"
    (folder / "vm.xml").rename(target)
    (folder / "vm.xml").symlink_to(target)
    store = opened(folder)
    with pytest.raises(UnsupportedError, match="symbolic link") as caught:
        store.head("vm")
    assert str(tmp_path) in caught.value.remedy
    with pytest.raises(UnsupportedError):
        store.define(domain_xml())
    assert (folder / "vm.xml").is_symlink()
    assert target.read_bytes() == domain_xml()


def test_a_pipe_does_not_hang(folder: Path) -> None:
    (folder / "vm.xml").unlink()
    subprocess.run(["mkfifo", folder / "vm.xml"], check=True)
    with pytest.raises(StoreError, match="not a regular file"):
        opened(folder).head("vm")


@pytest.mark.parametrize("name", ["", "../vm", "/etc/vm", ".imgtool", "a\nb", "x" * 252, "\udcff"])
def test_a_name_cannot_lead_out_of_the_folder(folder: Path, name: str) -> None:
    store = opened(folder)
    with pytest.raises(BadRequestError):
        store.head(name)
    with pytest.raises(BadRequestError):
        store.record("vm", name, snapshot_xml(store.head("vm"), "s1"), current=True)
    assert folder_state(folder) == {"vm.xml": domain_xml()}


def test_a_broken_neighbour_is_named_only_when_asked_for(folder: Path) -> None:
    (folder / "broken.xml").write_bytes(b"<domain")
    store = opened(folder)
    assert store.domains() == ("broken", "vm")
    assert store.head(UUID).domain.name == "vm"
    store.define(domain_xml("new", uuid=OTHER_UUID))
    with pytest.raises(XmlError, match=r"broken\.xml"):
        store.head("broken")


def test_a_copied_domain_cannot_be_defined_over_its_original(folder: Path) -> None:
    with pytest.raises(ExistsError, match="that of domain vm"):
        opened(folder).define(domain_xml("copy"))
    assert folder_state(folder) == {"vm.xml": domain_xml()}


def test_a_record_under_a_foreign_file_name_is_refused(folder: Path) -> None:
    store = opened(folder)
    store.record("vm", "s1", snapshot_xml(store.head("vm"), "s1"), current=True)
    snapshots = folder / ".imgtool" / UUID / "snapshots"
    (snapshots / "s1.xml").rename(snapshots / "s2.xml")
    with pytest.raises(XmlError, match=r"s2\.xml.*'s1'"):
        store.snapshots("vm")
    assert store.current("vm") is None


def test_a_folder_that_cannot_be_written_can_be_read(folder: Path) -> None:
    writable = opened(folder)
    writable.record("vm", "s1", snapshot_xml(writable.head("vm"), "s1"), current=True)
    before = folder_state(folder)
    with read_only(folder):
        store = open_store(f"dir:{folder}")
        assert store.domains() == ("vm",)
        assert store.head("vm").domain.uuid == store.head(UUID).domain.uuid
        assert len(store.snapshots("vm")) == 1
        assert store.current("vm") == "s1"
        store.settle("vm")
        store.forget("vm", "never")
        with pytest.raises(StoreError, match="Read-only file system"):
            store.forget("vm", "s1")
    assert folder_state(folder) == before


def test_nothing_of_ours_stays_when_nothing_is_recorded(folder: Path) -> None:
    store = opened(folder)
    head = store.head("vm")
    store.record("vm", "s1", snapshot_xml(head, "s1"), current=True)
    store.forget("vm", "s1")
    store.pivot("vm", expected=head.digest, xml=head.xml)
    store.settle("vm")
    assert folder_state(folder) == {"vm.xml": domain_xml()}
    store.undefine("vm")
    assert folder_state(folder) == {}


def test_what_is_not_ours_stays(folder: Path) -> None:
    store = opened(folder)
    home = folder / ".imgtool" / UUID
    store.record("vm", "s1", snapshot_xml(store.head("vm"), "s1"), current=True)
    (home / "lock").touch()
    (home / "snapshots/.note").touch()
    store.undefine("vm", snapshots_metadata=True)
    names = {f".imgtool/{UUID}/lock", f".imgtool/{UUID}/snapshots/.note"}
    assert names < set(folder_state(folder))


# --- failures and crashes -------------------------------------------------------------------

Work = Callable[[DirectoryStore], None]


def pivots(store: DirectoryStore) -> None:
    head = store.head("vm")
    store.pivot("vm", expected=head.digest, xml=moved(head, MOVE, txid="t1"))


def records(store: DirectoryStore) -> None:
    store.record("vm", "s2", snapshot_xml(store.head("vm"), "s2", parent="s1"), current=True)


def replaces(store: DirectoryStore) -> None:
    store.record("vm", "s1", snapshot_xml(store.head("vm"), "s1", note="second"), current=False)


def forgets(store: DirectoryStore) -> None:
    store.forget("vm", "s1")


def marks(store: DirectoryStore) -> None:
    store.set_current("vm", None)


def defines(store: DirectoryStore) -> None:
    store.define(domain_xml(note="again"))


def settles(store: DirectoryStore) -> None:
    store.settle("vm")


def undefines(store: DirectoryStore) -> None:
    store.undefine("vm", snapshots_metadata=True)


WORKS: list[Work] = [pivots, records, replaces, forgets, marks, defines, settles]


def world(tmp_path: Path, number: int) -> Path:
    folder = tmp_path / str(number)
    folder.mkdir()
    (folder / "vm.xml").write_bytes(domain_xml())
    store = opened(folder)
    store.record("vm", "s1", snapshot_xml(store.head("vm"), "s1"), current=True)
    return folder


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_at_any_call_leaves_each_file_old_or_new(
    tmp_path: Path, work: Work, after: bool
) -> None:
    folder = world(tmp_path, 0)
    old = folder_state(folder)
    counting = BrokenFiles(fail=crash)
    work(opened(folder, counting))
    new = folder_state(folder)
    assert counting.calls
    for number in range(1, len(counting.calls) + 1):
        folder = world(tmp_path, number)
        with pytest.raises(Crash):
            work(opened(folder, BrokenFiles(number, after=after, fail=crash)))
        opened(folder).settle("vm")
        left = folder_state(folder)
        for name, content in left.items():
            assert content in (old.get(name), new.get(name)), f"{name}, call {number}"
        assert set(old) & set(new) <= set(left), f"call {number}"
        work(opened(folder))
        assert seen(opened(folder)) == seen(opened(tmp_path / "0")), f"again after {number}"


@pytest.mark.parametrize("work", [pivots, records, replaces, defines])
def test_a_crash_while_writing_leaves_one_temporary_file(tmp_path: Path, work: Work) -> None:
    folder = world(tmp_path, 0)
    before = folder_state(folder)
    home = folder / ".imgtool" / UUID
    (home / "new").write_bytes(b"<doma")
    opened(folder).settle("vm")
    assert folder_state(folder) == before
    (home / "new").write_bytes(b"<doma")
    work(opened(folder))
    assert not (home / "new").exists()


def test_a_crash_in_undefine_never_leaves_metadata_alone(tmp_path: Path) -> None:
    counting = BrokenFiles(fail=crash)
    undefines(opened(world(tmp_path, 0), counting))
    for number in range(1, len(counting.calls) + 1):
        folder = world(tmp_path, number)
        with pytest.raises(Crash):
            undefines(opened(folder, BrokenFiles(number, fail=crash)))
        if (folder / "vm.xml").exists():
            undefines(opened(folder))
            assert folder_state(folder) == {}
        assert not list(folder.rglob("s1.xml"))


@pytest.mark.parametrize("work", WORKS)
def test_an_error_at_any_call_is_a_store_error_and_can_be_repeated(
    tmp_path: Path, work: Work
) -> None:
    counting = BrokenFiles(fail=io_error)
    work(opened(world(tmp_path, 0), counting))
    for number in range(1, len(counting.calls) + 1):
        folder = world(tmp_path, number)
        with pytest.raises((StoreError, NotDurableError), match="Input/output error") as caught:
            work(opened(folder, BrokenFiles(number, fail=io_error)))
        assert caught.value.remedy
        assert not (folder / ".imgtool" / UUID / "new").exists()
        work(opened(folder))
        assert seen(opened(folder)) == seen(opened(tmp_path / "0"))


def test_a_pivot_that_failed_before_its_rename_changed_nothing(folder: Path) -> None:
    with pytest.raises(StoreError):
        pivots(opened(folder, BrokenFiles(2, fail=io_error)))
    assert folder_state(folder) == {"vm.xml": domain_xml()}


def test_a_pivot_that_failed_after_its_rename_says_so(folder: Path) -> None:
    class NoSync(Files):
        def sync_dir(self, path: Path) -> None:
            if path == folder and (folder / "vm.xml").read_bytes() != domain_xml():
                io_error()
            super().sync_dir(path)

    with pytest.raises(NotDurableError, match="new XML") as caught:
        pivots(opened(folder, NoSync()))
    assert caught.value.exit_code == 4
    assert opened(folder).head("vm").domain.transaction == "t1"


@pytest.mark.parametrize("work", [*WORKS, undefines])
def test_every_name_that_changes_is_synced_afterwards(tmp_path: Path, work: Work) -> None:
    folder = world(tmp_path, 0)
    (folder / ".imgtool" / UUID / "new").touch()
    files = BrokenFiles(fail=crash)
    work(opened(folder, files))
    changed = []
    for number, call in enumerate(files.calls):
        verb, _, path = call.partition(" ")
        if verb in ("unlink", "write_atomically"):
            changed.append(path)
            assert f"sync_dir {Path(path).parent}" in files.calls[number + 1 :], call
    assert changed


@pytest.mark.parametrize("work", [pivots, records, replaces, defines])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, work: Work) -> None:
    class FullDisk(Files):
        def write_atomically(
            self, path: Path, data: bytes, *, temp: Path, mode: int = 0o600
        ) -> None:
            temp.write_bytes(data[:100])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(temp))

    folder = world(tmp_path, 0)
    before = folder_state(folder)
    with pytest.raises(StoreError, match="No space left on device"):
        work(opened(folder, FullDisk()))
    assert folder_state(folder) == before


def test_settle_syncs_the_folders_again(tmp_path: Path) -> None:
    folder = world(tmp_path, 0)
    files = BrokenFiles(fail=crash)
    settles(opened(folder, files))
    home = folder / ".imgtool" / UUID
    for path in (home / "snapshots", home, folder / ".imgtool", folder):
        assert f"sync_dir {path}" in files.calls
    assert f"sync_file {folder}/vm.xml" in files.calls


def test_an_unknown_domain_is_named_with_the_folder(folder: Path) -> None:
    with pytest.raises(NotFoundError, match=f"'never' in {folder}"):
        opened(folder).head("never")
