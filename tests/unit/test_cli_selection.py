"""Families that no libvirt has, but a hand-written store may. The rest: test_cli_virsh.py."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from imgtool.cli.selection import Family, Filter, chosen
from imgtool.model.snapshot import Snapshot


def snapshots(**parents: str | None) -> tuple[Snapshot, ...]:
    return tuple(Snapshot(name=name, created=1, parent=parent) for name, parent in parents.items())


def names(found: tuple[Snapshot, ...]) -> list[str]:
    return [snapshot.name for snapshot in found]


def test_a_parent_that_is_not_recorded_is_none() -> None:
    found = snapshots(a="gone", b="a")
    assert names(chosen(found, Filter(roots=True))) == ["a"]
    assert names(chosen(found, Filter(start="a"))) == ["b"]


def test_a_ring_is_shown_and_ends() -> None:
    found = snapshots(a="b", b="a", c="a", root=None)
    assert names(chosen(found, Filter())) == ["a", "b", "c", "root"]
    assert sorted(names(chosen(found, Filter(topological=True)))) == ["a", "b", "c", "root"]
    assert names(chosen(found, Filter(start="a", descendants=True))) == ["b", "c"]
    assert names(Family(found).descendants("b")) == ["a", "c"]


def test_the_start_of_a_tree_comes_first_and_once() -> None:
    found = snapshots(z=None, a="z", b="a")
    wanted = Filter(start="z", descendants=True, with_start=True)
    assert names(chosen(found, wanted)) == ["z", "a", "b"]
    ring = snapshots(a="b", b="a")
    assert names(chosen(ring, Filter(start="a", descendants=True, with_start=True))) == ["a", "b"]


def test_upper_and_lower_case_are_one_but_the_order_is_fixed() -> None:
    found = snapshots(b=None, A=None, a=None, B=None)
    assert names(chosen(found, Filter())) == ["A", "a", "B", "b"]


def test_a_chain_may_be_deep() -> None:
    found = snapshots(**{str(n): (str(n - 1) if n else None) for n in range(5000)})
    assert len(chosen(found, Filter(start="0", descendants=True))) == 4999
    assert names(chosen(found, Filter(topological=True))) == [str(n) for n in range(5000)]


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.none() | st.sampled_from("abcdefghz")))
def test_every_snapshot_is_listed_once(parents: dict[str, str | None]) -> None:
    found = snapshots(**parents)
    for topological in (False, True):
        listed = names(chosen(found, Filter(topological=topological)))
        assert sorted(listed) == sorted(parents)
