"""What passes between tests and the library for arm64, and what is said where it cannot be built."""

from struct import unpack

import arm
import pytest
import torch


def test_a_missing_tool_is_named_with_its_package(monkeypatch):
    monkeypatch.setattr(arm.shutil, "which", lambda name: None if name == arm.EMULATOR else name)
    assert arm.missing() == "qemu-aarch64 is not on PATH; apt install g++-aarch64-linux-gnu qemu-user"


@pytest.mark.parametrize(
    "value, optional, expected",
    [(None, True, (0,)), (7, False, (1, 7)), (True, True, (9, 1)), (torch.bfloat16, True, (9, 15))],
)
def test_numbers_of_a_call(value, optional, expected):
    assert unpack(f"<{len(expected)}q", arm._argument(value, optional)) == expected


def test_a_tensor_brings_the_memory_from_its_first_element_to_its_last():
    image = torch.arange(24, dtype=torch.float32).reshape(4, 6)[1:3, ::2]
    data = arm._argument(image, False)
    head = unpack("<8q", data[:64])
    assert head == (arm.TENSOR, 6, 2, 2, 3, 6, 2, 4 * 11)
    assert torch.frombuffer(bytearray(data[64:]), dtype=torch.float32).tolist() == list(range(6, 17))


def test_a_storage_that_was_made_smaller_is_not_read_past_its_end():
    image = torch.ones(8)
    image.untyped_storage().resize_(12)
    assert unpack("<6q", arm._argument(image, False)[:48]) == (arm.TENSOR, 6, 1, 8, 1, 12)
