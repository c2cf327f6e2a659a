"""Which known name is near a given one."""

import pytest

from resshift_fast.core.names import nearest

KNOWN = ["realsr-x4-v3", "realsr-x4-v2", "bicubic-x4", "nano-x4", "faceir"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nano", "nano-x4"),  # a beginning
        ("x4-v2", "realsr-x4-v2"),  # a part
        ("facir", "faceir"),  # a letter is missing
        ("realsr", "realsr-x4-v3"),  # of several the last one
        ("zzzzzz", None),
        ("", None),
    ],
)
def test_the_nearest_of_the_known_names(name, expected):
    assert nearest(name, KNOWN) == expected
    assert nearest(name, reversed(KNOWN)) == expected


def test_without_known_names_none_is_near():
    assert nearest("nano", []) is None


def test_a_beginning_is_nearer_than_a_part():
    assert nearest("photo", ["a-photo", "photo-x4"]) == "photo-x4"
