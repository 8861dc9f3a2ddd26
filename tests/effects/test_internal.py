"""A staged internal snapshot leaves the bytes that `qemu-img snapshot -c` would have left."""

from __future__ import annotations

import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from imgtool.model.errors import FailedError, QemuImgError, UnsupportedError
from imgtool.model.image import Format, Qcow2Features
from imgtool.testing import KIB, MIB, make_image, qemu_io
from imgtool.testing.strategies import qcow2_features

from .asking import disk, domain, internal, loop_device, qemu_img, refused, take

SIZE = 2 * MIB
SCRATCH = 64 * KIB  # cluster size of the layer that a change is staged on
UNIT = 64 * KIB  # what a write covers or begins at


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A qcow2 image with a history."""

    features: Qcow2Features = field(default_factory=Qcow2Features)
    size: int = SIZE
    preallocation: str = "off"
    backing: str = ""  # 'raw' or 'qcow2', recorded by a relative name
    writes: tuple[int, ...] = (0, 5)  # units
    compressed: tuple[int, ...] = ()  # units that are written compressed
    zeroed: tuple[int, ...] = ()
    discarded: tuple[int, ...] = ()
    bitmaps: int = 0
    snapshots: int = 0  # internal, taken before; with a write after each


def units(limit: int = 3) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(st.integers(0, SIZE // UNIT - 1), max_size=limit, unique=True).map(tuple)


@st.composite
def drafts(draw: st.DrawFn) -> Draft:
    features = draw(qcow2_features(version_2=False).filter(lambda one: one.refcount_bits > 1))
    backing = draw(st.sampled_from(("", "", "raw", "qcow2")))
    # A compressed cluster is one unit at most, and many of them share a counter.
    roomy = features.cluster_size <= UNIT and features.refcount_bits >= 16
    preallocation = "off" if backing else draw(st.sampled_from(("off", "metadata", "full")))
    return Draft(
        features=features,
        preallocation=preallocation,
        backing=backing,
        writes=draw(units()),
        compressed=draw(units()) if roomy and preallocation == "off" else (),
        zeroed=draw(units()),
        discarded=draw(units()),
        bitmaps=draw(st.integers(0, 2)),
        snapshots=draw(st.integers(0, 2 if features.refcount_bits > 2 else 0)),
    )


EVERY_FEATURE = [
    *(Draft(features=Qcow2Features(cluster_size=1 << bits)) for bits in range(9, 22)),
    *(Draft(features=Qcow2Features(refcount_bits=1 << order)) for order in range(1, 7)),
    Draft(features=Qcow2Features(extended_l2=True), discarded=(1,), zeroed=(5,)),
    Draft(features=Qcow2Features(lazy_refcounts=True)),
    Draft(compressed=(7, 9), writes=()),
    Draft(bitmaps=3),
    Draft(backing="raw"),
    Draft(backing="qcow2", writes=()),
    Draft(preallocation="metadata"),
    Draft(preallocation="falloc"),
    Draft(preallocation="full"),
    Draft(snapshots=3, writes=(1, 2, 3)),
    Draft(size=512),
    Draft(size=0, writes=()),
    Draft(size=3 * 1024 * MIB, features=Qcow2Features(cluster_size=4096)),
    Draft(
        features=Qcow2Features(extended_l2=True, lazy_refcounts=True, refcount_bits=64),
        bitmaps=2,
        snapshots=2,
        backing="qcow2",
        compressed=(3,),
    ),
]


@pytest.mark.parametrize("draft", EVERY_FEATURE, ids=repr)
def test_every_feature(draft: Draft, tmp_path: Path) -> None:
    _compare(draft, tmp_path)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(draft=drafts())
@example(draft=Draft(features=Qcow2Features(cluster_size=512, refcount_bits=2), zeroed=(0, 1)))
def test_some_images(draft: Draft, tmp_path: Path) -> None:
    _compare(draft, tmp_path)


@pytest.mark.long
@pytest.mark.timeout(1800)
@settings(
    max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(draft=drafts())
def test_many_images(draft: Draft, tmp_path: Path) -> None:
    _compare(draft, tmp_path)


@pytest.mark.parametrize(
    "draft",
    [
        Draft(),
        Draft(snapshots=1, bitmaps=1, compressed=(3,)),
        Draft(features=Qcow2Features(cluster_size=512, lazy_refcounts=True)),
        Draft(features=Qcow2Features(extended_l2=True, cluster_size=16 * KIB)),
    ],
    ids=repr,
)
def test_on_a_block_device(draft: Draft, tmp_path: Path) -> None:
    storages = [tmp_path / name for name in ("direct", "staged")]
    for storage in storages:
        storage.write_bytes(bytes(16 * MIB))
    with loop_device(storages[0]) as direct, loop_device(storages[1]) as staged:
        make(draft, direct)
        staged.write_bytes(direct.read_bytes())
        take(domain(tmp_path, disk(staged)))
        qemu_img("snapshot", "-c", "s1", direct)
        assert without_time(staged) == without_time(direct)
        assert not _report(staged)


def test_a_block_device_that_is_too_small(tmp_path: Path) -> None:
    """The snapshot needs clusters behind the end of the device."""
    storage = tmp_path / "storage"
    storage.write_bytes(bytes(512 * KIB))
    with loop_device(storage) as device:
        make(Draft(size=192 * KIB, writes=(0, 1, 2)), device)
        before = device.read_bytes()
        made = domain(tmp_path, disk(device))
        refused(tmp_path, FailedError, made, internal(), says=["vda", "too small", str(device)])
        assert device.read_bytes() == before


def test_one_bit_cannot_count_a_snapshot(tmp_path: Path) -> None:
    features = Qcow2Features(cluster_size=512, refcount_bits=1)  # amend takes its time otherwise
    image = make_image(tmp_path / "disk", size=MIB, features=features)
    made = domain(tmp_path, disk(image))
    error = refused(tmp_path, UnsupportedError, made, says=["vda", str(image), "one bit"])
    qemu_img(*error.remedy.split()[1:])
    take(made)


def test_a_count_that_is_full_is_left_to_qemu(tmp_path: Path) -> None:
    """Two bits count to three: the image and two snapshots."""
    image = make_image(tmp_path / "disk", size=MIB, features=Qcow2Features(refcount_bits=2))
    qemu_io(image, Format.QCOW2, "write -q 0 64k")
    made = domain(tmp_path, disk(image))
    take(made, name="s1")
    take(made, name="s2")
    refused(tmp_path, QemuImgError, made, says=["vda", "snapshot"], name="s3")


def test_the_remedy_for_version_2_works(tmp_path: Path) -> None:
    image = make_image(tmp_path / "disk", size=MIB, features=Qcow2Features(compat="0.10"))
    made = domain(tmp_path, disk(image))
    error = refused(tmp_path, UnsupportedError, made, says=["vda", str(image), "compat=0.10"])
    qemu_img(*error.remedy.split()[1:])
    take(made)


def make(draft: Draft, path: Path) -> None:
    """Make the image, with the same bytes each time."""
    options = "" if draft.preallocation == "off" else f"preallocation={draft.preallocation}"
    base = None
    if draft.backing:
        base = f"base.{draft.backing}"
        make_image(path.with_name(base), Format(draft.backing), draft.size)
        qemu_io(path.with_name(base), Format(draft.backing), "write -q -P 77 64k 256k")
    make_image(
        path,
        size=draft.size,
        features=draft.features,
        backing=base,
        backing_format=Format(draft.backing) if draft.backing else None,
        options=options,
    )
    for number in range(draft.bitmaps):
        qemu_img("bitmap", "--add", "-f", "qcow2", path, f"bitmap-{number}")
    length = min(UNIT, draft.size)
    # Compressed ones first: QEMU compresses nothing into a cluster that is there already.
    commands = [f"write -q -c -P 9 {unit * UNIT} {UNIT}" for unit in draft.compressed]
    commands += [f"write -q -P {unit + 1} {_at(unit, draft)} {length}" for unit in draft.writes]
    commands += [f"write -q -z {unit * UNIT} {UNIT}" for unit in draft.zeroed]
    commands += [f"discard -q {unit * UNIT} {UNIT}" for unit in draft.discarded]
    if commands:
        qemu_io(path, Format.QCOW2, *commands)
    for number in range(draft.snapshots):
        qemu_img("snapshot", "-c", f"before-{number}", path)
        qemu_io(path, Format.QCOW2, f"write -q -P {100 + number} {number * 4096} 8192")


def without_time(path: Path) -> bytes:
    """All bytes of a qcow2, but zeros for the time in the last entry of its snapshot table."""
    data = bytearray(path.read_bytes())
    count, offset = struct.unpack_from(">IQ", data, 60)
    assert count
    for number in range(count):
        id_length, tag_length = struct.unpack_from(">HH", data, offset + 12)
        (extra,) = struct.unpack_from(">I", data, offset + 36)
        if number == count - 1:
            data[offset + 16 : offset + 24] = bytes(8)
        offset += -(-(40 + extra + id_length + tag_length) // 8) * 8
    return bytes(data)


def without_free(data: bytes) -> bytes:
    """Zeros for what is in the clusters of a qcow2 that nothing refers to."""
    cluster = 1 << struct.unpack_from(">I", data, 20)[0]
    (table,) = struct.unpack_from(">Q", data, 48)
    bits = 1 << struct.unpack_from(">I", data, 96)[0]
    in_block = cluster * 8 // bits
    kept = bytearray(data)
    for number in range(-(-len(data) // cluster)):
        block = struct.unpack_from(">Q", data, table + number // in_block * 8)[0] & ~0x1FF
        at = number % in_block * bits
        counters = data[block + at // 8 : block + max(at + bits, at + 8) // 8] if block else b"\0"
        if not (int.from_bytes(counters, "big") >> at % 8) & ((1 << bits) - 1):
            end = min(len(data), (number + 1) * cluster)
            kept[number * cluster : end] = bytes(end - number * cluster)
    return bytes(kept)


def _at(unit: int, draft: Draft) -> int:
    return unit * UNIT if (unit + 1) * UNIT <= draft.size else 0


def _compare(draft: Draft, tmp_path: Path) -> None:
    folder = tmp_path / "case"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    staged, direct = folder / "staged.qcow2", folder / "direct.qcow2"
    make(draft, staged)
    shutil.copy(staged, direct)
    assert staged.read_bytes() == direct.read_bytes()
    take(domain(folder, disk(staged)))
    qemu_img("snapshot", "-c", "s1", direct)
    ours, theirs = without_time(staged), without_time(direct)
    # QEMU writes no more of the last cluster than it has to say; ours is whole.
    assert len(theirs) <= len(ours) < len(theirs) + draft.features.cluster_size
    theirs = theirs.ljust(len(ours), b"\0")
    if draft.features.cluster_size < SCRATCH:  # what was freed is discarded in larger pieces only
        ours, theirs = without_free(ours), without_free(theirs)
    assert ours == theirs
    assert not _report(staged)


def _report(path: Path) -> str:
    """What `qemu-img check` finds wrong; it fails for anything that is."""
    text = qemu_img("check", "-q", "-f", "qcow2", path)
    return text.replace("No errors were found on the image.\n", "")
