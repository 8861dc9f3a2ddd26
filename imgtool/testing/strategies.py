"""Hypothesis strategies for what imgtool works on."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from imgtool.model.domain import SnapshotMode
from imgtool.model.image import Format, Qcow2Features
from imgtool.model.snapshot import SnapshotDisk, SnapshotRequest
from imgtool.testing.images import KIB, MIB
from imgtool.testing.trouble import Kind, Trouble

AWKWARD = ",:;= \n\t'\"\\%&<>-#?*$`~[](){}!@+|^.éßж中😀\u202e\u0301"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageDraft:
    """An image to be made: see `make_image`."""

    format: Format
    size: int  # bytes
    features: Qcow2Features | None = None
    layers: int = 1  # more than one: with overlays on top


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskDraft:
    """A disk to be made: its target, the name of its file, its image."""

    target: str
    file_name: str
    image: ImageDraft


def names(*, max_bytes: int = 60) -> st.SearchStrategy[str]:
    """Names that a file may have and that trip programs up: commas, newlines, leading dashes."""
    plain = st.characters(codec="utf-8", exclude_characters="/\0")
    text = st.text(st.sampled_from(AWKWARD) | plain, min_size=1, max_size=max_bytes)
    prefix = st.sampled_from(("", "", "-", "--help", "a:b", "json:", "a,b", " "))
    whole = st.builds(lambda start, rest: start + rest, prefix, text)
    return whole.filter(lambda name: name not in (".", "..") and len(name.encode()) <= max_bytes)


def snapshot_names() -> st.SearchStrategy[str]:
    """Names that imgtool accepts for a snapshot: no control characters, no leading dot or dash."""
    allowed = st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="/")
    text = st.text(st.sampled_from(",:;= é中😀'\"&<%") | allowed, min_size=1, max_size=20)
    return text.filter(lambda name: name[0] not in ".- " and name.strip() == name)


def qcow2_features(*, version_2: bool = True) -> st.SearchStrategy[Qcow2Features]:
    """Features that qemu-img accepts together. `version_2`: compat=0.10 among them."""
    return st.one_of(_version_3(), _version_2()) if version_2 else _version_3()


def _version_2() -> st.SearchStrategy[Qcow2Features]:
    sizes = st.integers(9, 21).map(lambda bits: 1 << bits)
    return st.builds(Qcow2Features, cluster_size=sizes, compat=st.just("0.10"))


@st.composite
def _version_3(draw: st.DrawFn) -> Qcow2Features:
    extended = draw(st.booleans())
    return Qcow2Features(
        cluster_size=1 << draw(st.integers(14 if extended else 9, 21)),
        extended_l2=extended,
        lazy_refcounts=draw(st.booleans()),
        refcount_bits=1 << draw(st.integers(0, 6)),
    )


def images(*, max_size: int = 8 * MIB) -> st.SearchStrategy[ImageDraft]:
    """Small images of each format that an overlay can be made over."""
    sizes = st.integers(1, max_size // 512).map(lambda sectors: sectors * 512)
    whole = st.integers(1, max_size // (64 * KIB)).map(lambda clusters: clusters * 64 * KIB)
    return st.one_of(
        st.builds(ImageDraft, format=st.just(Format.QCOW2), size=sizes, features=qcow2_features()),
        st.builds(ImageDraft, format=st.just(Format.RAW), size=sizes),
        st.builds(ImageDraft, format=st.sampled_from((Format.QED, Format.VMDK)), size=whole),
    )


@st.composite
def disk_lists(draw: st.DrawFn, *, max_disks: int = 4) -> tuple[DiskDraft, ...]:
    """Disks vda, vdb, ... with awkward file names, no two alike."""
    count = draw(st.integers(1, max_disks))
    files = draw(st.lists(names(max_bytes=40), min_size=count, max_size=count, unique=True))
    return tuple(
        DiskDraft(target=f"vd{chr(ord('a') + index)}", file_name=name, image=draw(images()))
        for index, name in enumerate(files)
    )


@st.composite
def snapshot_requests(draw: st.DrawFn, targets: tuple[str, ...]) -> SnapshotRequest:
    """A snapshot of some of `targets`: none named at all, or each with or without a mode."""
    named = draw(st.lists(st.sampled_from(targets), unique=True)) if targets else []
    modes = st.sampled_from((None, SnapshotMode.NO, SnapshotMode.INTERNAL, SnapshotMode.EXTERNAL))
    return SnapshotRequest(
        name=draw(snapshot_names()),
        description=draw(st.none() | st.text(st.characters(codec="utf-8", min_codepoint=32))),
        memory=draw(st.sampled_from((None, "no"))),
        disks=tuple(SnapshotDisk(name=target, mode=draw(modes)) for target in named),
    )


def small_features() -> st.SearchStrategy[Qcow2Features]:
    """qcow2 features that keep files small and leave room for many snapshots."""
    version_3 = st.builds(
        Qcow2Features,
        cluster_size=st.sampled_from((512, 4 * KIB, 64 * KIB)),
        lazy_refcounts=st.booleans(),
        refcount_bits=st.sampled_from((8, 16, 64)),
    )
    subclusters = st.builds(Qcow2Features, extended_l2=st.just(True))
    version_2 = st.builds(Qcow2Features, compat=st.just("0.10"))
    return st.one_of(version_3, version_3, subclusters, version_2)


def small_disks(
    *, max_disks: int = 3, max_size: int = 512 * KIB
) -> st.SearchStrategy[list[ImageDraft]]:
    """The disks of a domain: qcow2 or raw, of whole sectors, seldom of whole clusters.

    Some of them are overlays, of which no snapshot tells.
    """
    sizes = st.integers(8, max_size // 512).map(lambda sectors: sectors * 512)
    layers = st.sampled_from((1, 1, 2, 3))
    qcow2 = st.builds(
        ImageDraft,
        format=st.just(Format.QCOW2),
        size=sizes,
        features=small_features(),
        layers=layers,
    )
    raw = st.builds(ImageDraft, format=st.just(Format.RAW), size=sizes, layers=layers)
    return st.lists(st.one_of(qcow2, qcow2, raw), min_size=1, max_size=max_disks)


def troubles(*, max_effects: int = 120) -> st.SearchStrategy[Trouble]:
    """Nothing in a third of all cases; else anything, early or late."""
    kinds = st.sampled_from([kind for kind in Kind if kind is not Kind.NONE])
    early = st.builds(Trouble, kinds, st.integers(1, max_effects // 3))
    late = st.builds(Trouble, kinds, st.integers(1, max_effects))
    return st.one_of(st.just(Trouble(Kind.NONE, 0)), early, late)


def disk_modes(*, max_disks: int = 3) -> st.SearchStrategy[list[SnapshotMode]]:
    """How each disk takes part in a snapshot."""
    each = st.sampled_from((SnapshotMode.EXTERNAL, SnapshotMode.INTERNAL, SnapshotMode.NO))
    return st.lists(each, min_size=max_disks, max_size=max_disks)


def guest_writes(
    *, max_disks: int = 3, max_size: int = 512 * KIB
) -> st.SearchStrategy[tuple[int, int, int, int]]:
    """Which disk, from which sector, how many sectors, and which byte; all but the byte modulo."""
    sectors = max_size // 512
    some = st.integers(1, 2 * 64 * KIB // 512)
    return st.tuples(
        st.integers(0, max_disks - 1), st.integers(0, sectors - 1), some, st.integers(0, 255)
    )


def snapshot_prefixes() -> st.SearchStrategy[str]:
    """What the name of a snapshot begins with; a number follows."""
    return st.sampled_from(("s", "a,b", "é 中", "<&'\">", "a:b=", "x."))
