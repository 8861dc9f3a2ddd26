"""check sees what is broken, says what mends it, and that mends it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from imgtool.cli.main import main
from imgtool.model.image import Format
from imgtool.plan.finding import Severity
from imgtool.testing import MadeDomain, make_image, make_three_disks, write_pattern
from tests.crash.scenario import digest
from tests.effects.asking import disk, domain, qemu_img
from tests.effects.breaking import (
    corrupt,
    date_tag,
    die_in_a_snapshot,
    edit,
    findings,
    follow,
    forget_format,
    kinds,
    leak,
    overlay,
    record,
    repair,
    set_bit,
    snapshot,
    tag,
    tags,
)

Break = Callable[[MadeDomain], None]


@pytest.fixture
def machine(tmp_path: Path) -> MadeDomain:
    """Three disks with an external snapshot e1, and an internal i1 of the two qcow2 overlays."""
    made = make_three_disks(tmp_path)
    snapshot(made, "e1")
    snapshot(made, "i1", disk_only=False)
    return made


def now(made: MadeDomain, target: str) -> Path:
    """The overlay of e1."""
    return made.folder / f"vm-{target}.e1"


def test_a_sound_machine_is_well(machine: MadeDomain, capsys: pytest.CaptureFixture[str]) -> None:
    before = digest(machine.folder)
    assert findings(machine) == []
    assert main(["-c", machine.uri, "check", "vm"]) == 0
    assert capsys.readouterr().out == "vm: all is well\n"
    assert main(["-c", machine.uri, "check", "--all", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"domains": ["vm"], "findings": []}
    assert digest(machine.folder) == before


def lose_an_overlay(made: MadeDomain) -> None:
    now(made, "vdb").unlink()


def lose_a_base(made: MadeDomain) -> None:
    made.image("vdb").rename(made.folder / "elsewhere")


def overwrite_a_header(made: MadeDomain) -> None:
    now(made, "vda").write_bytes(b"\0" * 65536)


def loop(made: MadeDomain) -> None:
    words = ("-f", "qcow2", "-F", "qcow2", "-b", now(made, "vda"))
    qemu_img("rebase", "-u", *words, made.image("vda"))


def lose_a_format(made: MadeDomain) -> None:
    forget_format(now(made, "vda"))


def leak_clusters(made: MadeDomain) -> None:
    leak(made.image("vda"))
    leak(now(made, "vda"))


def break_refcounts(made: MadeDomain) -> None:
    corrupt(now(made, "vda"))


def mark_corrupt(made: MadeDomain) -> None:
    set_bit(now(made, "vda"), 2)


def mark_dirty(made: MadeDomain) -> None:
    set_bit(now(made, "vda"), 1)


def tag_without_record(made: MadeDomain) -> None:
    tag(now(made, "vda"), "lost")
    tag(made.image("vdb"), "lost")


def tag_again(made: MadeDomain) -> None:
    """As libvirt does when it tries again after a crash: the record is of the second."""
    tag(now(made, "vda"), "i1")
    date_tag(now(made, "vda"), 0, recorded_at(made, "i1") - 60)


def recorded_at(made: MadeDomain, name: str) -> int:
    """Seconds since the epoch."""
    text = record(made, name).read_text()
    return int(text.partition("<creationTime>")[2].partition("<")[0])


def lose_a_tag(made: MadeDomain) -> None:
    qemu_img("snapshot", "-d", "i1", now(made, "vdb"))


def lose_the_current_mark(made: MadeDomain) -> None:
    (mark,) = made.folder.glob(".imgtool/*/current")
    mark.unlink()


def lose_a_parent(made: MadeDomain) -> None:
    record(made, "e1").unlink()


def run_in_circles(made: MadeDomain) -> None:
    edit(record(made, "e1"), "</state>", "</state><parent><name>i1</name></parent>")


def be_interrupted_like_libvirt(made: MadeDomain) -> None:
    path = record(made, "e1")
    text = path.read_text()
    at = text.index("</disk>")
    path.write_text(text[:at] + "<snapshotDeleteInProgress/>" + text[at:])


def write_what_is_frozen(made: MadeDomain) -> None:
    """A deletion of e1 that died behind the first disk: its data are in the base already."""
    qemu_img("snapshot", "-d", "i1", now(made, "vda"))
    qemu_img("commit", "-q", "-f", "qcow2", now(made, "vda"))
    edit(made.xml, "vm-vda.e1", "vm-vda.qcow2")
    now(made, "vda").unlink()


def share_a_file(made: MadeDomain) -> None:
    """libvirt takes the same file= for two disks."""
    edit(made.xml, "vm-vdc.e1", "vm-vdb.e1")


def leave_a_stray(made: MadeDomain) -> None:
    overlay(made.folder / "stray", now(made, "vda"))
    overlay(made.folder / "on-the-stray", made.folder / "stray")


def leave_a_staged_file(made: MadeDomain) -> None:
    (made.folder / ".imgtool-0123456789abcdef-0").touch()


def leave_a_transaction(made: MadeDomain) -> None:
    die_in_a_snapshot(made, "s9")


def shrink(made: MadeDomain) -> None:
    qemu_img("snapshot", "-d", "i1", now(made, "vda"))
    qemu_img("resize", "-q", "--shrink", "-f", "qcow2", now(made, "vda"), "4M")
    tag(now(made, "vda"), "i1")


@pytest.mark.parametrize(
    ("how", "kind", "severity"),
    [
        (lose_an_overlay, "missing", Severity.ERROR),
        (overwrite_a_header, "unreadable", Severity.ERROR),
        (lose_a_format, "format-not-recorded", Severity.ERROR),
        (leak_clusters, "leaks", Severity.WARNING),
        (break_refcounts, "corruptions", Severity.ERROR),
        (mark_corrupt, "corrupt-bit", Severity.ERROR),
        (mark_dirty, "dirty-bit", Severity.WARNING),
        (tag_without_record, "tag-without-record", Severity.WARNING),
        (tag_again, "tag-twice", Severity.ERROR),
        (lose_a_tag, "tag-missing", Severity.ERROR),
        (lose_the_current_mark, "no-current", Severity.WARNING),
        (lose_a_parent, "parent", Severity.WARNING),
        (run_in_circles, "parent", Severity.WARNING),
        (write_what_is_frozen, "frozen-image-in-use", Severity.ERROR),
        (leave_a_stray, "stray", Severity.WARNING),
        (leave_a_staged_file, "staged", Severity.WARNING),
        (leave_a_transaction, "pending", Severity.ERROR),
        (shrink, "size", Severity.WARNING),
        (share_a_file, "shared", Severity.ERROR),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_is_broken_is_seen_and_its_remedy_works(
    machine: MadeDomain, how: Break, kind: str, severity: Severity
) -> None:
    how(machine)
    found = findings(machine)
    assert kind in [each.kind for each in found], found
    assert min(each.severity.rank for each in found) == found[0].severity.rank, "worst first"
    (first, *_) = [each for each in found if each.kind == kind]
    assert first.severity is severity
    for _ in range(6):  # what one remedy mends may uncover what another has to
        bad = [each for each in findings(machine) if each.severity is not Severity.NOTE]
        if not bad:
            break
        follow(bad[0].remedy)
    assert [each for each in findings(machine) if each.severity is not Severity.NOTE] == []


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (lose_a_base, "missing"),
        (loop, "loop"),
        (be_interrupted_like_libvirt, "deletion-interrupted"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_nobody_can_mend_alone_is_told_all_the_same(
    machine: MadeDomain, how: Break, kind: str
) -> None:
    how(machine)
    before = digest(machine.folder)
    (first, *_) = [each for each in findings(machine) if each.kind == kind]
    assert first.severity is Severity.ERROR
    assert first.remedy
    assert digest(machine.folder) == before


def test_what_a_repair_mends_it_mends_at_once(machine: MadeDomain) -> None:
    for how in (leak_clusters, lose_a_format, tag_without_record, tag_again):
        how(machine)
    lose_the_current_mark(machine)
    taken = {"format-not-recorded", "tag-twice", "leaks", "no-current", "tag-without-record"}
    assert set(kinds(machine)) == taken
    lines = repair(machine, drop_orphan_tags=True)
    assert len(lines) == 7, lines
    assert kinds(machine) == []
    assert tags(now(machine, "vda")) == ["i1"]
    assert repair(machine, drop_orphan_tags=True) == ()


def test_without_consent_no_tag_is_dropped(machine: MadeDomain) -> None:
    tag_without_record(machine)
    tag_again(machine)
    assert repair(machine) == ()
    assert tags(now(machine, "vda")) == ["i1", "lost", "i1"]
    assert set(kinds(machine)) == {"tag-without-record", "tag-twice"}


@pytest.mark.parametrize(
    ("first", "second", "mended"),
    [(-3600, 0, True), (-5, 10, True), (0, 0, True), (0, 3600, False), (-9, -5, False)],
)
def test_of_two_tags_the_one_that_the_record_is_of_stays(
    machine: MadeDomain, first: int, second: int, mended: bool
) -> None:
    """One that somebody made by hand, much later, cannot be dropped: -d takes the first."""
    tag_again(machine)
    created = recorded_at(machine, "i1")
    date_tag(now(machine, "vda"), 0, created + first)
    date_tag(now(machine, "vda"), 1, created + second)
    (found,) = findings(machine)
    assert (found.kind, "not clear" in found.message) == ("tag-twice", not mended)
    follow(found.remedy)
    assert len(repair(machine, drop_orphan_tags=True)) == 0
    assert len(tags(now(machine, "vda"))) == (1 if mended else 2)
    left = qemu_img("snapshot", "-l", now(machine, "vda")).splitlines()[2:]
    assert [line.split()[0] for line in left] == (["2"] if mended else ["1", "2"])


def test_a_format_that_records_disagree_upon_is_not_guessed(machine: MadeDomain) -> None:
    forget_format(now(machine, "vda"))
    other = machine.folder / "other.qcow2"
    words = ("-f", "qcow2", "-F", "raw", "-b", machine.image("vda"))
    qemu_img("create", "-q", *words, other)
    make_second(machine, other)
    (found,) = [each for each in findings(machine) if each.kind == "format-not-recorded"]
    assert "if the base is raw" in found.remedy
    assert repair(machine) == ()


def test_a_file_that_another_domain_writes_is_told_of(machine: MadeDomain) -> None:
    make_second(machine, now(machine, "vda"))
    (found,) = findings(machine)
    assert (found.kind, found.severity) == ("shared", Severity.WARNING)
    assert "domain vm2" in found.message


def make_second(made: MadeDomain, image: Path, name: str = "vm2") -> None:
    """Another domain of the store, with one disk."""
    xml = made.xml.read_text()
    head, _, rest = xml.partition("<devices>")
    uuid = head.partition("<uuid>")[2].partition("<")[0]
    head = head.replace("<name>vm<", f"<name>{name}<").replace(uuid, uuid[:-12] + "0" * 12)
    text = f"{head}<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
    text += f"<source file='{image}'/><target dev='vda'/></disk></devices></domain>"
    assert rest
    (made.folder / f"{name}.xml").write_text(text)


def test_an_unrecorded_base_of_unknown_format_is_for_people(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base", Format.RAW)
    top = overlay(tmp_path / "top", base, Format.RAW)
    forget_format(top)
    made = domain(tmp_path, disk(top))
    (found,) = findings(made)
    assert (found.kind, found.path) == ("format-not-recorded", top)
    assert repair(made) == ()
    follow(found.remedy)
    assert findings(made) == []


def test_an_absolute_name_in_a_relative_chain_is_a_note(tmp_path: Path) -> None:
    base = make_image(tmp_path / "base")
    mid = make_image(tmp_path / "mid", backing="base", backing_format=Format.QCOW2)
    top = overlay(tmp_path / "top", mid)
    made = domain(tmp_path, disk(top))
    (found,) = findings(made)
    assert (found.kind, found.severity, found.path) == ("absolute-name", Severity.NOTE, top)
    assert main(["-c", made.uri, "-q", "check", "vm"]) == 0
    follow(found.remedy)
    assert findings(made) == []
    assert base.exists()


def test_a_snapshot_whose_record_is_lost_is_adopted(tmp_path: Path) -> None:
    made = make_three_disks(tmp_path)
    snapshot(made, "e1")
    record(made, "e1").unlink()
    (found,) = findings(made)
    assert (found.kind, found.severity) == ("not-recorded", Severity.NOTE)
    write_pattern(made.folder / "vm-vda.e1", Format.QCOW2, 0, 512, 0x77)
    follow(found.remedy)
    assert findings(made) == []
    for words in (["snapshot-revert", "vm", "e1", "--keep"], ["snapshot-delete", "vm", "e1"]):
        assert main(["-c", made.uri, "-q", *words]) == 0, words
    assert [each.kind for each in findings(made) if each.severity is Severity.ERROR] == []


def test_a_snapshot_whose_images_are_gone_is_forgotten(tmp_path: Path) -> None:
    made = make_three_disks(tmp_path)
    snapshot(made, "e1")
    flat = tmp_path / "flat.qcow2"
    qemu_img("convert", "-f", "qcow2", "-O", "qcow2", tmp_path / "vm-vda.e1", flat)
    edit(made.xml, "vm-vda.e1", "flat.qcow2")
    for gone in ("vm-vda.e1", "vm-vda.qcow2"):
        (tmp_path / gone).unlink()
    (found,) = findings(made)
    assert (found.kind, found.disk) == ("missing", "vda")
    assert "snapshot e1" in found.message
    follow(found.remedy)
    assert [each for each in findings(made) if each.severity is not Severity.NOTE] == []


def test_quick_runs_no_qemu_img(machine: MadeDomain, monkeypatch: pytest.MonkeyPatch) -> None:
    leak_clusters(machine)
    tag_without_record(machine)
    monkeypatch.setenv("PATH", "/nowhere")
    assert {each.kind for each in findings(machine, quick=True)} == {"tag-without-record"}
    notes = [each for each in findings(machine) if each.kind == "not-checked"]
    assert notes
    assert all(each.severity is Severity.NOTE for each in notes)


@pytest.mark.parametrize("damage", ["<domain", "", "\0\1\2", "<domain><name>x</name></domain>"])
def test_one_damaged_domain_does_not_stop_the_others(
    machine: MadeDomain, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (machine.folder / "broken.xml").write_text(damage)
    leak_clusters(machine)
    assert main(["-c", machine.uri, "check", "--all"]) == 1
    out, err = capsys.readouterr()
    assert "domain broken cannot be read" in out
    assert "leaked clusters" in out
    assert "Traceback" not in out + err
    assert main(["-c", machine.uri, "check", "--all", "--repair"]) == 1
    out, err = capsys.readouterr()
    assert "leaked clusters are freed" in out
    assert "Traceback" not in out + err
    assert main(["-c", machine.uri, "check", "broken", "--json"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["domain"], found["kind"]) == ("broken", "domain-unreadable")


@pytest.mark.parametrize(
    "text", ["<domainsnapshot", "<domainsnapshot><name>e1</name></domainsnapshot>"]
)
def test_a_damaged_record_is_a_finding(machine: MadeDomain, text: str) -> None:
    record(machine, "e1").write_text(text)
    assert "record-unreadable" in kinds(machine)


def test_a_damaged_record_keeps_tags_and_strays(machine: MadeDomain) -> None:
    """What cannot be read may name them."""
    tag_without_record(machine)
    make_second(machine, make_image(machine.folder / "second.qcow2"))
    (machine.folder / "vm2.xml").write_text("<domain")
    assert repair(machine, drop_orphan_tags=True) == ()
    assert "lost" in tags(now(machine, "vda"))


@pytest.mark.parametrize(
    "words",
    [
        ["check", "vm", "--all"],
        ["check", "vm", "--drop-orphan-tags"],
        ["check", "vm", "--adopt"],
        ["check", "nobody"],
        ["gc", "vm", "--all"],
    ],
)
def test_what_cannot_be_meant_is_refused(machine: MadeDomain, words: list[str]) -> None:
    before = digest(machine.folder)
    assert main(["-c", machine.uri, *words]) == 2
    assert digest(machine.folder) == before


def test_a_dry_repair_writes_nothing(
    machine: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    for how in (leak_clusters, lose_a_format, tag_without_record):
        how(machine)
    before = digest(machine.folder)
    words = ["check", "vm", "--repair", "--drop-orphan-tags", "--dry-run"]
    assert main(["-c", machine.uri, *words]) == 0
    assert "leaked clusters are freed" in capsys.readouterr().out
    assert main(["-c", machine.uri, *words, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {step["kind"] for step in facts["plan"]} == {"ChangeInPlace"}
    assert digest(machine.folder) == before


def test_without_a_domain_all_are_looked_at(
    machine: MadeDomain, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["-c", machine.uri, "check", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["domains"] == ["vm"]
