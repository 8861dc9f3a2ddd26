"""The recipe of 2012, step by step, on a stopped domain: a disk moves with its relative chain."""

from __future__ import annotations

import os
from pathlib import Path

from imgtool.cli.main import main
from imgtool.model.image import Format
from imgtool.testing import KIB, guest_bytes_digest, write_pattern

from .asking import chain, info, named, qemu_img
from .mirrored import Move, make_move


def test_the_recipe(tmp_path: Path) -> None:
    move = make_move(tmp_path)
    guest = move.guest()
    there = move.new.parent
    layers = [each.name for each in (move.old, move.old.with_name("common"))]

    # /path1/to/common <- /path1/to/old.qcow2 is there; the two files that the move needs are not.
    spec = f"vda,file={move.migrate},mirror={move.new}"
    _typed(move, "mirror-create", "vm", "--diskspec", spec)
    assert [info(path)["backing-filename"] for path in (move.migrate, move.new)] == [
        "old.qcow2"
    ] * 2

    words = ("snapshot-create-as", "vm", "s1", "--disk-only", "--reuse-external")
    _typed(move, *words, "--diskspec", spec)
    assert named(move.made).source == move.migrate
    assert move.guest() == guest

    # The guest runs meanwhile, and writes; the layers below do not change.
    write_pattern(move.migrate, Format.QCOW2, 700 * KIB, 100 * KIB, 3)
    guest = move.guest()
    _typed(move, "chain-copy", "vm", "--disk", "vda", "--to", str(there))
    assert sorted(path.name for path in there.iterdir()) == sorted(["new.qcow2", *layers])

    _typed(move, "snapshot-delete", "vm", "s1", "--mirror-pivot")
    assert move.layers() == [move.new, *(there / name for name in layers)]
    assert move.guest() == guest

    _typed(move, "blockpull", "vm", "vda", "--base", str(there / "common"), "--wait")
    assert move.layers() == [move.new, there / "common"]
    assert info(move.new)["backing-filename"] == "common"
    assert move.guest() == guest

    # The chain is relative and complete: it opens wherever its folder goes.
    moved = there.rename(tmp_path / "moved")
    new = moved / move.new.name
    assert [os.path.realpath(name) for name in chain(new)] == [str(new), str(moved / "common")]
    assert guest_bytes_digest(new, Format.QCOW2) == guest
    assert qemu_img("check", "-f", "qcow2", new)
    # The old place is as it was: nothing was taken from there.
    assert guest_bytes_digest(move.migrate, Format.QCOW2) == guest


def _typed(move: Move, *words: str) -> None:
    assert main(["-q", "-c", move.made.uri, *words]) == 0
