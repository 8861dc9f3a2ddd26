"""What is shown on a terminal: no control characters, tables and trees in virsh's shape."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgtool.cli.table import fields, local_time, table
from imgtool.cli.tree import tree
from imgtool.cli.visible import visible, visible_cell, visible_line, width

ESCAPES = "\x1b]0;owned\x07\x9b2J\r\b\x7f\u202e\u2066\u2028"


def harmless(text: str) -> bool:
    return not any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in text)


@given(st.text(st.sampled_from(ESCAPES) | st.characters() | st.sampled_from("\udc80\udcff\n\\x")))
def test_nothing_steers_a_terminal(text: str) -> None:
    assert harmless(visible_line(text))
    assert harmless(visible_cell(text))
    assert harmless(visible(text).replace("\n", ""))
    assert visible(text).count("\n") == text.count("\n")
    assert visible(visible(text)) == visible(text)  # what a command has made safe stays as it is


@given(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))))
def test_what_is_harmless_stays(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31m", "a\\x1b[31m"),
        ("a\nb", "a\\x0ab"),
        ("\x9b", "\\xc2\\x9b"),
        ("\udcff", "\\xff"),  # a byte that is not UTF-8
        ("\ud800", "\\xed\\xa0\\x80"),
        ("e\u0301 é 中\u00a0", "e\u0301 é 中\u00a0"),
        ("\u202e", "\\xe2\\x80\\xae"),
    ],
)
def test_escapes_are_virsh_s(text: str, shown: str) -> None:
    assert visible_line(text) == shown


def test_a_cell_can_be_read_back() -> None:
    assert visible_cell("\\x1b") != visible_cell("\x1b")


def test_wide_and_combining_characters_line_up() -> None:
    assert [width(text) for text in ("ab", "中文", "e\u0301", "é")] == [2, 4, 1, 1]
    lines = table(("A", "B"), [("中文", "x"), ("ab", "x"), ("e\u0301", "x")]).splitlines()
    assert {width(line.partition("x")[0]) for line in lines[2:]} == {8}


def test_a_table() -> None:
    drawn = table(("Name", "Parent"), [("a", ""), ("long name", "a\x1b")])
    assert drawn == (
        " Name        Parent\n---------------------\n a           \n long name   a\\x1b"
    )
    assert table(("Name", "State"), []) == " Name   State\n---------------"
    assert table(("Name", "State"), [("a", "b")], heading=False) == " a   b"
    assert table(("Name", "State"), [], heading=False) == ""


def test_fields() -> None:
    assert fields([("Name", "a\nb"), ("Descendants", "2")]) == (
        "Name:           a\\x0ab\nDescendants:    2"
    )


def test_a_time_beyond_any_calendar_is_a_number() -> None:
    assert local_time(10**40) == f"@{10**40}"
    assert local_time(-(10**40)) == f"@{-(10**40)}"
    assert local_time(10**17) == f"@{10**17}"


def test_a_tree() -> None:
    parents = {"root": None, "a": "root", "b": "root", "aa": "a\x1b", "c": "a", "other": None}
    assert tree(parents) == "\n".join(
        [
            "root",
            "  |",
            "  +- a",
            "  |   |",
            "  |   +- c",
            "  |     ",
            "  +- b",
            "    ",
            "aa",  # its parent is not among them
            "",
            "other",
            "",
        ]
    )
    assert tree({}) == ""
    assert tree({"\x1b[2J\n": None}) == "\\x1b[2J\\x0a\n"


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.none() | st.sampled_from("abcdefghz")))
def test_a_tree_shows_each_name_once_whatever_its_parents(parents: dict[str, str | None]) -> None:
    """Also where parents go in a ring, which only a hand-written store can have."""
    drawn = [char for char in tree(parents) if char.isalpha()]
    assert sorted(drawn) == sorted(parents)


def test_a_tree_may_be_deep() -> None:
    parents = {str(n): (str(n - 1) if n else None) for n in range(3000)}
    assert tree(parents).count("+- ") == 2999
