"""conv2d against a sum over the nine taps in float64, also with a fused norm and residual; invalid arguments."""

from functools import partial

import pytest
import torch
from comparison import DTYPES, LAYOUTS, LIMITS, assert_close, check_operator, layouts, name_of, relative_error
from golden_data import array
from pairwise import BACKENDS, once, pairwise

from resshift_fast.ops import conv2d, conv2d_takes_norm
from resshift_fast.ops.conv2d import reference
from resshift_fast.ops.conv2d_winograd import DIRECT, algorithm

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

CASES = [  # batch, channels, out channels, height, width, padding, bias
    (2, 3, 5, 7, 9, 1, True),
    (1, 17, 4, 1, 1, 1, False),
    (3, 4, 1, 3, 5, 0, True),
    (1, 5, 33, 2, 11, 2, False),
    (2, 32, 16, 13, 8, 1, True),
    (2, 40, 33, 35, 41, 1, True),
    (1, 64, 96, 24, 17, 0, False),
    (1, 33, 17, 40, 3, 2, True),
    (1, 17, 4, 64, 62, 1, True),
]
IDS = [f"B{b}-C{c}-O{o}-H{h}-W{w}-padding{p}-{'bias' if bias else 'plain'}" for b, c, o, h, w, p, bias in CASES]


def exact(x, weight, bias=None, *, padding=1):
    """The formula as a sum of nine shifted products."""
    batch, channels, height, width = x.shape
    padded = x.new_zeros(batch, channels, height + 2 * padding, width + 2 * padding)
    padded[:, :, padding : padding + height, padding : padding + width] = x
    rows, columns = padded.shape[2] - 2, padded.shape[3] - 2
    y = 0.0
    for i, j in [(i, j) for i in range(3) for j in range(3)]:
        read = padded[:, :, i : i + rows, j : j + columns]
        y = y + torch.einsum("bchw,oc->bohw", read, weight[:, :, i, j])
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def plain(x, weight, bias=None, *, padding=1):
    """The plain PyTorch path, with keyword arguments."""
    return reference(x, weight, bias, padding)


def inputs(batch, channels, out_channels, height, width, bias=True):
    """Random tensors; the image has a mean far from 0."""
    tensors = {
        "x": array("conv2d.x", batch, channels, height, width) - 2.3,
        "weight": array("conv2d.weight", out_channels, channels, 3, 3),
    }
    return tensors | ({"bias": array("conv2d.bias", out_channels)} if bias else {})


@pairwise(case=dict(zip(IDS, CASES, strict=True)), dtype=DTYPES, backend=BACKENDS)
def test_matches_float64(case, dtype):
    batch, channels, out_channels, height, width, padding, bias = case
    tensors = inputs(batch, channels, out_channels, height, width, bias)
    functions = (partial(f, padding=padding) for f in (conv2d, plain, exact))
    check_operator(*functions, tensors, dtype)


def test_the_cases_take_every_algorithm():
    for dtype, expected in ((torch.float32, {DIRECT, 4, 6}), (torch.bfloat16, {DIRECT, 4, 6, 8})):
        chosen = set()
        for batch, channels, out_channels, height, width, padding, _ in CASES:
            x = torch.empty(batch, channels, height, width, dtype=dtype)
            chosen.add(algorithm(x, torch.empty(out_channels, channels, 3, 3), padding))
        assert chosen == expected


@pytest.mark.parametrize("size", [(2, 6, 5, 7, 4), (2, 24, 20, 27, 24)], ids=["small", "tiles"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, size):
    tensors = inputs(*size)
    for name in ("x", "weight"):
        changed = tensors | {name: layouts(tensors[name])[layout]}
        check_operator(conv2d, plain, exact, changed, torch.float32)


# fused normalization and residual

FUSED = [  # batch, channels, groups, out channels, height, width, padding, scale and shift, SiLU, residual
    (2, 64, 32, 40, 41, 35, 1, True, True, True),
    (2, 40, 8, 33, 23, 19, 1, False, True, True),
    (1, 15, 3, 16, 24, 24, 2, True, False, False),
    (3, 32, 32, 3, 15, 33, 0, False, False, True),
    (1, 8, 2, 5, 3, 4, 1, True, True, True),
]
FUSED_IDS = [
    f"B{b}-C{c}-G{g}-O{o}-H{h}-W{w}-padding{p}" + "-scale_shift" * s + "-silu" * a + "-sum" * r
    for b, c, g, o, h, w, p, s, a, r in FUSED
]


def fused_inputs(batch, channels, groups, out_channels, height, width, padding, conditioned, silu, added):
    """(tensors, other arguments) of a call with a fused norm."""
    tensors = inputs(batch, channels, out_channels, height, width)
    tensors |= {f"norm_{name}": array(f"conv2d.norm_{name}", channels) for name in ("weight", "bias")}
    if conditioned:
        tensors |= {name: array(f"conv2d.{name}", batch, channels) for name in ("scale", "shift")}
    if added:
        size = (batch, out_channels, height + 2 * padding - 2, width + 2 * padding - 2)
        tensors["residual"] = 20 * array("conv2d.residual", *size)
    return tensors, {"num_groups": groups, "padding": padding, "activation": "silu" if silu else None}


def exact_fused(
    x, weight, bias, norm_weight, norm_bias, residual=0.0, scale=None, shift=None, *, num_groups, padding, activation
):
    """The formula, with explicit sums over each group."""
    groups = x.reshape(x.shape[0], num_groups, -1)
    centred = groups - groups.mean(2, keepdim=True)
    h = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(x.shape)
    h = h * norm_weight[:, None, None] + norm_bias[:, None, None]
    if scale is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    h = h / (1 + (-h).exp()) if activation else h
    return residual + exact(h, weight, bias, padding=padding)


def with_keywords(function):
    """`function`, which takes the registered operator's positional arguments, called with keyword arguments."""

    def call(
        x,
        weight,
        bias,
        norm_weight,
        norm_bias,
        residual=None,
        scale=None,
        shift=None,
        *,
        num_groups,
        padding,
        activation,
    ):
        norm = (num_groups, norm_weight, norm_bias, 1e-5, scale, shift, activation)
        return function(x, weight, bias, padding, residual, *norm)

    return call


FUSED_AXES = {"sizes": dict(zip(FUSED_IDS, FUSED, strict=True)), "dtype": DTYPES, "backend": BACKENDS}


@pairwise(strength=3, way=["public", "registered"], **FUSED_AXES)
def test_norm_and_sum_match_float64(way, sizes, dtype):
    """With gradients: the public function runs separate operators, the registered one recomputes its formula."""
    tensors, options = fused_inputs(*sizes)
    ours = conv2d if way == "public" else with_keywords(torch.ops.resshift_fast.conv2d)
    check_operator(*(partial(f, **options) for f in (ours, with_keywords(reference), exact_fused)), tensors, dtype)


@pairwise(
    strength=3,
    **FUSED_AXES,
    memory_format={"nchw": torch.contiguous_format, "channels_last": torch.channels_last},
)
def test_norm_and_sum_in_one_pass_match_float64(sizes, dtype, memory_format, backend):
    """Without gradients, where a single kernel computes everything."""
    tensors, options = fused_inputs(*sizes)
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    tensors["x"] = tensors["x"].contiguous(memory_format=memory_format)
    with torch.no_grad():
        assert conv2d_takes_norm("cpu") == (backend == "cpu")
        ours, plain = conv2d(**tensors, **options), with_keywords(reference)(**tensors, **options)
    expected = exact_fused(**{name: t.double() for name, t in tensors.items()}, **options)
    allowed = LIMITS[dtype]
    if dtype in (torch.float16, torch.bfloat16):
        allowed = min(allowed, 2 * relative_error(plain, expected) + torch.finfo(dtype).eps / 8)
    assert ours.dtype == dtype
    assert_close("output", ours, expected, allowed)


def test_float32_parameters_of_the_norm_with_16_bit_images():
    tensors, options = fused_inputs(*FUSED[0])
    tensors |= {name: tensors[name].bfloat16() for name in ("x", "residual")}
    expected = exact_fused(**{name: t.double() for name, t in tensors.items()}, **options)
    with torch.no_grad():
        y = conv2d(**tensors, **options)
    assert y.dtype == torch.bfloat16
    assert_close("output", y, expected, 2 * torch.finfo(y.dtype).eps)


@pytest.mark.parametrize("enabled", [True, False], ids=["autocast", "no-autocast"])
@pytest.mark.parametrize("gradients", [True, False], ids=["gradients", "no-gradients"])
def test_autocast_is_the_same_in_every_backend(enabled, gradients):
    """PyTorch convolves in autocast's dtype; scale and shift then have that dtype too."""
    tensors, options = fused_inputs(*FUSED[0])
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.set_grad_enabled(gradients):
        if enabled:
            tensors |= {name: tensors[name].bfloat16() for name in ("scale", "shift")}
        x = tensors["x"].requires_grad_(gradients)
        alone = conv2d(x, tensors["weight"], tensors["bias"])
        y = conv2d(**tensors, **options)
        doubled = conv2d(x.double(), tensors["weight"].double())
    assert alone.dtype == y.dtype == (torch.bfloat16 if enabled else torch.float32)
    assert doubled.dtype == torch.float64
    assert_close("output", y, exact_fused(**{n: t.double() for n, t in tensors.items()}, **options), 2e-2)
    if gradients:
        y.float().sum().backward()
        assert x.grad.dtype == torch.float32 and x.grad.isfinite().all()


def test_autocast_around_the_backward_alone_changes_no_gradient():
    tensors = {name: t.requires_grad_() for name, t in inputs(2, 24, 20, 27, 24).items()}
    y = conv2d(**tensors)
    expected = torch.autograd.grad(y.square().sum(), list(tensors.values()), retain_graph=True)
    loss = y.square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(loss, list(tensors.values()))
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


def test_one_program_serves_every_size_and_autocast():
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(conv2d, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for sizes in ((2, 64, 32, 40, 41, 35), (3, 64, 32, 40, 9, 17), (1, 64, 32, 40, 64, 64)):
            tensors, options = fused_inputs(*sizes, 1, True, True, True)
            torch.testing.assert_close(compiled(**tensors, **options), conv2d(**tensors, **options))
        assert len(graphs) <= 2  # torch.compile specializes a batch of one
        with torch.autocast("cpu", torch.bfloat16):
            tensors |= {name: tensors[name].bfloat16() for name in ("scale", "shift")}
            assert compiled(**tensors, **options).dtype == torch.bfloat16
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_float32_parameters_with_16_bit_images(dtype):
    tensors = inputs(2, 6, 5, 7, 4)
    x = tensors.pop("x").to(dtype)
    y = conv2d(x, **tensors)
    assert y.dtype == dtype
    expected = exact(x.double(), **{name: p.double() for name, p in tensors.items()})
    assert_close("output", y, expected, 2 * torch.finfo(dtype).eps)


W, X, C = torch.ones(4, 6, 3, 3), torch.ones(2, 6, 5, 5), torch.ones(6)
NORM = {"num_groups": 3, "norm_weight": C, "norm_bias": C}


@once
@pytest.mark.parametrize(
    "args, options, error, message",
    [
        ((X[0], W), {}, ValueError, r"conv2d: x must be \[B, C, H, W\]"),
        ((X[:, :, :0], W), {}, ValueError, "conv2d: x is empty"),
        ((X.int(), W), {}, TypeError, "x has dtype torch.int32"),
        ((X, W[:, :5]), {}, ValueError, r"weight has shape \(4, 5, 3, 3\), expected \(O, 6, 3, 3\)"),
        ((X, W[..., :2]), {}, ValueError, r"weight has shape \(4, 6, 3, 2\)"),
        ((X, W[0]), {}, ValueError, r"weight has shape \(6, 3, 3\)"),
        ((X, W, torch.ones(6)), {}, ValueError, r"bias has shape \(6,\), expected \(4,\)"),
        ((X, W.double()), {}, TypeError, "weight has dtype torch.float64"),
        ((X, W.to("meta")), {}, ValueError, "weight is on meta"),
        ((X, W), {"padding": -1}, ValueError, "padding is -1, expected 0 to 1048576"),
        ((X, W), {"padding": 2**63 - 1}, ValueError, "padding is 9223372036854775807, expected 0 to 1048576"),
        ((X[:, :, :2], W), {"padding": 0}, ValueError, "image 2×5 with padding=0 is smaller than the 3×3 kernel"),
        ((X, W), {"residual": X}, ValueError, r"residual has shape \(2, 6, 5, 5\), expected \(2, 4, 5, 5\)"),
        ((X, W), {"residual": X[:, :4].double()}, TypeError, "residual has dtype torch.float64"),
        ((X, W), {"num_groups": -1}, ValueError, "6 channels do not divide into -1 groups"),
        ((X, W), NORM | {"num_groups": 4}, ValueError, "6 channels do not divide into 4 groups"),
        ((X, W), {"num_groups": 3}, TypeError, "norm_weight must be a torch.Tensor, got NoneType"),
        ((X, W), NORM | {"norm_bias": C[:5]}, ValueError, r"norm_bias has shape \(5,\), expected \(6,\)"),
        ((X, W), NORM | {"norm_bias": C.half()}, TypeError, "norm_bias has dtype torch.float16"),
        ((X, W), NORM | {"scale": C}, ValueError, r"scale has shape \(6,\), expected \(2, 6\)"),
        ((X, W), NORM | {"shift": C.expand(2, 6).to("meta")}, ValueError, "shift is on meta"),
        ((X, W), NORM | {"activation": "gelu"}, ValueError, "activation is 'gelu', expected None or 'silu'"),
        ((X, W), {"activation": "silu"}, ValueError, "activation is given, but num_groups is 0"),
        ((X, W), {"scale": C.expand(2, 6)}, ValueError, "scale is given, but num_groups is 0"),
        ((X, W), {"norm_weight": C}, ValueError, "norm_weight is given, but num_groups is 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refuses(args, options, error, message):
    with pytest.raises(error, match=message):
        conv2d(*args, **options)
