"""The CUDA library's own checks refuse bad arguments before a kernel can read or write out of bounds.

Those of window attention are in test_window_attention.py.
"""

import emulation
import pytest
import torch

pytestmark = [
    pytest.mark.skipif(emulation.SANITIZED, reason="the sanitizers check the kernels, not torch"),
    pytest.mark.usefixtures("emulated_library"),
]

X, C, ROWS, WORDS = torch.randn(2, 8, 5, 3), torch.rand(8), torch.rand(2, 8), torch.rand(2, 4)
CODES, ROW, SEED, STEP = torch.rand(6, 8), torch.rand(8), torch.tensor([1, 2]), torch.tensor(1)
NORM = {"num_groups": 4, "weight": C, "bias": C, "scale": ROWS, "shift": ROWS, "activation": 1}
CHAIN = {"coefficients": ROW, "seed": SEED, "origin": None, "noise": None, "lq": X, "next_dtype": torch.float16}
GOOD = {
    "group_norm": {"x": X, "eps": 1e-5, **NORM},
    "group_norm_backward": {"dy": X, "x": X, "mean": WORDS, "rstd": WORDS, **NORM},
    "vector_quantize": {"z": X, "codebook": CODES},
    "prior_sample": {"y": X, **CHAIN},
    "posterior_step": {
        "x_t": X,
        "prediction": X,
        "y": X,
        "step": STEP,
        "prediction_type": 0,
        "clamp_x0": True,
        "last": False,
        **CHAIN,
    },
    "q_sample": {"x0": X, "y": X, "t": torch.tensor([0, 3]), "table": torch.rand(4, 8), "noise": X},
}
BAD = [
    *(
        (name, changes, message)
        for name in ("group_norm", "group_norm_backward")
        for changes, message in (
            ({"x": X[0]}, r"must be \[B, C, H, W\]"),
            ({"x": X[:0]}, "not empty"),
            ({"x": X.double()}, "float32, float16 or bfloat16|must have x's dtype"),
            ({"num_groups": 3}, "8 channels do not divide into 3 groups"),
            ({"num_groups": 0}, "do not divide into 0 groups"),
            ({"num_groups": -4}, "do not divide into -4 groups"),
            ({"weight": C[:7]}, r"weight must be \[C\]"),
            ({"bias": C.double()}, "bias must be float32"),
            ({"bias": ROWS}, r"bias must be \[C\]"),
            ({"scale": ROWS[:1]}, r"scale must be \[B, C\]"),
            ({"shift": C}, r"shift must be \[B, C\]"),
            ({"shift": ROWS.long()}, "shift must be float32"),
        )
    ),
    ("group_norm_backward", {"dy": X[..., :2]}, "dy has size 2 in dimension 3, expected 3"),
    ("group_norm_backward", {"dy": X.half()}, "dy must have x's dtype"),
    ("group_norm_backward", {"mean": WORDS[:1]}, "mean has 4 elements, expected 8"),
    ("group_norm_backward", {"rstd": WORDS.double()}, "rstd has another dtype"),
    ("vector_quantize", {"z": X[0]}, r"z must be \[B, C, H, W\]"),
    ("vector_quantize", {"z": X[:, :0]}, "not empty"),
    ("vector_quantize", {"z": X.double()}, "z must be float32"),
    ("vector_quantize", {"codebook": CODES[:, :7]}, "with z's channels"),
    ("vector_quantize", {"codebook": CODES[:0]}, "not empty"),
    ("vector_quantize", {"codebook": C}, r"must be \[N, C\]"),
    ("vector_quantize", {"codebook": CODES.double()}, "codebook must be float32"),
    ("prior_sample", {"y": X.half()}, "the latent must be float32"),
    ("prior_sample", {"seed": SEED[:1]}, "seed has 1 elements, expected 2"),
    ("prior_sample", {"coefficients": ROW[:6]}, "coefficients has 6 elements"),
    ("posterior_step", {"prediction": X[:, :7]}, "prediction has size 7 in dimension 1"),
    ("posterior_step", {"step": torch.empty(0, dtype=torch.int64)}, "step has 0 elements"),
    ("posterior_step", {"lq": X[..., :2]}, "lq must be"),
    ("posterior_step", {"next_dtype": torch.int8}, "next_dtype must be float32"),
    ("q_sample", {"table": torch.rand(4, 6)}, r"table must be \[T, 8\]"),
    ("q_sample", {"noise": X[:1]}, "noise has size 1"),
]


@pytest.mark.parametrize("name", GOOD)
def test_good_arguments_are_accepted(name):
    getattr(torch.ops.resshift_fast_cuda, name)(**GOOD[name])


@pytest.mark.parametrize("name, changes, message", BAD, ids=lambda x: "-".join(x) if isinstance(x, dict) else None)
def test_bad_arguments_are_refused_with_the_reason(name, changes, message):
    with pytest.raises(RuntimeError, match=message):
        getattr(torch.ops.resshift_fast_cuda, name)(**{**GOOD[name], **changes})


@pytest.mark.parametrize("name", GOOD)
def test_unsupported_layouts_are_copied(name):
    """Expanded, transposed and strided images give the results of their contiguous copies."""
    images = (X[:, :1].expand(-1, 8, -1, -1), torch.randn(2, 8, 3, 5).mT, torch.randn(2, 8, 10, 6)[..., ::2, ::2])
    first = next(iter(GOOD[name]))
    for image in images:
        results = []
        for own in (image, image.contiguous()):
            outputs = getattr(torch.ops.resshift_fast_cuda, name)(**{**GOOD[name], first: own})
            results.append([outputs] if isinstance(outputs, torch.Tensor) else outputs)
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected)
