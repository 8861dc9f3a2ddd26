"""The file of open copy jobs: what was written is read, and what is damaged is told, never read."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgtool.engine.jobfile import JobFile
from imgtool.host.files import Files
from imgtool.model.errors import PendingError
from imgtool.model.image import Format, Identity, Qcow2Features
from imgtool.model.job import CopyJob, DiskCopy, Layer, Phase

NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=20)
SIZES = st.integers(0, 2**62)
PATHS = NAMES.map(lambda name: Path("/images") / name)
LAYERS = st.builds(
    Layer,
    path=PATHS,
    identity=st.builds(Identity, SIZES, SIZES, SIZES, SIZES),
    block_device=st.booleans(),
)
DISKS = st.builds(
    DiskCopy,
    target=NAMES,
    source=PATHS,
    source_format=st.sampled_from(Format),
    layers=st.lists(LAYERS, min_size=1, max_size=3).map(tuple),
    dest=PATHS,
    staged=PATHS,
    format=st.sampled_from([Format.RAW, Format.QCOW2]),
    backing=NAMES,
    features=st.builds(Qcow2Features, extended_l2=st.booleans()),
    virtual_size=SIZES,
    total=SIZES,
    reuse=st.booleans(),
    copied=st.lists(LAYERS, max_size=2).map(tuple),
)
JOBS = st.builds(
    CopyJob,
    id=st.uuids().map(str),
    store=NAMES,
    domain=NAMES,
    uuid=st.uuids().map(str),
    phase=st.sampled_from(Phase),
    disks=st.lists(DISKS, min_size=1, max_size=3).map(tuple),
    pivot=st.sampled_from(["", "0123456789abcdef"]),
)


@settings(deadline=None, max_examples=12)
@given(jobs=st.lists(JOBS, min_size=1, max_size=3, unique_by=lambda job: job.id), data=st.data())
def test_what_is_written_is_read_or_found_damaged(jobs: list[CopyJob], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = JobFile(Path(folder) / "job", Files())
        for job in jobs:
            file.put(job)
        assert file.read() == tuple(jobs)
        blob = file.path.read_bytes()
        at = data.draw(st.integers(0, len(blob) - 1), label="damaged at")
        flipped = blob[at] ^ data.draw(st.integers(1, 255), label="by")
        file.path.write_bytes(blob[:at] + bytes([flipped]) + blob[at + 1 :])
        with pytest.raises(PendingError, match="is damaged"):
            file.read()
        file.path.write_bytes(blob[:at])
        with pytest.raises(PendingError, match="is damaged"):
            file.read()


@settings(deadline=None, max_examples=8)
@given(job=JOBS, phase=st.sampled_from(Phase))
def test_a_job_is_replaced_and_the_last_one_takes_the_file_along(
    job: CopyJob, phase: Phase
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = JobFile(Path(folder) / "job", Files())
        other = replace(job, id="another")
        file.begin(job)
        file.put(other)
        file.put(replace(job, phase=phase))
        assert file.read() == (replace(job, phase=phase), other)
        file.drop(job)
        assert file.read() == (other,)
        file.drop(other)
        assert list(Path(folder).iterdir()) == []
        file.drop(other)


def test_an_image_is_still_the_same_after_a_boot() -> None:
    layer = Layer(path=Path("/x"), identity=Identity(1, 2, 3, 4))
    assert layer.is_still(Identity(9, 2, 3, 4)), "device numbers change"
    for other in (Identity(1, 9, 3, 4), Identity(1, 2, 9, 4), Identity(1, 2, 3, 9)):
        assert not layer.is_still(other)
    device = replace(layer, block_device=True)
    assert device.is_still(Identity(9, 0, 3, 9)), "its node is made at each boot"
    assert not device.is_still(Identity(9, 0, 9, 9))
