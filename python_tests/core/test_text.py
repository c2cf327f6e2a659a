"""Control characters of file names never reach a terminal."""

import os
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_fast.core.text import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Löwe 写真 😀 👩‍👧.png", "Löwe 写真 😀 👩‍👧.png"),
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\x9b31mb", r"a\x9b31mb"),
        ("one\ntwo\r\tthree\x7f\0", r"one\ntwo\r\tthree\x7f\x00"),
        ("gnp.\u202efdp", r"gnp.\u202efdp"),
        ("a\u2028b", r"a\u2028b"),
        (os.fsdecode(b"bad\xff\xfename"), r"bad\xff\xfename"),
        ("\ud800", r"\ud800"),
    ],
    ids=["plain", "title", "C1", "C0", "reordering", "line", "bytes", "surrogate"],
)
def test_what_is_escaped(text, shown):
    assert visible(text) == shown


def test_what_is_kept():
    assert visible("a\nb\r\x1b", keep="\n\r") == "a\nb\r\\x1b"


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_nothing_else_changes(text):
    shown = visible(text)
    assert not any(unicodedata.category(one) in ("Cc", "Cs") for one in shown)
    assert visible(shown) == shown
    if text.isprintable():
        assert shown == text
