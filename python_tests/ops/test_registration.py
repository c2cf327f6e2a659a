"""Every registered operator: opcheck, fake tensors, gradients, reproducibility, and equal errors on every backend."""

import re
from typing import NamedTuple

import pytest
import torch
from comparison import LAYOUTS, assert_close, layouts, name_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from resshift_fast import backends, ops, use_backend
from resshift_fast.backends import OPERATORS
from resshift_fast.ops.registration import takes
from resshift_fast.ops.vector_quantize import reference as vector_quantize_reference

CPU = torch.device("cpu")
NAMES = sorted(OPERATORS)
GRADIENTS = [name for name in NAMES if not name.endswith(("_backward", "_gradient"))]  # operators with a gradient


def registered(name: str):
    return getattr(torch.ops.resshift_fast, name).default


def examples(name: str, dtype: torch.dtype) -> list[tuple]:
    return OPERATORS[name].examples(CPU, dtype)


def leaves(args: tuple, dtype: torch.dtype | None = None) -> tuple:
    """The arguments; floating-point tensors require gradients and are cast to `dtype` if it is given."""

    def leaf(x: Tensor) -> Tensor:
        return x.detach().to(dtype or x.dtype).requires_grad_() if x.dtype.is_floating_point else x

    return tree_map_only(Tensor, leaf, args)


def tensors(outputs) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def description(x: Tensor) -> tuple:
    """Metadata that a fake tensor must predict; as in PyTorch, strides of dimensions of size 1 do not count."""
    strides = [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]
    return x.shape, x.dtype, strides, x.device


def like_on_cuda(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")


def in_layout(args: tuple, layout: str) -> tuple:
    """The arguments, with images in another memory layout, batch or size."""
    if layout == "batch-1":
        return tree_map_only(Tensor, lambda x: x[:1] if x.dim() and x.shape[0] == len(args[0]) else x, args)
    if layout == "one-pixel":
        size = args[0].shape[2:]
        return tree_map_only(Tensor, lambda x: x[..., :1, :1] if x.dim() == 4 and x.shape[2:] == size else x, args)
    return tree_map_only(Tensor, lambda x: layouts(x)[layout] if x.dim() == 4 else x, args)


def test_every_public_operator_is_registered():
    assert set(ops.__all__) <= set(OPERATORS)
    for name in OPERATORS:
        assert registered(name)._schema.name == f"resshift_fast::{name}"
        assert not registered(name)._schema.is_mutable


def test_the_schema_has_the_fields_of_a_structure_without_their_defaults():
    class Arguments(NamedTuple):
        x: Tensor
        factor: int = 2
        offset: Tensor | None = None

    @takes(Arguments)
    def plain(a: Arguments) -> Tensor:
        return a.factor * a.x if a.offset is None else a.factor * a.x + a.offset

    assert torch.library.infer_schema(plain, mutates_args=()) == "(Tensor x, SymInt factor, Tensor? offset) -> Tensor"
    x = torch.ones(3)
    assert plain(x).equal(2 * x) and plain(x, 3, offset=x).equal(4 * x)
    with pytest.raises(TypeError, match="positional arguments"):
        plain(x, 1, None, x)


def opcheck(name: str, args: tuple, *checks: str) -> None:
    torch.library.opcheck(registered(name), leaves(args) if name in GRADIENTS else args, test_utils=checks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, dtype):
    for args in examples(name, dtype):
        opcheck(name, args, "test_schema", "test_autograd_registration", "test_faketensor")


# A trace takes a hundred times as long as the other checks and sees the same code for each example and dtype. So one is
# traced, with 16 bits, where float32 intermediates differ in dtype from the inputs.
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_traces_pass_opcheck(name):
    opcheck(name, examples(name, torch.bfloat16)[0], "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("layout", [*LAYOUTS, "batch-1", "one-pixel"])
@pytest.mark.parametrize("name", NAMES)
def test_the_fake_agrees_with_the_operator(name, layout):
    if layout == "one-pixel" and name.startswith("window_attention"):
        pytest.skip("an image is at least one window")
    for args in examples(name, torch.float32):
        args = in_layout(args, layout)
        fake = FakeTensorMode()
        promised = registered(name)(*tree_map_only(Tensor, fake.from_tensor, args))
        got = registered(name)(*args)
        assert [description(x) for x in tensors(promised)] == [description(x) for x in tensors(got)]
        with fake:
            on_cuda = registered(name)(*tree_map_only(Tensor, like_on_cuda, args))
        assert [description(x)[:3] for x in tensors(on_cuda)] == [description(x)[:3] for x in tensors(got)]
        assert all(x.device.type == "cuda" for x in tensors(on_cuda))


def gradients(function, args: tuple) -> list[Tensor | None]:
    """Gradients of a weighted sum of the outputs; None for an argument that no output depends on."""
    inputs = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    outputs = [y for y in tensors(function(*args)) if y.requires_grad]
    weights = [torch.linspace(-1, 2, y.numel(), dtype=torch.float64).view(y.shape).to(y.dtype) for y in outputs]
    return list(torch.autograd.grad(outputs, inputs, weights, allow_unused=True))


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_match_the_reference(name):
    def first(*args):
        return tensors(registered(name)(*args))[0]

    def plain(*args):
        return tensors(OPERATORS[name].plain(*args))[0]

    if name == "vector_quantize":  # its plain path has no gradient for z
        plain = lambda *args: vector_quantize_reference(*args)[0]  # noqa: E731
    for args in examples(name, torch.float32):
        args = leaves(args, torch.float64)
        ours, theirs = gradients(first, args), gradients(plain, args)
        assert any(x is not None for x in ours)
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            if a is not None or b is not None:
                a, b = (torch.zeros_like(y) if x is None else x for x, y in ((a, b), (b, a)))
                assert_close(f"gradient {i}", a, b, 1e-10)


@pytest.mark.parametrize("name", sorted({*NAMES} - {*GRADIENTS}))
def test_a_gradient_of_a_gradient_is_an_error(name):
    """Without the error it would be zero: to autograd, the result of a kernel is a constant."""
    outputs = tensors(registered(name)(*leaves(examples(name, torch.float32)[0])))
    with pytest.raises(NotImplementedError, match=f"{name} has no gradient: .* use_backend"):
        torch.autograd.grad(sum(y.float().sum() for y in outputs), outputs[0].grad_fn.next_functions[0][0].variable)


def second_derivatives(function, args: tuple) -> list[Tensor | None]:
    """Gradients of the squared gradients of the squared outputs."""
    inputs = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    value = sum(y.square().sum(dtype=torch.float64) for y in tensors(function(*args)) if y.requires_grad)
    first = torch.autograd.grad(value, inputs, create_graph=True, allow_unused=True)
    penalty = sum(x.square().sum(dtype=torch.float64) for x in first if x is not None)
    return list(
        torch.autograd.grad(penalty + 0 * value, inputs, allow_unused=True)
    )  # 0 · value: else no graph is an error


@pytest.mark.parametrize("name", GRADIENTS)
def test_a_second_derivative_is_right_or_an_error(name):
    """A gradient penalty must not be taken for a constant."""
    plain = vector_quantize_reference if name == "vector_quantize" else OPERATORS[name].plain
    for args in examples(name, torch.float32):
        try:
            ours = second_derivatives(registered(name), leaves(args, torch.float32))
        except (NotImplementedError, RuntimeError) as error:
            assert re.search("has no gradient: it is a gradient itself|is not implemented", str(error))
            assert name.startswith(("conv2d", "group_norm", "spatial_attention", "window_attention"))
            continue
        expected = second_derivatives(plain, leaves(args, torch.float64))
        for i, (a, b) in enumerate(zip(ours, expected, strict=True)):
            a, b = (torch.zeros(1) if x is None else x for x in (a, b))
            assert_close(f"second derivative {i}", a.expand_as(b) if a.numel() == 1 else a, b.expand_as(a), 1e-4)


def test_plain_pytorch_has_second_derivatives():
    x, weight = (torch.randn(size, dtype=torch.float64, requires_grad=True) for size in ((1, 2, 4, 4), (2, 2, 3, 3)))
    with use_backend("reference"):
        (dx,) = torch.autograd.grad(ops.conv2d(x, weight).square().sum(), x, create_graph=True)
    assert all(second.any() for second in torch.autograd.grad(dx.square().sum(), (x, weight)))


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_flow_through_both_outputs_of_the_samplers(name):
    for args in examples(name, torch.float32):
        args = leaves(args)
        outputs = [y for y in tensors(registered(name)(*args)) if y.requires_grad]
        assert outputs
        if name in ("posterior_step", "prior_sample") and outputs[-1].numel():
            assert len(outputs) == 2
            (through_the_next,) = torch.autograd.grad(outputs[1].float().sum(), args[:1])
            assert through_the_next.any()


@pytest.mark.parametrize("name", NAMES)
def test_results_are_bitwise_reproducible(name):
    for args in examples(name, torch.float32):
        first, second = (tensors(registered(name)(*args)) for _ in range(2))
        assert all(a.equal(b) for a, b in zip(first, second, strict=True))
        if name in GRADIENTS:
            first, second = (gradients(registered(name), leaves(args)) for _ in range(2))
            assert all(a is b is None or a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_newly_allocated(name):
    for args in examples(name, torch.float32):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves(args) if isinstance(x, Tensor)}
        outputs = [x.untyped_storage().data_ptr() for x in tensors(registered(name)(*args))]
        assert len({*given, *outputs}) == len(given) + len(outputs)


def ones(*shape: int) -> Tensor:
    return torch.ones(shape)


X, C, ROW, SEED, STEP = ones(2, 6, 4, 8), ones(6), ones(8), torch.zeros(2, dtype=torch.int64), torch.tensor(1)
K = ones(5, 6, 3, 3)
META = X.to("meta")
MLP = (2, C, C, ones(12, 6), ones(12), ones(6, 12), C)
BLOCK = (C, C, ones(6, 6, 3, 3), C, C, C, ones(6, 6, 3, 3), C)
TABLE = ones(49, 2)
QKV, PROJECTED = ones(1, 4, 8, 12), (TABLE, ones(4, 4))
ATTENTION = {"num_heads": 2, "window_size": 4}
REFUSED = [  # operator, arguments, options, message
    ("conv2d", (X[0], K), {}, r"x must be \[B, C, H, W\]"),
    ("conv2d", (X[:0], K), {}, "x is empty"),
    ("conv2d", (X, K[:, :5]), {}, "weight has shape"),
    ("conv2d", (X, K.double()), {}, "weight has dtype torch.float64"),
    ("conv2d", (X, K.to("meta")), {}, "weight is on meta"),
    ("conv2d", (X, None), {}, "weight must be a torch.Tensor, got NoneType"),
    ("conv2d", (X, K[:0]), {}, "weight has shape"),
    ("conv2d", (X, K, [0.0] * 5), {}, "bias must be a torch.Tensor, got list"),
    ("conv2d", (X, K, C), {}, "bias has shape"),
    ("conv2d", (X, K), {"padding": -1}, "padding is -1"),
    ("group_norm", (X[0], 2, C, C), {}, r"x must be \[B, C, H, W\]"),
    ("group_norm", (X[..., :0], 2, C, C), {}, "x is empty"),
    ("group_norm", (X, 4, C, C), {}, "6 channels do not divide into 4 groups"),
    ("group_norm", (X, 2, C, C.half()), {}, "bias has dtype torch.float16"),
    ("group_norm", (X, 2, C.to("meta"), C), {}, "weight is on meta"),
    ("group_norm", (X.int(), 2, C, C), {}, "x has dtype torch.int32"),
    ("group_norm", (X, 2, None, C), {}, "weight must be a torch.Tensor, got NoneType"),
    ("group_norm", (X, 2, C, C), {"scale": C.numpy()}, "scale must be a torch.Tensor, got ndarray"),
    ("add_concat_group_norm", (X[0], X, 2, C, C), {}, r"x must be \[B, C, H, W\]"),
    ("add_concat_group_norm", (X[:0], X, 2, C, C), {}, "x is empty"),
    ("add_concat_group_norm", (X, X[:1], 2, C, C), {}, "other has shape"),
    ("add_concat_group_norm", (X, X.half(), 2, C, C), {}, "other has dtype torch.float16"),
    ("add_concat_group_norm", (X, META, 2, C, C), {}, "other is on meta"),
    ("add_concat_group_norm", (X, X, 2, C, C), {"mode": "concat"}, "weight has shape"),
    ("add_concat_group_norm", (X, X, 4, C, C), {}, "6 channels do not divide into 4 groups"),
    ("add_concat_group_norm", (X, X, 2, C, None), {}, "bias must be a torch.Tensor, got NoneType"),
    ("pointwise_conv2d", (X[0], ones(5, 6)), {}, r"x must be \[B, C, H, W\]"),
    ("pointwise_conv2d", (X[:0], ones(5, 6)), {}, "x is empty"),
    ("pointwise_conv2d", (X, ones(5, 7)), {}, "weight has shape"),
    ("pointwise_conv2d", (X, ones(5, 6).double()), {}, "weight has dtype torch.float64"),
    ("pointwise_conv2d", (X, ones(5, 6).to("meta")), {}, "weight is on meta"),
    ("pointwise_conv2d", (X, None), {}, "weight must be a torch.Tensor, got NoneType"),
    ("pointwise_conv2d", (X, ones(5, 6)), {"residual": 1.0}, "residual must be a torch.Tensor, got float"),
    ("posterior_step", (X[0], X, X, ROW, SEED, STEP), {}, r"x_t must be \[B, C, H, W\]"),
    ("posterior_step", (X[:0], X, X, ROW, SEED, STEP), {}, "x_t is empty"),
    ("posterior_step", (X.half(), X, X, ROW, SEED, STEP), {}, "x_t has dtype torch.float16"),
    ("posterior_step", (X, X[:1], X, ROW, SEED, STEP), {}, "prediction has shape"),
    ("posterior_step", (X, META, X, ROW, SEED, STEP), {}, "prediction is on meta"),
    ("posterior_step", (X, X, X, ROW[:7], SEED, STEP), {}, "coefficients has shape"),
    ("posterior_step", (X, X, X, ROW, SEED.int(), STEP), {}, "seed must be an int64 tensor"),
    ("posterior_step", (X, X, X, ROW, SEED, STEP), {"lq": X[..., :3]}, "lq has shape"),
    ("posterior_step", (X, X, None, ROW, SEED, STEP), {}, "y must be a torch.Tensor, got NoneType"),
    ("posterior_step", (X, X, X, None, SEED, STEP), {}, "coefficients must be a torch.Tensor, got NoneType"),
    ("posterior_step", (X, X, X, ROW), {}, "step is None, but the noise field needs it"),
    ("posterior_step", (X, X, X, ROW, None, STEP), {}, "seed is None, but the noise field needs it"),
    ("prior_sample", (X, ROW), {}, "seed is None, but the noise field needs it"),
    ("prior_sample", (X[0], ROW, SEED), {}, r"y must be \[B, C, H, W\]"),
    ("prior_sample", (X[:, :0], ROW, SEED), {}, "y is empty"),
    ("prior_sample", (X.bfloat16(), ROW, SEED), {}, "y has dtype torch.bfloat16"),
    ("prior_sample", (X, ROW.to("meta"), SEED), {}, "coefficients is on meta"),
    ("prior_sample", (X, ROW, SEED[:1]), {}, "seed has shape"),
    ("q_sample", (X[0], X, SEED, ROW[None], X), {}, r"x0 must be \[B, C, H, W\]"),
    ("q_sample", (X[:0], X, SEED, ROW[None], X), {}, "x0 is empty"),
    ("q_sample", (X, X.double(), SEED, ROW[None], X), {}, "y has dtype torch.float64"),
    ("q_sample", (X, X, SEED, ROW, X), {}, "table has shape"),
    ("q_sample", (X, X, SEED, ROW[None], META), {}, "noise is on meta"),
    ("q_sample", (X, X, SEED, ROW[None], None), {}, "noise must be a torch.Tensor, got NoneType"),
    ("q_sample", (X, X, SEED, ROW[None][:0], X), {}, r"table has shape \(0, 8\)"),
    ("q_sample", (X, X, SEED, None, X), {}, "table must be a torch.Tensor, got NoneType"),
    ("residual_block", (X[0], None, 2, *BLOCK), {}, r"x must be \[B, C, H, W\]"),
    ("residual_block", (X[:0], None, 2, *BLOCK), {}, "x is empty"),
    ("residual_block", (X, None, 4, *BLOCK), {}, "6 or 6 channels do not divide into 4 groups"),
    ("residual_block", (X, X, 2, *BLOCK), {}, r"weight1 has shape \(6, 6, 3, 3\), expected \(O, 12, 3, 3\)"),
    ("residual_block", (X, X[:, :, :3], 2, *BLOCK), {}, "other has shape"),
    ("residual_block", (X, X.half(), 2, *BLOCK), {}, "other has dtype torch.float16"),
    ("residual_block", (X, None, 2, C[:5], *BLOCK[1:]), {}, "norm1_weight has shape"),
    ("residual_block", (X, None, 2, *BLOCK[:6], ones(5, 6, 3, 3), C), {}, "as many outputs as weight1"),
    ("residual_block", (X, None, 2, *BLOCK[:7], None), {}, "bias2 must be a torch.Tensor, got NoneType"),
    ("residual_block", (X, None, 2, *BLOCK[:7], C.to("meta")), {}, "bias2 is on meta"),
    ("residual_block", (X, None, 2, *BLOCK[:7], C.half()), {}, "bias2 has dtype torch.float16"),
    ("residual_block", (X, None, 2, *BLOCK), {"scale": C}, r"scale has shape \(6,\), expected \(\d, 6\)"),
    ("residual_block", (X, None, 2, *BLOCK), {"skip_bias": C}, "skip_bias is given, but skip_weight is None"),
    ("residual_block", (X, None, 2, *BLOCK), {"skip_weight": ones(6, 5)}, "skip_weight has shape"),
    ("residual_block", (X, None, 2, *BLOCK), {"statistics": C}, "statistics has shape"),
    ("spatial_attention", (X[0], X, X), {}, r"q must be \[B, C, H, W\]"),
    ("spatial_attention", (X[:0], X[:0], X[:0]), {}, "q is empty"),
    ("spatial_attention", (X, X[:1], X), {}, "k has shape"),
    ("spatial_attention", (X, X, X.half()), {}, "v has dtype torch.float16"),
    ("spatial_attention", (X, META, X), {}, "k is on meta"),
    ("spatial_attention", (X, X, None), {}, "v must be a torch.Tensor, got NoneType"),
    ("swin_mlp", (X[0], *MLP), {}, r"x must be \[B, C, H, W\]"),
    ("swin_mlp", (X[:0], *MLP), {}, "x is empty"),
    ("swin_mlp", (X, 4, *MLP[1:]), {}, "6 channels do not divide into 4 groups"),
    ("swin_mlp", (X, 2, C[:5], *MLP[2:]), {}, "norm_weight has shape"),
    ("swin_mlp", (X, 2, C, C.half(), *MLP[3:]), {}, "norm_bias has dtype torch.float16"),
    ("swin_mlp", (X, *MLP[:3], ones(12, 7), *MLP[4:]), {}, "w1 has shape"),
    ("swin_mlp", (X, *MLP[:5], ones(6, 11), C), {}, "w2 has shape"),
    ("swin_mlp", (X, *MLP[:6], C.to("meta")), {}, "b2 is on meta"),
    ("swin_mlp", (X, *MLP[:3], None, *MLP[4:]), {}, "w1 must be a torch.Tensor, got NoneType"),
    ("swin_mlp", (X, *MLP[:3], ones(0, 6), ones(0), ones(6, 0), C), {}, "w1 has shape"),
    ("swin_mlp", (X, *MLP[:6], None), {}, "b2 must be a torch.Tensor, got NoneType"),
    ("upsample_conv2d", (X[0], K), {}, r"x must be \[B, C, H, W\]"),
    ("upsample_conv2d", (X[..., :0], K), {}, "x is empty"),
    ("upsample_conv2d", (X, K[..., :1]), {}, "weight has shape"),
    ("upsample_conv2d", (X, K, ones(5).to("meta")), {}, "bias is on meta"),
    ("upsample_conv2d", (X, K.half()), {}, "weight has dtype torch.float16"),
    ("upsample_conv2d", (X, K[:0]), {}, "weight has shape"),
    ("vector_quantize", (X[0], ones(9, 6)), {}, r"z must be \[B, C, H, W\]"),
    ("vector_quantize", (X[:0], ones(9, 6)), {}, "z is empty"),
    ("vector_quantize", (X, ones(9, 5)), {}, r"codebook has shape \(9, 5\), expected \(N, 6\)"),
    ("vector_quantize", (X, ones(0, 6)), {}, "codebook has shape"),
    ("vector_quantize", (X, ones(9, 6).half()), {}, "codebook has dtype torch.float16"),
    ("vector_quantize", (X, ones(9, 6).to("meta")), {}, "codebook is on meta"),
    ("vector_quantize", (X, None), {}, "codebook must be a torch.Tensor, got NoneType"),
    ("window_attention", (ones(4, 8, 12), TABLE), ATTENTION, r"qkv must be \[B, H, W, 3C\]"),
    ("window_attention", (ones(0, 4, 8, 12), TABLE), ATTENTION, r"qkv must be"),
    ("window_attention", (ones(1, 4, 8, 15), TABLE), ATTENTION, "a multiple of num_heads=2"),
    ("window_attention", (ones(1, 4, 6, 12), TABLE), ATTENTION, "4×6 is not a multiple of window_size=4"),
    ("window_attention", (ones(1, 4, 8, 12), TABLE[:9]), ATTENTION, "bias_table has shape"),
    ("window_attention", (ones(1, 4, 8, 12), TABLE.half()), ATTENTION, "bias_table has dtype torch.float16"),
    ("window_attention", (ones(1, 4, 8, 12), TABLE.to("meta")), ATTENTION, "bias_table is on meta"),
    ("window_attention", (ones(1, 4, 8, 12), None), ATTENTION, "bias_table must be a torch.Tensor, got NoneType"),
    ("window_attention", (ones(1, 4, 8, 12), TABLE), {**ATTENTION, "shift_size": 4}, "shift_size is 4"),
    ("window_attention_proj", (ones(4, 8, 12), *PROJECTED), ATTENTION, r"qkv must be \[B, H, W, 3C\]"),
    ("window_attention_proj", (ones(1, 4, 6, 12), *PROJECTED), ATTENTION, "4×6 is not a multiple of window_size=4"),
    ("window_attention_proj", (QKV, TABLE[:9], PROJECTED[1]), ATTENTION, "bias_table has shape"),
    ("window_attention_proj", (QKV, TABLE, ones(4, 5)), ATTENTION, "weight has shape"),
    ("window_attention_proj", (QKV, TABLE, None), ATTENTION, "weight must be a torch.Tensor, got NoneType"),
    ("window_attention_proj", (QKV, *PROJECTED, ones(3)), ATTENTION, "bias has shape"),
    ("window_attention_proj", (QKV, *PROJECTED, ones(4).to("meta")), ATTENTION, "bias is on meta"),
    ("window_attention_proj", (QKV, *PROJECTED, None, QKV), ATTENTION, "residual has shape"),
]


@pytest.mark.parametrize(
    "name, args, options, message", REFUSED, ids=[f"{name}-{message[:24]}" for name, _, _, message in REFUSED]
)
def test_every_backend_refuses_bad_input_with_the_same_message(name, args, options, message, monkeypatch):
    def launched(*_):
        pytest.fail("the operator ran with bad input")

    monkeypatch.setattr(backends, "run", launched)
    texts = set()
    for backend in ("reference", "auto", "triton"):
        if backends.unavailable(backend) is None:
            with use_backend(backend), pytest.raises((ValueError, TypeError), match=f"{name}: .*{message}") as caught:
                getattr(ops, name)(*args, **options)
            texts.add(f"{caught.type.__name__}: {caught.value}")
    assert len(texts) == 1


def test_every_public_operator_refuses_bad_input():
    assert {name for name, *_ in REFUSED} == set(ops.__all__)
