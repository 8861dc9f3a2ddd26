"""`--print-xml` against the real virsh, byte for byte, and its refusals."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from imgtool.model.errors import BadRequestError
from imgtool.xml.printxml import from_arguments, print_xml

# All that an argument can hold, and often what the grammar and the escaping care about.
characters = st.one_of(
    st.sampled_from(",,,,=/<>&'\"\t\n\r\x01\x1f\x7f \\%"),
    st.characters(codec="utf-8", exclude_characters="\0"),
    st.sampled_from("\udc80\udcff"),
)
texts = st.text(characters, max_size=10)
words = st.one_of(
    st.tuples(st.sampled_from(["snapshot=", "driver=", "stype=", "file="]), texts).map("".join),
    st.sampled_from(
        ["snapshot=external", "snapshot=no", "driver=qcow2", "stype=block", "stype=file"]
    ),
    st.sampled_from(["file=/a,,b", "", "/x", "bogus=1", "snapshot", "stype=network"]),
    texts,
)
diskspecs = st.tuples(
    st.sampled_from(["vda", "/a/b", "", "v<&", ",,"]), st.lists(words, max_size=4)
).map(lambda parts: ",".join([parts[0], *parts[1]]))
good = st.tuples(
    st.sampled_from(["vda", "/a/b"]),
    st.permutations(["snapshot=external", "driver=qcow2", "stype=block", "file=/x,,y"]),
    st.integers(0, 4),
).map(lambda parts: ",".join([parts[0], *parts[1][: parts[2]]]))
memspecs = st.lists(words, min_size=1, max_size=3).map(",".join).filter(bool)


def virsh(
    name: str, description: str | None, memspec: str | None, disks: Sequence[str]
) -> bytes | None:
    """What virsh prints, or None where it refuses."""
    argv = ["virsh", "-c", "test:///default", "snapshot-create-as", "test", "--print-xml"]
    argv += ["--name", name] if name else []
    argv += ["--description", description] if description is not None else []
    argv += ["--memspec", memspec] if memspec is not None else []
    argv += [word for disk in disks for word in ("--diskspec", disk)]
    done = subprocess.run(argv, capture_output=True, check=False, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout if done.returncode == 0 else None


def ours(
    name: str, description: str | None, memspec: str | None, disks: Sequence[str]
) -> bytes | None:
    try:
        request = from_arguments(
            name=name, description=description, memspec=memspec, diskspecs=disks
        )
    except BadRequestError:
        return None
    return print_xml(request)


@settings(max_examples=150, deadline=None)
@given(
    name=texts,
    description=st.none() | texts.filter(bool),
    memspec=st.none() | memspecs,
    disks=st.lists(good | diskspecs, max_size=3),
)
@example(name="", description=None, memspec=None, disks=[])
@example(name="n", description="d", memspec="/m,snapshot=external", disks=["vda", "vdb,file=/x"])
@example(name="a\x01b", description="\r\n", memspec="snapshot=<,file=a,,b", disks=[""])
@example(name="\udcff", description=None, memspec=None, disks=["vda,driver=q<c>,snapshot='"])
@example(name="n", description=None, memspec=None, disks=["vda,"])
@example(name="n", description=None, memspec=None, disks=["vda,,,file=a", ",file=/x", ",,,", ","])
@example(name="n", description=None, memspec=None, disks=["vda,stype=block,file=,driver="])
@example(name="n", description=None, memspec=None, disks=["vda,stype=network"])
@example(name="n", description=None, memspec=None, disks=["vda,file=/a,file=/b"])
@example(name="n", description=None, memspec=",", disks=[])
@example(name="n", description=None, memspec="snapshot=", disks=[])
@example(name="n", description=None, memspec="/a,/b", disks=[])
def test_print_xml_is_virsh_s(
    name: str, description: str | None, memspec: str | None, disks: list[str]
) -> None:
    assert ours(name, description, memspec, disks) == virsh(name, description, memspec, disks)


def test_quiet_is_virsh_s_quiet() -> None:
    argv = ["virsh", "-q", "-c", "test:///default", "snapshot-create-as", "test", "--print-xml"]
    printed = subprocess.run([*argv, "n"], capture_output=True, check=True, timeout=60).stdout
    assert print_xml(from_arguments(name="n"), quiet=True) == printed
