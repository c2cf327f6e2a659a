"""The residual-shift kernels against float64: random words, normals, formulas, layouts, tiles, launches."""

import math

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from comparison import LAYOUTS, assert_close, double, layouts
from golden_data import array, document
from interpreter import truncates
from pairwise import pairwise

from resshift_fast.diffusion.coefficients import KAPPA_SQRT_ETA, PREDICTION_TYPES
from resshift_fast.diffusion.noise import MAX_SEED, noise_words
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.kernels import residual_shift, residual_shift_noise
from resshift_fast.kernels.launch import record
from resshift_fast.ops.residual_shift import posterior_step_reference, prior_sample_reference

pytestmark = pytest.mark.usefixtures("poisoned_empty")

ROW = Schedule(steps=5, kappa=1.7, power=0.6).table()[2]
SEEDS = torch.tensor([11, 2**32 + 11, MAX_SEED])
ORIGINS = torch.tensor([[0, 2**20 + 3], [7, 0], [2**31 - 2, 2**31 - 5]])
STEP = torch.tensor(2)
GOLDEN = document("noise_vectors.json")["cases"]
SHAPES = [(1, 1, 1, 1), (2, 3, 11, 13), (3, 4, 1, 70), (1, 5, 33, 2), (1, 48, 5, 7)]


def shape_id(shape):
    return "B{}-C{}-H{}-W{}".format(*shape)


@triton.jit
def words_kernel(
    p_seed,  # [B], int64
    p_origin,  # [B, 2], int64, or None
    p_step,  # [], int64
    p_words,  # [4, B, G, H · W], int64
    batch,
    groups,
    pixels,
    width,
    BLOCK_P: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    i_image, i_block = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    step = tl.load(p_step).to(tl.uint32)
    b_words = residual_shift_noise.noise_words(
        p_seed, p_origin, step, i_image, i_block * BLOCK_P, 0, width, BLOCK_P, BLOCK_G
    )
    b_pixel, b_group = i_block * BLOCK_P + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_G)
    m_words = (b_pixel < pixels)[:, None] & (b_group < groups)[None, :]
    for i in tl.static_range(4):
        offsets = ((i * batch + i_image) * groups + b_group)[None, :] * pixels + b_pixel[:, None]
        tl.store(p_words + offsets, b_words[i].to(tl.int64), mask=m_words)


@triton.jit
def box_muller_kernel(p_radius, p_angle, p_normals, n, BLOCK: tl.constexpr):  # [n] int64, [n] int64, [2, n] float32
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_radius = tl.load(p_radius + offsets, mask=offsets < n, other=0).to(tl.uint32)
    b_angle = tl.load(p_angle + offsets, mask=offsets < n, other=0).to(tl.uint32)
    b_cosine, b_sine = residual_shift_noise.box_muller(b_radius, b_angle)
    tl.store(p_normals + offsets, b_cosine, mask=offsets < n)
    tl.store(p_normals + n + offsets, b_sine, mask=offsets < n)


def words_in_kernel(seed, step, channels, height, width, origin):
    """The kernel's random words in the layout of `noise_words`."""
    batch, groups = len(seed), (channels + 3) // 4
    words = torch.full((4, batch, groups, height, width), -1, dtype=torch.int64, device=seed.device)
    grid = (batch, triton.cdiv(height * width, 16))
    sizes = (batch, groups, height * width, width)
    words_kernel[grid](seed, origin, step, words, *sizes, BLOCK_P=16, BLOCK_G=triton.next_power_of_2(groups))
    return words


def exact_normals(words):
    """Box–Muller in float64: [4, …] words to [4, …] normals."""
    u = ((words >> 9).double() + 0.5) / 2**23
    radius, angle = (-2 * u[0::2].log()).sqrt(), 2 * math.pi * u[1::2]
    cosine, sine = radius * angle.cos(), radius * angle.sin()
    return torch.stack([cosine[0], sine[0], cosine[1], sine[1]])


def exact_noise(seed, step, shape, origin):
    """The noise field in float64, [B, C, H, W]."""
    batch, channels, height, width = shape
    normals = exact_normals(noise_words(seed, step, channels, height, width, origin))
    return normals.permute(1, 2, 0, 3, 4).reshape(batch, -1, height, width)[:, :channels]


def latents(shape, device, *names):
    """Random latents with means far from 0."""
    return [(array(f"shift.{name}", *shape) - 2.3).to(device) for name in names]


def field_arguments(shape, device):
    """Coefficients, and the seeds, step and origins of a batch of that shape."""
    batch = shape[0]
    return ROW.to(device), SEEDS[:batch].to(device), STEP.to(device), ORIGINS[:batch].to(device)


def rounding(dtype):
    """Largest relative error of a result that is rounded once to `dtype`."""
    return max(torch.finfo(dtype).eps * (1 if truncates(dtype) else 0.5), 1e-6)


def assert_chain_step(ours, expected, next_dtype):
    """x in float32 NCHW, the next input rounded once and channels-last."""
    (x, following), (exact_x, exact_following) = ours, expected
    assert x.dtype == torch.float32 and x.is_contiguous()
    assert following.dtype == next_dtype and following.is_contiguous(memory_format=torch.channels_last)
    assert_close("x", x, exact_x, 1e-6)
    assert_close("next input", following, exact_following, rounding(next_dtype))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"seed-{case['seed']}")
def test_field_known_answers(case, device):
    size = case["channels"], case["height"], case["width"]
    seed, step, origin = (torch.tensor(case[n], device=device) for n in ("seed", "step", "origin"))
    words = words_in_kernel(seed[None], step, *size, origin[None])[:, 0].permute(1, 2, 3, 0)
    assert words.tolist() == case["words"]
    zeros, row = torch.zeros(1, *size, device=device), torch.ones(8, device=device)
    if case["step"]:
        options = ("x0", False, None, None, torch.float32, False)
        noise = residual_shift.posterior_step(zeros, zeros, zeros, row, seed[None], step, origin[None], *options)[0]
    else:
        noise = residual_shift.prior_sample(zeros, row, seed[None], origin[None], None, None, torch.float32)[0]
    expected = torch.tensor(case["normals"], dtype=torch.float64, device=device)
    assert (noise[0].double() - expected).abs().max() <= 4e-6


@pytest.mark.parametrize("with_origin", [True, False], ids=["origin", "no-origin"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_words_equal_the_reference(shape, with_origin, device):
    _, seed, step, origin = field_arguments(shape, device)
    origin = origin if with_origin else None
    assert torch.equal(words_in_kernel(seed, step, *shape[1:], origin), noise_words(seed, step, *shape[1:], origin))


def test_normals_are_within_1e_6_of_float64(device):
    # The smallest uniform value gives the largest radius, 5.77, which magnifies the angle's error most. Angles: every
    # 63rd, and the ends of every eighth of a turn; radii: extreme and random.
    angle = torch.cat([torch.arange(0, 2**32, 512 * 63), torch.arange(0, 2**32 + 1, 2**29).repeat(3)])
    angle[-9:] -= 1
    angle[-18:-9] -= 513
    angle = (angle % 2**32).to(device)
    generator = torch.Generator().manual_seed(0)
    radius = torch.randint(0, 2**32, angle.shape, generator=generator).to(device)
    radius[::2] = torch.tensor([0, 511, 512, 2**32 - 1, 2**31], device=device).repeat(len(radius))[: len(radius[::2])]
    normals = torch.full((2, len(angle)), torch.nan, device=device)
    block = 1 << 16 if device.type == "cpu" else 1024
    box_muller_kernel[(triton.cdiv(len(angle), block),)](radius, angle, normals, len(angle), BLOCK=block)
    exact = exact_normals(torch.stack([radius, angle, radius, angle]))[:2]
    assert exact.abs().max() > 5.7
    assert (normals.double() - exact).abs().max() <= 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_posterior_step_matches_float64(shape, prediction_type, device):
    x_t, prediction, y = latents(shape, device, "x_t", "prediction", "y")
    lq = latents((shape[0], 3, *shape[2:]), device, "lq")[0]
    clamp_x0 = shape[1] % 2 == 1
    field = field_arguments(shape, device)
    arguments = [x_t, prediction, y, *field, prediction_type, clamp_x0, None, lq, torch.float32, False]
    ours = residual_shift.posterior_step(*arguments)
    arguments[9] = exact_noise(*field[1:3], shape, field[3])
    assert_chain_step(ours, posterior_step_reference(*double(arguments)), torch.float32)


DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pairwise(dtype=DTYPES, next_dtype=DTYPES, lq_channels=[0, 3, 65])
def test_dtypes_and_given_noise(dtype, next_dtype, lq_channels, device):
    shape = (2, 3, 4, 7)
    x_t, prediction, y, noise = latents(shape, device, "x_t", "prediction", "y", "noise")
    lq = latents((2, lq_channels, 4, 7), device, "lq")[0].to(dtype) if lq_channels else None
    row, seed, step, origin = field_arguments(shape, device)
    steps = (x_t, prediction.to(dtype), y, row, seed, step, origin)
    for last in (False, True):
        arguments = (*steps, "epsilon", False, noise, lq, next_dtype, last)
        ours = residual_shift.posterior_step(*arguments)
        assert_chain_step(ours, posterior_step_reference(*double(arguments)), next_dtype)
        if lq_channels and (dtype == next_dtype or not truncates(next_dtype)):
            assert torch.equal(ours[1][:, 3:], lq.to(next_dtype))
    arguments = (y, row, seed, origin, noise, lq, next_dtype)
    assert_chain_step(residual_shift.prior_sample(*arguments), prior_sample_reference(*double(arguments)), next_dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_prior_sample_matches_float64(shape, device):
    (y,) = latents(shape, device, "y")
    row, seed, step, origin = field_arguments(shape, device)
    ours = residual_shift.prior_sample(y, row, seed, origin, None, None, torch.float32)
    noise = exact_noise(seed, step * 0, shape, origin)
    expected = prior_sample_reference(*double((y, row, seed, origin, noise, None, torch.float32)))
    assert_chain_step(ours, expected, torch.float32)


def test_the_last_step_is_the_prediction(device):
    shape = (2, 5, 6, 7)
    x_t, prediction, y = latents(shape, device, "x_t", "prediction", "y")
    row, seed, step, origin = field_arguments(shape, device)
    row = Schedule().table(device)[0]
    for noise in (None, torch.full_like(x_t, torch.nan)):
        options = ("x0", False, noise, None, torch.float32, True)
        ours = residual_shift.posterior_step(x_t, prediction, y, row, seed, step, origin, *options)
        assert torch.equal(ours[0], prediction) and torch.equal(ours[1], prediction)


def test_nan_passes_the_clamp(device):
    shape = (1, 3, 2, 2)
    x_t, prediction, y = latents(shape, device, "x_t", "prediction", "y")
    prediction[0, 1, 0, 1] = torch.nan
    arguments = (x_t, prediction, y, *field_arguments(shape, device), "x0", True, None, None, torch.float32, True)
    ours, expected = residual_shift.posterior_step(*arguments)[0], posterior_step_reference(*arguments)[0]
    assert torch.equal(ours.isnan(), expected.isnan()) and ours.isnan().sum() == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout, device):
    shape = (2, 5, 6, 7)
    tensors = [layouts(x)[layout] for x in latents(shape, device, "x_t", "prediction", "y", "noise", "lq")]
    row, seed, step, origin = field_arguments(shape, device)
    row, step_seeds = torch.stack([row, row * 0], dim=1)[:, 0], torch.stack([seed, seed * 0], dim=1)[:, 0]

    def run(x_t, prediction, y, noise, lq):
        common = (row, step_seeds, step, origin.T.contiguous().T)
        options = (lq, torch.float32, False)
        drawn = residual_shift.posterior_step(x_t, prediction, y, *common, "epsilon", False, None, *options)
        given = residual_shift.posterior_step(x_t, prediction, y, *common, "residual", False, noise, *options)
        first = residual_shift.prior_sample(y, row, step_seeds, origin, noise, lq, torch.float32)
        table, t = Schedule(steps=5).table(device), torch.tensor([1, 3], device=device)
        return *drawn, *given, *first, residual_shift.q_sample(x_t, y, t, table, noise)

    for ours, expected in zip(run(*tensors), run(*(x.contiguous() for x in tensors)), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("channels", [3, 20])
def test_a_tile_is_a_crop_of_the_whole(channels, device):
    shape = (2, channels, 9, 8)
    x_t, prediction, y = latents(shape, device, "x_t", "prediction", "y")
    row, seed, step, origin = field_arguments(shape, device)

    def run(crop, tile_origin):
        tiles = (x[:, :, crop[0], crop[1]] for x in (x_t, prediction, y))
        options = ("x0", True, None, y[:, :3, crop[0], crop[1]], torch.float16, False)
        prior = residual_shift.prior_sample(
            y[:, :, crop[0], crop[1]], row, seed, tile_origin, None, None, torch.float16
        )
        return *residual_shift.posterior_step(*tiles, row, seed, step, tile_origin, *options), *prior

    everything = (slice(None), slice(None))
    for start, whole in ((origin, run(everything, origin)), (torch.zeros_like(origin), run(everything, None))):
        crop = (slice(4, 7), slice(5, 8))
        for ours, expected in zip(run(crop, start + torch.tensor([4, 5], device=device)), whole, strict=True):
            assert torch.equal(ours, expected[:, :, crop[0], crop[1]])


def test_results_repeat_bitwise(device):
    shape = (2, 5, 9, 11)
    x_t, prediction, y = latents(shape, device, "x_t", "prediction", "y")
    options = ("epsilon", False, None, y, torch.bfloat16, False)
    arguments = (x_t, prediction, y, *field_arguments(shape, device), *options)
    first, second = residual_shift.posterior_step(*arguments), residual_shift.posterior_step(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pairwise(
    shape={shape_id(shape): shape for shape in SHAPES},
    dtype=DTYPES,
    memory_format={"nchw": torch.contiguous_format, "nhwc": torch.channels_last},
)
def test_q_sample_matches_float64(shape, dtype, memory_format, device):
    tensors = latents(shape, device, "x0", "y", "noise")
    x0, y, noise = (x.to(dtype).contiguous(memory_format=memory_format) for x in tensors)
    schedule = Schedule(steps=5)
    t = torch.tensor([3, 0, 4][: shape[0]], device=device)
    ours = residual_shift.q_sample(x0, y, t, schedule.table(device), noise)
    assert ours.dtype == dtype and ours.stride() == torch.empty_like(x0).stride()
    row = torch.from_numpy(schedule.coefficients).to(device)[t].view(-1, 8, 1, 1, 1)
    x0, y, noise = x0.double(), y.double(), noise.double()
    exact = x0 + row[:, 0] * (y - x0) + row[:, KAPPA_SQRT_ETA] * noise
    assert_close("x_t", ours, exact, rounding(dtype))


def test_q_sample_outside_the_table_gives_nan(device):
    x0, y, noise = latents((3, 1, 2, 2), device, "x0", "y", "noise")
    ours = residual_shift.q_sample(
        x0, y, torch.tensor([-1, 1, 5], device=device), Schedule(steps=5).table(device), noise
    )
    assert ours[0].isnan().all() and ours[2].isnan().all() and not ours[1].isnan().any()


def far_apart(x):
    """The same values with image 2 more than 2³¹ elements after image 0; the memory between is never touched."""
    stride = 2**30 + 16  # fits in 32 bits; image 2's offset does not
    size = (x.shape[0] - 1) * stride + x[0].numel()
    if x.device.type == "cpu":
        memory = torch.from_numpy(np.empty(size, dtype=np.float32))
    else:
        memory = torch.empty(size, device=x.device)
    return memory.as_strided(x.shape, (stride, *x.stride()[1:])).copy_(x)


def test_addresses_beyond_2_to_the_31(device):
    shape = (3, 3, 5, 7)
    x_t, prediction, y = latents(shape, device, "x_t", "prediction", "y")
    options = ("epsilon", False, None, None, torch.float32, False)
    field = field_arguments(shape, device)
    ours = residual_shift.posterior_step(x_t, far_apart(prediction), y, *field, *options)[0]
    assert torch.equal(ours, residual_shift.posterior_step(x_t, prediction, y, *field, *options)[0])


def meta(*shape, dtype=torch.float32):
    return torch.empty(shape, dtype=dtype, device="meta")


META = (meta(8), meta(2, dtype=torch.int64), meta(dtype=torch.int64), meta(2, 2, dtype=torch.int64))


@pytest.mark.parametrize(
    "prediction_type, given, last, latents_read, field_bytes",
    [
        ("x0", False, False, 2, 56),
        ("epsilon", False, False, 3, 56),
        ("residual", True, False, 4, 0),
        ("x0", True, True, 2, 0),
    ],
)
def test_posterior_step_is_one_launch(prediction_type, given, last, latents_read, field_bytes):
    x, lq = meta(2, 3, 64, 64), meta(2, 3, 64, 64, dtype=torch.bfloat16)
    with record() as launches:
        noise = x if given else None
        options = (prediction_type, False, noise, lq, torch.bfloat16, last)
        x_prev, following = residual_shift.posterior_step(x, x, x, *META, *options)
    assert following.shape == (2, 6, 64, 64) and x_prev.shape == x.shape
    elements = x.numel()
    # In: latents, lq, coefficients, seeds, step, origins. Out: x_prev, the next input's six channels.
    expected = 4 * latents_read * elements + 2 * elements + 32 + field_bytes + 4 * elements + 2 * 2 * elements
    assert [launch.num_bytes for launch in launches] == [expected]


def test_a_next_input_that_is_left_out_is_not_written():
    x = meta(2, 3, 64, 64)
    with record() as launches:
        _, following = residual_shift.posterior_step(x, x, x, META[0], *3 * [None], "x0", False, None, None, None, True)
        residual_shift.prior_sample(x, META[0], None, None, x, None, None)
    assert following.numel() == 0
    assert [launch.num_bytes for launch in launches] == [4 * 3 * x.numel() + 32] * 2


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_x_is_the_same_without_a_next_input(shape, device):
    x_t, prediction, y, noise = latents(shape, device, "x_t", "prediction", "y", "noise")
    row, seed, step, origin = field_arguments(shape, device)
    for given in (None, noise):
        options = (row, seed, step, origin, "epsilon", True, given, None)
        both, alone = (
            residual_shift.posterior_step(x_t, prediction, y, *options, d, False) for d in (torch.float32, None)
        )
        assert torch.equal(alone[0], both[0])
        both, alone = (residual_shift.prior_sample(y, row, seed, origin, given, None, d) for d in (torch.float32, None))
        assert torch.equal(alone[0], both[0])


def test_prior_sample_and_q_sample_are_one_launch():
    x = meta(2, 3, 64, 64)
    row, seed, _, origin = META
    with record() as launches:
        residual_shift.prior_sample(x, row, seed, origin, None, None, torch.float16)
        residual_shift.q_sample(x, x, seed, meta(4, 8), x)
    elements = x.numel()
    assert [launch.name for launch in launches] == ["prior_sample_kernel", "q_sample_kernel"]
    expected = [4 * elements + 32 + 16 + 32 + (4 + 2) * elements, 4 * 4 * elements + 16 + 4 * 8 * 4]
    assert [launch.num_bytes for launch in launches] == expected


@pytest.mark.parametrize("size, channels", [(8, 3), (64, 3), (512, 48), (40_000, 3)], ids=str)
def test_grids_cover_the_pixels(size, channels):
    x = meta(2, channels, size, size)
    with record() as launches:
        residual_shift.posterior_step(x, x, x, *META, "epsilon", False, None, x, torch.bfloat16, False)
        residual_shift.prior_sample(x, *META[:2], None, None, x, torch.bfloat16)
        residual_shift.q_sample(x, x, META[1], meta(4, 8), x)
    for launch in launches:
        block = launch.constants["BLOCK_P"]
        assert launch.grid == (2 * triton.cdiv(size * size, block),) and launch.grid[0] < 2**31
        assert block & (block - 1) == 0


X = torch.ones(1, 3, 2, 2)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({}, None),
        ({"prediction": X.bfloat16(), "lq": X.half(), "next_dtype": torch.float16}, None),
        ({"x_t": X.double()}, "x_t is float64"),
        ({"prediction": X.double()}, "prediction is float64"),
        ({"lq": X.double()}, "lq is float64"),
        ({"next_dtype": torch.float64}, "next_dtype is float64"),
    ],
    ids=str,
)
def test_unsupported_arguments_have_a_reason(change, reason):
    row, seed = torch.ones(8), torch.tensor([0])
    latent = {"x_t": X, "prediction": X, "y": X, "coefficients": row, "seed": seed, "step": STEP, "origin": None}
    rest = {"prediction_type": "x0", "clamp_x0": False, "noise": None, "lq": X, "next_dtype": torch.float32}
    arguments = {**latent, **rest, "last": False, **change}
    assert residual_shift.unsupported_posterior_step(*arguments.values()) == reason
    if "prediction" not in change or reason is None:
        expected = reason and reason.replace("x_t", "y")
        prior = (arguments["x_t"], row, seed, None, None, arguments["lq"], arguments["next_dtype"])
        assert residual_shift.unsupported_prior_sample(*prior) == expected
    assert residual_shift.unsupported_q_sample(X, X, seed, torch.ones(4, 8), X) is None
    assert residual_shift.unsupported_q_sample(*(X.double(),) * 2, seed, torch.ones(4, 8), X) == "x0 is float64"
