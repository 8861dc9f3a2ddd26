"""The grammar of diskspecs and memspecs, and what the words mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.model.domain import SnapshotMode
from imgtool.model.errors import BadRequestError, ImgtoolError, XmlError
from imgtool.model.snapshot import DiskSpec, SnapshotDisk
from imgtool.xml.diskspec import parse_diskspec, parse_memspec
from imgtool.xml.printxml import checked, from_arguments

plain = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=12
)
keys = ["snapshot", "driver", "stype", "file", "mirror"]


def quoted(text: str) -> str:
    return text.replace(",", ",,")


@given(
    name=plain,
    values=st.fixed_dictionaries(
        {},
        optional={
            "snapshot": plain,
            "driver": plain,
            "stype": st.sampled_from(["file", "block"]),
            "file": plain,
            "mirror": plain,
        },
    ),
    order=st.permutations(keys),
)
def test_words_are_kept_in_any_order(name: str, values: dict[str, str], order: list[str]) -> None:
    text = ",".join(
        [quoted(name), *(f"{key}={quoted(values[key])}" for key in order if key in values)]
    )
    assert parse_diskspec(text).spec == DiskSpec(name=name, **values)


def test_a_whole_diskspec() -> None:
    disk = parse_diskspec("vda,file=/dev/a,,b,stype=block,driver=qcow2,snapshot=external")
    assert disk == SnapshotDisk(
        name="vda",
        mode=SnapshotMode.EXTERNAL,
        type="block",
        driver="qcow2",
        source="/dev/a,b",
        spec=DiskSpec(
            name="vda", snapshot="external", driver="qcow2", stype="block", file="/dev/a,b"
        ),
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("vda", None),
        ("vda,snapshot=no", SnapshotMode.NO),
        ("vda,snapshot=internal,driver=qcow2", SnapshotMode.INTERNAL),
        ("vda,file=/x", SnapshotMode.EXTERNAL),
        ("vda,driver=qcow2", SnapshotMode.EXTERNAL),
        ("vda,stype=block", None),
    ],
)
def test_a_driver_or_a_file_means_external(text: str, mode: SnapshotMode | None) -> None:
    assert parse_diskspec(text).mode is mode


@pytest.mark.parametrize(
    "text",
    [
        "vda,",
        "vda,snapshot",
        "vda,bogus=1",
        "vda,/x",
        "vda,file=/a,file=/b",
        "vda,snapshot=no,snapshot=no",
        "vda,,,",
        ",",
        "vda,stype=network",
    ],
)
def test_what_virsh_cannot_parse(text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_diskspec(text)
    assert caught.value.message.startswith(f"unable to parse diskspec: {text}")
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("/m", (None, "/m")),
        ("file=m,,n", (None, "m,n")),
        ("/m,snapshot=external", ("external", "/m")),
        ("snapshot=no,/m", ("no", "/m")),
        ("snapshot=no", ("no", None)),
    ],
)
def test_memspecs(text: str, parsed: tuple[str | None, str | None]) -> None:
    assert parse_memspec(text) == parsed


@pytest.mark.parametrize("text", ["m", "", "/a,/b", "file=a,/b", "snapshot=a,snapshot=b", "/a,"])
def test_memspecs_that_virsh_cannot_parse(text: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_memspec(text)
    assert caught.value.message == f"unable to parse memspec: {text}"


@given(name=plain, file=plain.map(lambda text: f"/{text}"))
def test_a_checked_request_says_what_was_asked(name: str, file: str) -> None:
    request = from_arguments(
        name=name, description="d", diskspecs=[f"{quoted(name)},file={quoted(file)}", "vdb"]
    )
    read = checked(request)
    assert (read.name, read.description) == (name, "d")
    assert [(disk.name, disk.source, disk.mode) for disk in read.disks] == [
        (name, file, SnapshotMode.EXTERNAL),
        ("vdb", "", None),
    ]


@pytest.mark.parametrize(
    ("disk", "kind", "message"),
    [
        ("vda,snapshot=bogus", XmlError, "Invalid value for attribute 'snapshot'"),
        ("vda,driver=bogus", XmlError, "unknown disk snapshot driver 'bogus'"),
        ("vda,driver=q<c>", XmlError, "not well-formed"),
        ("vda,driver=qcow2'/><source file='/x", BadRequestError, "cannot be written as XML"),
        ("vda,file=rel", XmlError, "disk snapshot image path 'rel' must be absolute"),
        ("vda,file=/a\x01b", BadRequestError, "has control characters"),
        ("vda,file=/a\nb", BadRequestError, "cannot be written as XML"),
        ("vda,file=/a\udcff", XmlError, "not well-formed"),
        ("vda,snapshot=no' type='block", BadRequestError, "cannot be written as XML"),
        ("", BadRequestError, "cannot be written as XML"),
    ],
)
def test_what_the_xml_of_a_request_may_not_hold(
    disk: str, kind: type[ImgtoolError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        checked(from_arguments(name="n", diskspecs=[disk]))


def test_a_mirror_means_an_external_snapshot() -> None:
    disk = parse_diskspec("vda,mirror=/there/a,,b")
    assert (disk.mode, disk.source, disk.mirror) == (SnapshotMode.EXTERNAL, "", "/there/a,b")


def test_a_mirror_reads_back_from_the_xml_of_it() -> None:
    request = from_arguments(diskspecs=["vda,file=/a&b,mirror=/c'<d", "vdb"])
    assert [disk.mirror for disk in checked(request).disks] == ["/c'<d", ""]


def test_a_mirror_that_is_relative_is_refused() -> None:
    with pytest.raises(XmlError, match="must be absolute"):
        checked(from_arguments(diskspecs=["vda,mirror=there"]))
