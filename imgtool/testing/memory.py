"""What images were found to hold, so that the same bytes are not looked at again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from imgtool.model.image import Format, Image
from imgtool.testing.images import file_digest


class Memory:
    """For tests that look at the same images a hundred times, each time after another crash.

    What qemu-img says of an image is remembered for as long as path, format and every byte of it
    and of all layers below it are the same. Reading a small file takes a tenth of running
    qemu-img. What is more than one regular file is looked at each time; errors are not kept.
    """

    def __init__(self) -> None:
        self._known: dict[object, str] = {}

    def recall(self, what: str, chain: Sequence[Image], find: Callable[[], str]) -> str:
        """What `find` returns for these layers. Raises what it raises."""
        if not all(_is_one_file(image) for image in chain):
            return find()
        layers = tuple((image.path, image.format, file_digest(image.path)) for image in chain)
        key = (what, layers)
        if key not in self._known:
            self._known[key] = find()
        return self._known[key]


def _is_one_file(image: Image) -> bool:
    return image.format is not Format.VMDK and not image.data_file and not image.block_device
