"""The spatial_attention kernels against the formula in float64: layouts, split keys, launches and bytes."""

from itertools import product

import pytest
import torch
from comparison import LAYOUTS, LIMITS, assert_close, layouts, name_of, relative_error
from golden_data import array
from interpreter import DTYPES

from resshift_fast.kernels import spatial_attention as module
from resshift_fast.kernels.launch import record
from resshift_fast.kernels.tuning import ARCHITECTURES, targeting

pytestmark = pytest.mark.usefixtures("poisoned_empty")

CASES = [  # B, C, H, W: fewer pixels than a block, several blocks, one pixel, every padded number of channels
    (2, 16, 5, 7),
    (1, 32, 13, 11),
    (3, 48, 1, 6),
    (1, 64, 1, 1),
    (2, 128, 7, 5),
    (1, 256, 6, 7),
    (1, 384, 3, 3),
    (2, 512, 5, 9),
]
IDS = [f"B{b}-C{c}-H{h}-W{w}" for b, c, h, w in CASES]


def inputs(batch, channels, height, width, dtype, device):
    """Random channels-last images; the mean of v is far from 0."""
    shape = batch, channels, height, width
    images = array("spatial.q", *shape), array("spatial.k", *shape), array("spatial.v", *shape) - 2.3
    return [x.to(device, dtype).contiguous(memory_format=torch.channels_last) for x in images]


def plain(q, k, v):
    """The formula in the dtype of its arguments."""
    scores = torch.einsum("bchw,bcij->bhwij", q, k) / q.shape[1] ** 0.5
    weights = scores.flatten(3).softmax(-1).view(scores.shape)
    return torch.einsum("bhwij,bcij->bchw", weights, v)


def check(out, q, k, v):
    """The error is at most the limit, and in 16 bits at most twice that of the plain path."""
    exact = plain(*(x.double() for x in (q, k, v)))
    allowed = LIMITS[q.dtype]
    if q.dtype != torch.float32:
        allowed = min(allowed, 2 * relative_error(plain(q, k, v), exact))
        allowed = allowed or torch.finfo(q.dtype).eps
    assert out.dtype == q.dtype and out.stride() == torch.empty_like(q).stride()
    assert_close("output", out, exact, allowed)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("batch, channels, height, width", CASES, ids=IDS)
def test_matches_float64(batch, channels, height, width, dtype, device):
    q, k, v = inputs(batch, channels, height, width, dtype, device)
    check(module.forward(q, k, v), q, k, v)


@pytest.mark.parametrize("layout", ["contiguous", *LAYOUTS])
def test_any_memory_layout(layout, device):
    tensors = inputs(2, 16, 5, 3, torch.float32, device)
    q, k, v = (x.contiguous() if layout == "contiguous" else layouts(x)[layout] for x in tensors)
    check(module.forward(q, k, v), q, k, v)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "batch, channels, size", [(1, 48, (10, 13)), (2, 32, (10, 13)), (1, 512, (5, 7))], ids=["C48", "B2", "C512"]
)
def test_keys_split_over_programs(batch, channels, size, dtype, device, monkeypatch):
    monkeypatch.setattr(module, "MIN_KEYS", 16)
    q, k, v = inputs(batch, channels, *size, dtype, device)
    with record() as launches:
        module.forward(q, k, v)
    names = ["spatial_attention_kernel", "combine_parts_kernel"]
    assert [launch.name for launch in launches] == names
    n_parts = launches[1].parameters["n_parts"]
    assert n_parts >= 2 and launches[0].parameters["tokens_each"] * (n_parts - 1) < q[0, 0].numel(), "a part is empty"
    check(module.forward(q, k, v), q, k, v)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("channels, min_keys", [(512, 256), (384, 64)], ids=["C512-whole", "C384-split"])
def test_values_split_over_programs(channels, min_keys, dtype, device, monkeypatch):
    monkeypatch.setattr(module, "MIN_KEYS", min_keys)
    config = module._config(32, 16, 4, 2, b_d=256)
    monkeypatch.setattr(module.SPACE, "default", lambda arch, key: config)
    q, k, v = inputs(2, channels, 13, 10, dtype, device)
    with targeting(90):
        with record() as launches:
            module.forward(q, k, v)
        assert launches[0].grid == (2 * 5 * 2 * (1 if min_keys == 256 else 2),)
        check(module.forward(q, k, v), q, k, v)


@pytest.mark.parametrize("min_keys", [16, 256], ids=["split", "whole"])
@pytest.mark.parametrize("sign", [1, -1], ids=["large", "very negative"])
def test_extreme_scores(min_keys, sign, device, monkeypatch):
    monkeypatch.setattr(module, "MIN_KEYS", min_keys)
    q, k, v = inputs(1, 16, 8, 9, torch.float32, device)
    q, k = sign * 100 * (q.abs() + 0.1), 10 * (k.abs() + 0.1)  # scores from ±40 to ±10⁴, all of one sign
    out = module.forward(q, k, v)
    assert out.isfinite().all()
    assert_close("output", out, plain(q.double(), k.double(), v.double()), 1e-4)  # scores of 10⁴ in float32


@pytest.mark.parametrize("min_keys", [16, 256], ids=["split", "whole"])
def test_results_repeat_bitwise(min_keys, device, monkeypatch):
    monkeypatch.setattr(module, "MIN_KEYS", min_keys)
    q, k, v = inputs(1, 32, 9, 11, torch.float32, device)
    assert torch.equal(module.forward(q, k, v), module.forward(q, k, v))


def recorded(arch, *shape, dtype=torch.bfloat16):
    """Launches on channels-last images of a shape, on the meta device."""
    q = torch.empty(shape, dtype=dtype, device="meta", memory_format=torch.channels_last)
    with targeting(arch), record() as launches:
        out = module.forward(q, q, q)
    assert out.shape == q.shape and out.stride() == q.stride()
    return launches


def test_bytes_of_a_64_by_64_latent():
    image = 4096 * 512 * 2
    (launch,) = recorded(80, 1, 512, 64, 64)
    assert launch.grid == (64,) and launch.num_bytes == 4 * image
    attention, combine = recorded(90, 1, 512, 64, 64)  # 64 blocks of queries would leave half of its SMs idle
    parts, sums = 2 * image, 2 * 4096 * 4
    assert attention.grid == (128,) and attention.num_bytes == 3 * image + parts + sums
    assert combine.num_bytes == parts + sums + image


def test_bytes_beyond_the_cache():
    (launch,) = recorded(90, 1, 512, 512, 512)
    # 2,048 blocks of queries, once for either half of the values, on 132 SMs.
    image, waves, of_a_half = 512**3 * 2, 32, 16
    assert launch.grid == (4096,) and launch.num_bytes == (2 + 1 + waves + of_a_half) * image


def test_huge_grids_are_on_the_first_axis():
    (launch,) = recorded(90, 1000, 64, 128, 128)
    assert launch.grid == (1000 * 128 * 128 // launch.constants["B_M"],)
    assert launch.grid[0] > 65535


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_default_is_a_candidate(arch):
    for channels, itemsize in product((16, 64, 128, 256, 512), (2, 4)):
        key = channels, itemsize, 4096
        candidates = module.SPACE.candidates(key)
        assert module.SPACE.default(arch, key) in candidates and len(candidates) <= 8, key


@pytest.mark.parametrize(
    "channels, dtype, reason",
    [
        (512, torch.bfloat16, None),
        (16, torch.float32, None),
        (24, torch.float16, "24 channels are not a multiple of 16 up to 512"),
        (528, torch.float16, "528 channels are not a multiple of 16 up to 512"),
        (512, torch.float64, "torch.float64 is not float32, float16 or bfloat16"),
    ],
    ids=str,
)
def test_unsupported_arguments_have_a_reason(channels, dtype, reason):
    q = torch.empty(1, channels, 2, 2, dtype=dtype, device="meta")
    assert module.unsupported(q, q, q) == reason
