"""What the reading commands print, against the real virsh on libvirt's test driver."""

from __future__ import annotations

import contextlib
import io
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.cli.main import main
from imgtool.cli.tree import CURRENT

TEST_UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"  # of the domain that the driver starts with
DOMAIN = f"""\
<domain type='test'>
  <name>test</name>
  <uuid>{TEST_UUID}</uuid>
  <memory>8388608</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='i686'>hvm</type>
  </os>
  <devices>
    <disk type='file' device='disk'>
      <source file='/guest/diskimage1'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""
OVERLAY = "<driver type='qcow2'/><source file='/guest/overlay'/>"
MARK = "== the next answer =="  # virsh 11 takes a leading dash for an option
FLAGS = (
    *("parent", "roots", "leaves", "no-leaves", "metadata", "no-metadata", "inactive", "active"),
    *("disk-only", "internal", "external", "tree", "current", "descendants", "name"),
)
# All of a group is as good as none of it, but for leaves.
GROUPS = (
    ("--metadata", "--no-metadata"),
    ("--leaves", "--no-leaves"),
    ("--internal", "--external"),
    ("--inactive", "--active"),
    ("--inactive", "--active", "--disk-only"),
    ("--current", "--descendants", "--tree"),
)


@dataclass(frozen=True)
class Recorded:
    """A snapshot to be recorded on both sides."""

    name: str
    parent: str | None
    created: int
    state: str
    external: bool

    @property
    def xml(self) -> str:
        memory = "internal" if self.state == "running" else "no"
        mode, overlay = ("external", OVERLAY) if self.external else ("internal", "")
        kind = " type='file'" if self.external else ""
        parent = f"<parent><name>{self.parent}</name></parent>" if self.parent else ""
        return (
            f"<domainsnapshot><name>{self.name}</name><state>{self.state}</state>{parent}"
            f"<creationTime>{self.created}</creationTime><memory snapshot='{memory}'/>"
            f"<disks><disk name='vda' snapshot='{mode}'{kind}>{overlay}</disk></disks>"
            f"{DOMAIN}</domainsnapshot>"
        )


letters = st.characters(min_codepoint=0xC0, max_codepoint=0x24F, categories=["L"])
# Not two that differ in case only: virsh leaves their order to chance.
names = st.lists(
    st.text(st.sampled_from("abXYZ019_+:~é中한😀") | letters, min_size=1, max_size=12),
    min_size=1,
    max_size=9,
    unique_by=lambda name: name.casefold().encode().lower(),
)


@st.composite
def forests(draw: st.DrawFn) -> tuple[Recorded, ...]:
    """Snapshots in an order in which they can be recorded: parents first."""
    found: list[Recorded] = []
    for name in draw(names):
        parent = draw(st.sampled_from([None, *(each.name for each in found)]))
        state = draw(st.sampled_from(("shutoff", "running", "disk-snapshot")))
        # Both directions of time, and both halves of a year with summer time.
        created = draw(st.integers(-(10**9), 4 * 10**9).filter(bool))
        external = state == "disk-snapshot" or (state == "shutoff" and draw(st.booleans()))
        found.append(Recorded(name, parent, created, state, external))
    return tuple(found)


@st.composite
def lists(draw: st.DrawFn, names: Sequence[str]) -> tuple[str, ...]:
    """Options of snapshot-list, few or many, fitting or not."""
    flags = draw(st.lists(st.sampled_from(FLAGS), max_size=3, unique=True))
    start = draw(st.sampled_from((None, None, "nobody", *names, *names)))
    return (*(f"--{flag}" for flag in flags), *(("--from", start) if start else ()))


def virsh(commands: Iterable[Sequence[str]], uri: str = "test:///default") -> list[tuple[str, str]]:
    """What one virsh prints for each of these commands: its text and its error."""
    spoken = [" ".join(f'"{word}"' for word in command) for command in commands]
    script = f"; echo '{MARK}'; ".join([*spoken, ""])
    done = subprocess.run(
        ["virsh", "-c", uri, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    *answers, end = done.stdout.split(f"{MARK}\n")
    assert not end.strip()
    assert len(answers) == len(spoken)
    return [_split(answer) for answer in answers]


def _split(answer: str) -> tuple[str, str]:
    text, sign, error = answer.partition("error: ")
    return text, error.strip() if sign else ""


def ours(store: Path | str, *argv: str | Path) -> tuple[str, str]:
    """The same of imgtool, in this process, on a folder or a libvirt URI.

    A tree without the mark at the current snapshot, which virsh's has not.
    """
    uri = f"dir:{store}" if isinstance(store, Path) else store
    binary, err = io.BytesIO(), io.StringIO()
    out = io.TextIOWrapper(binary, encoding="utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["-c", uri, *map(str, argv)])
    error = err.getvalue().partition("error: ")[2].partition("\nremedy: ")[0]
    assert bool(code) == bool(error), err.getvalue()
    text = binary.getvalue().decode()
    return text.replace(CURRENT, "") if "--tree" in argv else text, error


@contextlib.contextmanager
def both(forest: Sequence[Recorded], current: str | None) -> Iterator[tuple[Path, list[list[str]]]]:
    """A folder with the domain and its snapshots, and the commands that make virsh's the same."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name, ".imgtool", TEST_UUID)
        (home / "snapshots").mkdir(parents=True)
        Path(name, "test.xml").write_text(DOMAIN)
        if current is not None:
            (home / "current").write_text(current)
        commands = []
        for snapshot in forest:
            path = home / "snapshots" / f"{snapshot.name}.xml"
            path.write_text(snapshot.xml)
            command = ["snapshot-create", "test", str(path), "--redefine"]
            commands.append(command + ["--current"] * (snapshot.name == current))
        yield Path(name), commands


@contextlib.contextmanager
def time_zone(name: str) -> Iterator[None]:
    """Local time, here and in the processes that are started inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LC_ALL", "C.UTF-8")
        patch.setenv("TZ", name)
        time.tzset()
        yield
    time.tzset()


QUICK = settings(max_examples=20, deadline=None)
zones = st.sampled_from(("UTC", "Europe/Berlin", "America/St_Johns"))


@QUICK
@given(st.data())
def test_snapshot_list_is_virsh_s(data: st.DataObject) -> None:
    """Whatever the options: the same table, tree or names, or the same refusal."""
    forest = data.draw(forests())
    known = [each.name for each in forest]
    current = data.draw(st.none() | st.sampled_from(known))
    always: list[tuple[str, ...]] = [(), *((f"--{flag}",) for flag in FLAGS), *GROUPS]
    asked = always + data.draw(st.lists(lists(known), min_size=8, max_size=16))
    with both(forest, current) as (folder, preparing), time_zone(data.draw(zones)):
        wanted = [["snapshot-list", "test", *options] for options in asked]
        theirs = virsh([*preparing, *wanted])[len(preparing) :]
        for command, (text, error) in zip(wanted, theirs, strict=True):
            assert ours(folder, *command) == (text, error), command


@QUICK
@given(st.data())
def test_one_snapshot_is_shown_as_virsh_does(data: st.DataObject) -> None:
    forest = data.draw(forests())
    known = [each.name for each in forest]
    current = data.draw(st.none() | st.sampled_from(known))
    wanted = [["snapshot-info", "test"], ["snapshot-info", "test", "--current"]]
    wanted += [["snapshot-parent", "test", "--current"], ["snapshot-current", "test", "--name"]]
    wanted += [["snapshot-parent", "test"], ["snapshot-current", "test"]]
    for name in (*known, "nobody"):
        wanted += [["snapshot-info", "test", name], ["snapshot-parent", "test", name]]
        wanted.append(["snapshot-info", "test", "--snapshotname", name, "--current"])
        xpath = "/domainsnapshot/*[not(self::domain)]"
        wanted.append(["snapshot-dumpxml", "test", name, "--xpath", xpath])
        wanted.append(["snapshot-dumpxml", "test", name, "--xpath", f"{xpath}//@*", "--wrap"])
    wanted += [["snapshot-current", "test", known[0], "--name"]]
    # The test driver cannot redefine a disk-snapshot without a flag that virsh does not give.
    for each in [each for each in forest if each.state != "disk-snapshot"][:1]:
        wanted += [["snapshot-current", "test", each.name], ["snapshot-current", "test", "--name"]]
    with both(forest, current) as (folder, preparing):
        theirs = virsh([*preparing, *wanted])[len(preparing) :]
        for command, (text, error) in zip(wanted, theirs, strict=True):
            if command == ["snapshot-current", "test"] and not error:
                continue  # the domain in it has what libvirt adds to a domain
            assert ours(folder, *command) == (text, error), command


@QUICK
@given(forest=forests(), from_start=st.booleans())
def test_topological_is_parents_first(forest: tuple[Recorded, ...], from_start: bool) -> None:
    """Among siblings, libvirt leaves the order to chance."""
    options = ["--topological", "--name"]
    options += ["--from", forest[0].name, "--descendants"] if from_start else []
    with both(forest, None) as (folder, preparing):
        command = ["snapshot-list", "test", *options]
        *_, (theirs, _) = virsh([*preparing, command])
        said = ours(folder, *command)[0].splitlines()
    assert sorted(said) == sorted(theirs.splitlines())
    place = {name: number for number, name in enumerate(said)}
    for each in forest:
        if each.name in place and each.parent in place:
            assert place[str(each.parent)] < place[each.name]


DISKS = """\
    <disk type='file' device='cdrom'><target dev='hda' bus='ide'/><readonly/></disk>
    <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
    <disk type='dir' device='floppy'><driver name='qemu' type='fat'/><source dir='/tmp'/>
      <target dev='fdb' bus='fdc'/><readonly/></disk>
    <disk type='block' device='lun'><source dev='/dev/sdx'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/>
      <source file='/with\\x1b space\\é中'/><target dev='vda' bus='virtio'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='rbd' name='pool/img'><host name='h' port='1'/></source>
      <target dev='vdb' bus='virtio'/></disk>
    <disk type='volume' device='disk'><driver name='qemu' type='raw'/>
      <source pool='p' volume='v'/><target dev='vdc' bus='virtio'/></disk>
    <disk type='nvme' device='disk'><driver name='qemu' type='raw'/>
      <source type='pci' managed='yes' namespace='1'>
        <address domain='0x0001' bus='0x0a' slot='0x1f' function='0x7'/></source>
      <target dev='vdd' bus='virtio'/></disk>
    <disk type='vhostuser' device='disk'><driver name='qemu' type='raw'/>
      <source type='unix' path='/run/sock'/><target dev='vde' bus='virtio'/></disk>
    <disk type='network' device='disk'><driver name='qemu' type='raw'/>
      <source protocol='nbd'><host name='h' port='1'/></source>
      <target dev='vdf' bus='virtio'/></disk>
    <graphics type='vnc' port='-1' passwd='secret' passwdValidTo='2030-01-01T00:00:00'/>
"""
OTHER_UUID = "6695eb01-f6a4-8304-79aa-97f2502e1931"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A folder with a domain called Other, as libvirt's test driver would dump it."""
    given = tmp_path / "given.xml"
    given.write_text(
        DOMAIN.replace(">test<", ">Other<")
        .replace(TEST_UUID, OTHER_UUID)
        .replace(DOMAIN[DOMAIN.index("    <disk") : DOMAIN.index("  </devices>")], DISKS)
    )
    _, (xml, error) = virsh(
        [["define", str(given)], ["dumpxml", "Other", "--security-info", "--inactive"]]
    )
    assert not error
    (tmp_path / "store").mkdir()
    (tmp_path / "store/Other.xml").write_text(xml.rstrip("\n") + "\n")
    return tmp_path / "store"


@pytest.mark.parametrize(
    "command",
    [
        "domblklist Other",
        "domblklist Other --details --inactive",
        "domblklist --details --domain Other",
        f"domblklist {OTHER_UUID}",
        "dumpxml Other",
        "dumpxml Other --security-info",
        "dumpxml Other --xpath //graphics",
        "dumpxml Other --xpath //graphics --security-info",
        "dumpxml Other --xpath //disk[@type='network']",
        "dumpxml Other --xpath //target/@dev",
        "dumpxml Other --xpath //target/@dev --wrap",
        "dumpxml Other --xpath //disk/driver|//disk[@device='floppy'] --wrap",
        "dumpxml Other --xpath //name/text()",
        "dumpxml Other --xpath //nothing",
        "dumpxml Other --xpath //nothing --wrap",
        "list --inactive",
        "list --inactive --name",
        "list --inactive --uuid",
        "list --inactive --uuid --name",
        "list --state-shutoff --table",
        "list --inactive --managed-save",
        "list --inactive --with-snapshot",
        "list --inactive --without-snapshot --name",
        "list --table --name",
        "snapshot-list Other",
        "snapshot-list Other --tree",
        "snapshot-list Other --name",
        "snapshot-list Other --parent",
        "undefine Other",
    ],
)
def test_a_domain_is_shown_as_virsh_does(command: str, other: Path) -> None:
    words = command.split()
    _, (text, error) = virsh([["define", str(other / "Other.xml")], words])
    if words[0] == "dumpxml" and "--xpath" not in words:
        text = text.removesuffix("\n")  # our output is the XML as it is, and nothing else
    assert ours(other, *words) == (text, error)


def test_define_is_virsh_s(other: Path) -> None:
    file = other / "Other.xml"
    ((text, error),) = virsh([["define", str(file)]])
    assert ours(other, "define", file) == (text, error)


def test_an_xpath_that_finds_no_nodes_is_refused_as_virsh_does(other: Path) -> None:
    for xpath in ("count(//disk)", "string(//name)"):
        words = ["dumpxml", "Other", "--xpath", xpath]
        _, (_, error) = virsh([["define", str(other / "Other.xml")], words])
        assert ours(other, *words) == ("", error.removeprefix("internal error: "))


@pytest.mark.parametrize("command", ["list --inactive", "domblklist Other --details"])
def test_quiet_is_virsh_s_quiet(command: str, other: Path) -> None:
    done = subprocess.run(
        ["virsh", "-q", "-c", "test:///default", f"define {other}/Other.xml; {command}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ours(other, "-q", *command.split())[0] == done.stdout


def test_a_domain_of_libvirtd_is_shown_as_virsh_does(libvirtd_uri: str, tmp_path: Path) -> None:
    """What imgtool recorded, both read from the same libvirtd."""
    name, uuid = "shown", "6695eb01-f6a4-8304-79aa-97f2502e1977"
    domain = DOMAIN.replace("type='test'", "type='qemu'").replace("i686", "x86_64")
    domain = domain.replace(">test<", f">{name}<").replace(TEST_UUID, uuid)
    file = tmp_path / "file.xml"
    file.write_text(domain.replace("8388608", "65536"))
    assert ours(libvirtd_uri, "define", file)[1] == ""
    domain, _ = ours(libvirtd_uri, "dumpxml", name)
    for snapshot in (
        Recorded("a", None, 1, "shutoff", external=True),
        Recorded("b", "a", 2, "shutoff", external=False),
        Recorded("C", "a", 3, "shutoff", external=True),
    ):
        file.write_text(snapshot.xml.replace(DOMAIN, domain))
        assert ours(libvirtd_uri, "snapshot-create", name, file, "--redefine")[1] == ""
    assert ours(libvirtd_uri, "snapshot-current", uuid, "b") == ("Snapshot b set as current\n", "")
    asked = [
        f"snapshot-list {name}{options}" for options in ("", " --tree", " --parent --external")
    ]
    asked += [f"snapshot-list {uuid} --current --name", f"snapshot-list {name} a --leaves"]
    asked += [f"snapshot-info {name} a", f"snapshot-parent {name} --current", "list --inactive"]
    asked += [f"snapshot-current {name} --name", f"domblklist {name} --details"]
    asked += [f"dumpxml {name} --inactive --xpath //devices/*"]
    asked += [
        f"snapshot-dumpxml {uuid} C --xpath /*/disks",
        f"undefine {uuid} --snapshots-metadata",
    ]
    commands = [words.split() for words in asked]
    said = [ours(libvirtd_uri, *command) for command in commands[:-1]]
    assert said == virsh(commands[:-1], libvirtd_uri)
    assert ours(libvirtd_uri, *commands[-1]) == (f"Domain '{name}' has been undefined\n\n", "")
    assert virsh([["domid", name]], libvirtd_uri)[0][1] == f"failed to get domain '{name}'"
