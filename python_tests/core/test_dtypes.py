"""Floating-point formats by the names that people type."""

import pytest
import torch

from resshift_fast.core import dtypes

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "name, expected",
    [
        *[(name, torch.float32) for name in ("float32", "fp32", "FP32", "full", " torch.float32 ")],
        *[(name, torch.bfloat16) for name in ("bfloat16", "bf16", "BF16")],
        *[(name, torch.float16) for name in ("float16", "fp16", "half")],
        ("auto", torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_names(name, expected):
    assert dtypes.usable_dtype(name, CPU) == expected


@pytest.mark.parametrize("capability, expected", [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_on_a_gpu(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert dtypes.usable_dtype("auto", torch.device("cuda")) == expected


@pytest.mark.parametrize("name", ["int8", "", "float64", torch.float64, None, 16])
def test_others_are_refused(name):
    with pytest.raises(ValueError, match="expected one of float32, bfloat16, float16, or fp32") as error:
        dtypes.usable_dtype(name, CPU)
    assert "\n" not in str(error.value)
