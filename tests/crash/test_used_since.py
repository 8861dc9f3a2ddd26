"""imgtool dies after its pivot, and the domain is used before it recovers: no byte of that is lost.

Nothing is blocked then, since the domain shows the right thing throughout.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

from imgtool import api
from imgtool.model.image import Chain
from imgtool.testing.images import KIB, guest_bytes_digest, write_pattern

from .branches import Branching, make_branching
from .dying import Doom, Fate
from .matrix import run_into


def test_what_was_committed_down_since_is_not_merged_over(place: Path) -> None:
    """Inner overlays were merged; then virsh committed the active ones into the same bases."""
    scenario = make_branching("delete-middle", place)
    _die(scenario, lambda call: call.startswith("unlink(") and ".flat" in call)
    for chain in _chains(scenario).values():
        top, base = chain.active, chain.images[-2]
        write_pattern(top.path, top.format, 64 * KIB, 4 * KIB, 0xE1)
        _qemu_img("commit", "-q", "-d", "-f", top.format, "-b", base.path, top.path)
        _name_in_xml(scenario, top.path, base.path, base.format)
        write_pattern(base.path, base.format, 128 * KIB, 4 * KIB, 0xE2)
    _assert_recovery_changes_no_byte(scenario)


def test_an_image_below_a_newer_overlay_is_not_dropped(place: Path) -> None:
    """The active overlays were merged down; then virsh took a live snapshot of the domain."""
    scenario = make_branching("delete-last", place)
    _die(scenario, lambda call: call.startswith("write_atomically(") and "/vm.xml" in call, nth=2)
    for chain in _chains(scenario).values():
        top = chain.active
        overlay = top.path.with_suffix(".live")
        _qemu_img("create", "-q", "-f", "qcow2", "-F", top.format, "-b", top.path, overlay)
        _name_in_xml(scenario, top.path, overlay, "qcow2")
    _assert_recovery_changes_no_byte(scenario)


def test_an_image_that_the_domain_names_again_is_not_dropped(place: Path) -> None:
    """A revert was about to drop what was active; then somebody put that back by virsh edit."""
    scenario = make_branching("revert-and-drop", place)
    old = {target: chain.active for target, chain in _chains(scenario).items()}
    _die(scenario, lambda call: call.startswith("unlink(") and ".last" in call)
    for target, chain in _chains(scenario).items():
        _name_in_xml(scenario, chain.active.path, old[target].path, old[target].format)
    _assert_recovery_changes_no_byte(scenario)


def _die(scenario: Branching, when: Callable[[str], bool], nth: int = 1) -> None:
    """Run until right before the n-th such call, which must come after the pivot."""
    whole = Doom()
    assert run_into(scenario, whole) is None
    at = [number for number, call in enumerate(whole.trace, 1) if when(call)][nth - 1]
    scenario.fresh()
    run_into(scenario, Doom(fate=Fate.DIE, at=at))
    with scenario.world() as world:
        carried = world.store.head("vm").domain.transaction
    assert carried != scenario.before.transaction, "it died before the pivot"


def _chains(scenario: Branching) -> dict[str, Chain]:
    with scenario.world() as world:
        return dict(api.chains(world, "vm"))


def _name_in_xml(scenario: Branching, old: Path, new: Path, fmt: str) -> None:
    path = scenario.folder / "vm.xml"
    pattern = re.compile(rf"""type=['"]\w+['"]/>(\s*<source file=)['"]{re.escape(str(old))}['"]""")
    text, count = pattern.subn(rf"type='{fmt}'/>\1'{new}'", path.read_text())
    assert count == 1, text
    path.write_text(text)


def _assert_recovery_changes_no_byte(scenario: Branching) -> None:
    before = _guests(scenario)
    scenario.recover()
    assert _guests(scenario) == before


def _guests(scenario: Branching) -> dict[str, tuple[str, str]]:
    """By disk: its image, and what the guest reads."""
    found = {}
    for target, chain in _chains(scenario).items():
        top = chain.active
        found[target] = (str(top.path), guest_bytes_digest(top.path, top.format))
    return found


def _qemu_img(*words: str | Path) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True)
