"""Under autocast every backend returns the same dtypes; Triton's and CUDA's kernels run emulated."""

import sys
from dataclasses import replace
from pathlib import Path

import emulation
import pytest
import torch
from comparison import assert_close, name_of

from resshift_fast import ops, use_backend
from resshift_fast.backends import OPERATORS, registry, verification

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from operator_arguments import OPERATORS as ARGUMENTS
from operator_arguments import Draw

pytestmark = pytest.mark.skipif(emulation.SANITIZED, reason="the sanitizers check the kernels, not torch")

# Sizes of a small call; all others are those that the functions of operator_arguments need.
SMALL = {
    "add_concat_group_norm": {"other": 32, "mode": "concat"},
    "conv2d": {"out": 32},
    "group_norm": {"scale_shift": True},
    "pointwise_conv2d": {"out": 64, "norm": True},
    "posterior_step": {"channels": 3},
    "prior_sample": {"channels": 3},
    "q_sample": {"channels": 3},
    "residual_block": {"out": 32},
    "swin_mlp": {"hidden": 64},
    "upsample_conv2d": {"out": 32},
    "vector_quantize": {"channels": 3, "entries": 64},
    "window_attention": {"heads": 2, "shift": 4},
    "window_attention_proj": {"heads": 2, "shift": 4},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("name", ops.__all__)
def test_every_backend_returns_the_same_dtypes(name, dtype, emulated_library, monkeypatch):
    monkeypatch.setenv(verification.VARIABLE, "0")  # verdicts are kept by the names of backends
    torch.manual_seed(0)
    arguments = ARGUMENTS[name].make(
        Draw(torch.device("cpu"), dtype, batch=1), 8, **{"channels": 32} | SMALL.get(name, {})
    )
    results = {}
    for backend in ("reference", *OPERATORS[name].loaders):
        with monkeypatch.context() as patch, torch.autocast("cpu", torch.bfloat16):
            if backend != "reference":  # this kernel alone
                loaders = {"cpu": OPERATORS[name].loaders[backend]}
                patch.setitem(OPERATORS, name, replace(OPERATORS[name], loaders=loaders))
                patch.setitem(registry.ORDER, "cpu", ("cpu",))
            with use_backend("reference" if backend == "reference" else "cpu"):
                made = ARGUMENTS[name].public(**arguments)
        results[backend] = [made] if isinstance(made, torch.Tensor) else list(made)
    expected = results["reference"]
    for backend, outputs in results.items():
        assert [x.dtype for x in outputs] == [x.dtype for x in expected], backend
        for x, y in zip(outputs, expected, strict=True):
            if backend != "triton":  # whose interpreter's products of bfloat16 matrices are wrong
                assert_close(backend, x, y.double(), 5e-2)
