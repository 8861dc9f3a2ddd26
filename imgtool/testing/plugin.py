"""A pytest plugin: temporary images and a domain, for tests of what uses imgtool.

pytest loads it wherever imgtool is installed: it needs pytest, and nothing else that imgtool
does not need itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from imgtool.model.image import Format, Qcow2Features
    from imgtool.testing.domains import MadeDomain


class ImageMaker(Protocol):
    """`make_image` with a name instead of a path."""

    def __call__(
        self,
        name: str,
        fmt: Format | str = "qcow2",
        size: int = 8 * 1024 * 1024,
        *,
        features: Qcow2Features | None = None,
        backing: str | Path | None = None,
        backing_format: Format | str | None = None,
        options: str = "",
    ) -> Path: ...


@pytest.fixture
def imgtool_images(tmp_path: Path) -> ImageMaker:
    """Makes images in a folder of this test; returns their paths."""
    from imgtool.model.image import Format
    from imgtool.testing.images import make_image

    folder = tmp_path / "images"
    folder.mkdir()

    def make(
        name: str,
        fmt: Format | str = "qcow2",
        size: int = 8 * 1024 * 1024,
        *,
        features: Qcow2Features | None = None,
        backing: str | Path | None = None,
        backing_format: Format | str | None = None,
        options: str = "",
    ) -> Path:
        return make_image(
            folder / name,
            Format(fmt),
            size,
            features=features,
            backing=backing,
            backing_format=None if backing_format is None else Format(backing_format),
            options=options,
        )

    return make


@pytest.fixture
def imgtool_domain(tmp_path: Path) -> MadeDomain:
    """A stopped domain in a directory store: vda and vdb are qcow2, vdc is raw, all with data."""
    from imgtool.testing.domains import make_three_disks

    folder = tmp_path / "domains"
    folder.mkdir()
    return make_three_disks(folder)
