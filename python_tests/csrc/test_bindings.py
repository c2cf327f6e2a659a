"""The bindings of csrc/bindings, from torch's dispatcher to emulated CUDA kernels."""

import re
from dataclasses import replace

import emulation
import pytest
import torch
from comparison import assert_close, name_of
from pipelines import fresh, photo

from resshift_fast import backends, use_backend
from resshift_fast.backends import OPERATORS, native, registry, verification

pytestmark = pytest.mark.skipif(emulation.SANITIZED, reason="the sanitizers check the kernels, not torch")

CPU = torch.device("cpu")
BOUND = sorted(name for name, operator in OPERATORS.items() if "cuda" in operator.loaders)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def test_every_operator_of_the_extension_is_bound():
    assert [
        *("group_norm", "group_norm_backward", "pointwise_conv2d", "pointwise_conv2d_statistics"),
        *("posterior_step", "prior_sample", "q_sample", "vector_quantize"),
        *("window_attention", "window_attention_backward", "window_attention_proj", "window_attention_proj_statistics"),
    ] == BOUND


@pytest.mark.parametrize("name", BOUND)
def test_schemas_equal_the_operators_with_int_for_str(emulated_library, name):
    ours, theirs = (
        str(getattr(getattr(torch.ops, space), name).default._schema).partition("::")[2]
        for space in ("resshift_fast_cuda", "resshift_fast")
    )
    ours = ours.replace(", Tensor(a!) counters)", ")")  # which adapters add
    assert ours == re.sub(r"\bstr\b\??", "int", theirs).replace("SymInt", "int")


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", BOUND)
def test_every_operator_passes_verification(emulated_library, name, dtype):
    assert verification.compare(OPERATORS[name], "cuda", CPU, dtype) == verification.PASSED


class Recorded:
    """Wraps a kernel and counts its calls."""

    def __init__(self, kernel: backends.Kernel):
        self.kernel, self.calls = kernel, 0

    def __call__(self, *args):
        self.calls += 1
        return self.kernel.function(*args)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["x4", "x4-vq"])
def test_whole_restorations_run_on_the_bindings(emulated_library, model, monkeypatch):
    image = torch.from_numpy(photo(24, 17)).permute(2, 0, 1)[None] / 255  # float, so that results are not rounded
    pipe = fresh(model, steps=2)
    with use_backend("reference"):
        expected = pipe(image, seed=3)
    monkeypatch.setattr(native, "missing", lambda name: None)
    monkeypatch.setitem(registry.ORDER, "cpu", ("cuda",))
    used = {name: Recorded(OPERATORS[name].loaders["cuda"]()) for name in BOUND}
    for name, function in used.items():
        kernel = backends.Kernel(function, function.kernel.unsupported)
        loaders = {"cuda": lambda kernel=kernel: kernel}
        monkeypatch.setitem(OPERATORS, name, replace(OPERATORS[name], loaders=loaders))
    with use_backend("auto"):
        ours = pipe(image, seed=3)
    expected_calls = {"group_norm", "pointwise_conv2d", "pointwise_conv2d_statistics"}
    expected_calls |= {"window_attention_proj_statistics", "prior_sample", "posterior_step"}
    expected_calls |= {"vector_quantize"} if "vq" in model else set()
    assert {name for name in BOUND if used[name].calls} == expected_calls
    assert_close("image", ours, expected, 1e-4)
