"""The residual shift's CUDA kernels, executed on the CPU, against float64: noise, formulas, dtypes, layouts, orders.

A call with three channels, a multiple of four pixels and aligned tensors, as the sampler makes it, takes the kernel
with four pixels per thread ("rows"); any other call takes the general one.
"""

import math

import pytest
import torch
from comparison import assert_close, double, layouts, name_of
from emulation import array, filled
from golden_data import array as random
from golden_data import document
from pairwise import pairwise

from resshift_fast.diffusion import coefficients as columns
from resshift_fast.diffusion.coefficients import PREDICTION_TYPES
from resshift_fast.diffusion.noise import MAX_SEED, noise_words
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.ops.residual_shift import posterior_step_reference, prior_sample_reference

ROW = Schedule(steps=5, kappa=1.7, power=0.6).table()[2]
SEEDS = torch.tensor([11, 2**32 + 11, MAX_SEED])
ORIGINS = torch.tensor([[0, 2**20 + 3], [7, 0], [2**31 - 2, 2**31 - 5]])
STEP = torch.tensor(2)
VECTORS = document("noise_vectors.json")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Widths that are no multiples of four: the four pixels of a thread lie in two to four rows.
ROWS = [(2, 3, 6, 10), (3, 3, 4, 1), (1, 3, 34, 18)]
GENERAL = [(1, 1, 1, 1), (2, 3, 11, 13), (3, 4, 1, 70), (1, 5, 33, 2), (1, 64, 5, 7)]
SHAPES = ROWS + GENERAL


def shape_id(shape):
    return "B{}-C{}-H{}-W{}".format(*shape)


BY_ID = {shape_id(shape): shape for shape in SHAPES}


def latents(shape, *names):
    """Random latents with means far from 0."""
    return [random(f"shift.{name}", *shape) - 2.3 for name in names]


def field(batch):
    """The seeds, step and origins of a batch."""
    return SEEDS[:batch], STEP, ORIGINS[:batch]


def chain_step(emulated, x, prediction, y, row, seed, step, origin, kind, clamp_x0, noise, lq, next_dtype, last):
    """`posterior_step`, or `prior_sample` where there is no prediction, as the bindings call the kernels."""
    batch, channels, height, width = x.shape
    out = filled(*x.shape, dtype=torch.float32)
    next_shape = (batch, channels + (0 if lq is None else lq.shape[1]), height, width)
    written = next_dtype is not None
    following = filled(*next_shape, dtype=next_dtype, memory_format=torch.channels_last) if written else None
    draws = noise is None and not last
    optional = (prediction, None if kind == "x0" else y, None if last else noise, lq)
    integers = (seed if draws else None, step if draws else None, origin)
    arrays = (array(t) for t in (x, *optional, row, *integers, out, following))
    emulated.chain_step(*arrays, PREDICTION_TYPES.index(kind), clamp_x0)
    return out, following


def prior_sample(emulated, y, row, seed, origin, noise, lq, next_dtype):
    return chain_step(emulated, y, None, None, row, seed, None, origin, "x0", False, noise, lq, next_dtype, False)


def q_sample(emulated, x0, y, t, table, noise):
    x_t = torch.empty_like(x0).fill_(torch.nan)
    emulated.q_sample(*(array(x) for x in (x0, y, t, table, noise, x_t)))
    return x_t


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


def assert_chain_step(ours, expected, scale, lq):
    """Fail unless x is close to float64 and the next input is x, scaled and rounded once, followed by lq."""
    (x, following), (exact_x, exact_following) = ours, expected
    channels, dtype = x.shape[1], following.dtype
    assert_close("x", x, exact_x, 1e-6)
    assert_close("next input", following, exact_following, max(torch.finfo(dtype).eps / 2, 1e-6))
    assert torch.equal(following[:, :channels], (x * scale).to(dtype))
    if lq is not None:
        assert torch.equal(following[:, channels:], lq.to(dtype))


# Noise


@pytest.mark.parametrize("case", VECTORS["philox4x32_10"], ids=lambda case: f"key-{case['key'][0]}")
def test_philox_known_answers(case, emulated):
    counter, key, expected = (
        [int(w, 16) if isinstance(w, str) else w for w in case[n]] for n in ("counter", "key", "words")
    )
    words = torch.empty(1, 4, dtype=torch.int64)
    seed = key[0] + (key[1] << 32)
    seeds = torch.tensor([seed - (1 << 64) if seed >= 1 << 63 else seed])
    emulated.selftest.philox(array(torch.tensor([counter])), array(seeds), array(words))
    assert words[0].tolist() == expected


def test_words_equal_the_reference(emulated):
    seed, step, origin = field(3)
    expected = noise_words(seed, step, 9, 6, 5, origin)  # [4, B, G, H, W]
    row = torch.arange(6)[:, None] + origin[:, 0, None, None, None]
    column = torch.arange(5) + origin[:, 1, None, None, None]
    grid = torch.broadcast_tensors(column, row, torch.arange(3)[:, None, None], step, seed[:, None, None, None])
    counters, seeds = torch.stack(grid[:4], dim=-1).view(-1, 4), grid[4].reshape(-1).contiguous()
    words = torch.empty_like(counters)
    emulated.selftest.philox(array(counters), array(seeds), array(words))
    assert torch.equal(words.T.reshape(expected.shape), expected)


def test_normals_are_within_1e_6_of_float64(emulated):
    # The smallest uniform value gives the largest radius, 5.77, which magnifies the angle's error most. Every 63rd
    # angle and both ends of every eighth of a turn, with extreme and random radii.
    angle = torch.cat([torch.arange(0, 2**32, 512 * 63), torch.arange(0, 2**32 + 1, 2**29).repeat(3)])
    angle[-9:] -= 1
    angle[-18:-9] -= 513
    angle = angle % 2**32
    radius = torch.randint(0, 2**32, angle.shape, generator=torch.Generator().manual_seed(0))
    radius[::2] = torch.tensor([0, 511, 512, 2**32 - 1, 2**31]).repeat(len(radius))[: len(radius[::2])]
    normals = filled(len(angle), 2, dtype=torch.float32)
    emulated.selftest.box_muller(array(radius), array(angle), array(normals))
    exact = exact_normals(torch.stack([radius, angle, radius, angle]))[:2].T
    assert exact.abs().max() > 5.7
    assert (normals.double() - exact).abs().max() <= 1e-6


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"seed-{case['seed']}")
def test_field_known_answers(case, emulated):
    size = case["channels"], case["height"], case["width"]
    seed, step, origin = torch.tensor([case["seed"]]), torch.tensor(case["step"]), torch.tensor([case["origin"]])
    zeros, row = torch.zeros(1, *size), torch.ones(8)
    if case["step"]:
        options = ("x0", False, None, None, torch.float32, False)
        noise = chain_step(emulated, zeros, zeros, zeros, row, seed, step, origin, *options)[0]
    else:
        noise = prior_sample(emulated, zeros, row, seed, origin, None, None, torch.float32)[0]
    assert (noise[0].double() - torch.tensor(case["normals"], dtype=torch.float64)).abs().max() <= 4e-6


@pytest.mark.parametrize("shape", [(3, 3, 6, 10), (3, 5, 6, 10)], ids=["rows", "general"])
def test_the_field_of_every_image_and_pixel(shape, emulated):
    zeros, row, (seed, step, origin) = torch.zeros(shape), torch.ones(8), field(3)
    for place in (origin, None):
        ours = prior_sample(emulated, zeros, row, seed, place, None, None, torch.float32)[0]
        assert (ours - exact_noise(seed, step * 0, shape, place)).abs().max() <= 4e-6
    options = ("x0", False, None, None, torch.float32, False)
    ours = chain_step(emulated, zeros, zeros, zeros, row, seed, step, origin, *options)[0]
    assert (ours - exact_noise(seed, step, shape, origin)).abs().max() <= 4e-6


# Steps of the chain


@pairwise(shape=BY_ID, kind=PREDICTION_TYPES, given={"drawn": False, "given": True})
def test_posterior_step_matches_float64(shape, kind, given, emulated):
    x_t, prediction, y, noise = latents(shape, "x_t", "prediction", "y", "noise")
    prediction = prediction.contiguous(memory_format=torch.channels_last)
    (lq,) = latents((shape[0], 3, *shape[2:]), "lq")
    seed, step, origin = field(shape[0])
    clamp_x0 = kind in ("x0", "residual")
    arguments = [x_t, prediction, y, ROW, seed, step, origin, kind, clamp_x0, None, lq, torch.float32, False]
    if given:
        arguments[9] = noise
    ours = chain_step(emulated, *arguments)
    arguments[9] = noise if given else exact_noise(seed, step, shape, origin)
    expected = posterior_step_reference(*double(arguments))
    assert_chain_step(ours, expected, ROW[columns.NEXT_INPUT_SCALE], lq)


@pairwise(
    strength=3,
    shape={"rows": (2, 3, 6, 10), "general": (2, 4, 3, 5)},
    next_dtype=DTYPES,
    lq_channels=[0, 1, 3, 4, 5],
    lq_layout=["nchw", "nhwc"],
)
def test_next_inputs(shape, next_dtype, lq_channels, lq_layout, emulated):
    x_t, prediction, y = latents(shape, "x_t", "prediction", "y")
    prediction = prediction.to(next_dtype).contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if lq_layout == "nhwc" else torch.contiguous_format
    (lq,) = latents((2, lq_channels, *shape[2:]), "lq") if lq_channels else (None,)
    lq = None if lq is None else lq.to(next_dtype).contiguous(memory_format=memory_format)
    seed, step, origin = field(2)
    arguments = [x_t, prediction, y, ROW, seed, step, origin, "epsilon", False, None, lq, next_dtype, False]
    ours = chain_step(emulated, *arguments)
    arguments[9] = exact_noise(seed, step, shape, origin)
    assert_chain_step(ours, posterior_step_reference(*double(arguments)), ROW[columns.NEXT_INPUT_SCALE], lq)
    arguments = [y, ROW, seed, origin, None, lq, next_dtype]
    ours = prior_sample(emulated, *arguments)
    arguments[4] = exact_noise(seed, step * 0, shape, origin)
    assert_chain_step(ours, prior_sample_reference(*double(arguments)), ROW[columns.INPUT_SCALE], lq)


@pytest.mark.parametrize("next_dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_predictions_and_lq_of_other_dtypes(dtype, next_dtype, emulated):
    shape = (2, 3, 6, 10)
    x_t, prediction, y, noise, lq = latents(shape, "x_t", "prediction", "y", "noise", "lq")
    prediction, lq = prediction.to(dtype), lq.to(dtype)
    arguments = (x_t, prediction, y, ROW, *field(2), "residual", False, noise, lq, next_dtype, False)
    ours = chain_step(emulated, *arguments)
    expected = posterior_step_reference(*double(arguments))
    assert_chain_step(ours, expected, ROW[columns.NEXT_INPUT_SCALE], lq)


@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_prior_sample_matches_float64(shape, given, emulated):
    y, noise, lq = latents(shape, "y", "noise", "lq")
    seed, step, origin = field(shape[0])
    ours = prior_sample(emulated, y, ROW, seed, origin, noise if given else None, lq, torch.float32)
    noise = noise if given else exact_noise(seed, step * 0, shape, origin)
    expected = prior_sample_reference(*double((y, ROW, seed, origin, noise, lq, torch.float32)))
    assert_chain_step(ours, expected, ROW[columns.INPUT_SCALE], lq)


@pytest.mark.parametrize("shape", [(2, 3, 6, 10), (2, 5, 6, 7)], ids=["rows", "general"])
def test_the_last_step_is_the_prediction(shape, emulated):
    x_t, prediction, y = latents(shape, "x_t", "prediction", "y")
    row = Schedule().table()[0]
    for noise in (None, torch.full_like(x_t, torch.nan)):
        options = ("x0", False, noise, None, torch.float32, True)
        ours = chain_step(emulated, x_t, prediction, y, row, *field(2), *options)
        assert torch.equal(ours[0], prediction) and torch.equal(ours[1], prediction)


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (1, 3, 3, 3)], ids=["rows", "general"])
def test_nan_passes_the_clamp(shape, emulated):
    x_t, prediction, y = latents(shape, "x_t", "prediction", "y")
    prediction[0, 1, 0, 1] = torch.nan
    prediction = prediction.contiguous(memory_format=torch.channels_last)
    arguments = (x_t, prediction, y, ROW, *field(1), "x0", True, None, None, torch.float32, True)
    ours, expected = chain_step(emulated, *arguments)[0], posterior_step_reference(*arguments)[0]
    assert torch.equal(ours.isnan(), expected.isnan()) and ours.isnan().sum() == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", [(2, 3, 6, 10), (2, 5, 6, 7)], ids=["rows", "general"])
def test_the_next_input_can_be_left_out(shape, dtype, emulated):
    x_t, prediction, y, noise = latents(shape, "x_t", "prediction", "y", "noise")
    prediction = prediction.to(dtype).contiguous(memory_format=torch.channels_last)
    for given in (None, noise):
        arguments = (x_t, prediction, y, ROW, *field(2), "residual", False, given, None)
        both, alone = (chain_step(emulated, *arguments, d, False) for d in (dtype, None))
        assert torch.equal(alone[0], both[0]) and alone[1] is None
        both, alone = (prior_sample(emulated, y, ROW, *field(2)[::2], given, None, d) for d in (dtype, None))
        assert torch.equal(alone[0], both[0]) and alone[1] is None


def misaligned(x):
    """A copy of x with its strides, not 16-byte aligned."""
    memory = x.new_full((x.numel() + 1,), torch.nan)
    return memory[1:].as_strided(x.shape, x.stride(), 1).copy_(x)


@pytest.mark.parametrize("moved", ["x_t", "prediction", "y", "noise", "lq", "all"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_misaligned_memory_gives_the_same_bits(moved, dtype, emulated):
    names = ("x_t", "prediction", "y", "noise", "lq")
    tensors = dict(zip(names, latents((2, 3, 6, 10), *names), strict=True))
    tensors["prediction"] = tensors["prediction"].to(dtype).contiguous(memory_format=torch.channels_last)
    tensors["lq"] = tensors["lq"].to(dtype)

    def run(x_t, prediction, y, noise, lq):
        drawn = chain_step(emulated, x_t, prediction, y, ROW, *field(2), "epsilon", False, None, lq, dtype, False)
        given = chain_step(emulated, x_t, prediction, y, ROW, *field(2), "residual", True, noise, lq, dtype, False)
        return *drawn, *given, *prior_sample(emulated, y, ROW, *field(2)[::2], None, lq, dtype)

    elsewhere = {name: misaligned(x) if moved in (name, "all") else x for name, x in tensors.items()}
    for ours, expected in zip(run(**elsewhere), run(**tensors), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "offset", "expanded"])
def test_any_memory_layout(layout, emulated):
    names = ("x_t", "prediction", "y", "noise", "lq")
    tensors = [layouts(x)[layout] for x in latents((2, 3, 6, 10), *names)]

    def run(x_t, prediction, y, noise, lq):
        options = (lq, torch.float32, False)
        drawn = chain_step(emulated, x_t, prediction, y, ROW, *field(2), "epsilon", False, None, *options)
        given = chain_step(emulated, x_t, prediction, y, ROW, *field(2), "residual", False, noise, *options)
        return *drawn, *given, *prior_sample(emulated, y, ROW, *field(2)[::2], noise, lq, torch.float32)

    for ours, expected in zip(run(*tensors), run(*(x.contiguous() for x in tensors)), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("channels", [3, 20])
def test_a_tile_is_a_crop_of_the_whole(channels, emulated):
    x_t, prediction, y = latents((2, channels, 9, 8), "x_t", "prediction", "y")
    seed, step, origin = field(2)

    def run(rows, columns, tile_origin):
        tiles = [x[:, :, rows, columns].contiguous() for x in (x_t, prediction, y)]
        options = ("x0", True, None, tiles[2][:, :3], torch.float16, False)
        prior = prior_sample(emulated, tiles[2], ROW, seed, tile_origin, None, None, torch.float16)
        return *chain_step(emulated, *tiles, ROW, seed, step, tile_origin, *options), *prior

    whole = run(slice(None), slice(None), origin)
    rows, columns = slice(4, 8), slice(5, 7)
    for ours, expected in zip(run(rows, columns, origin + torch.tensor([4, 5])), whole, strict=True):
        assert torch.equal(ours, expected[:, :, rows, columns])


@pytest.mark.parametrize("shape", [(2, 3, 6, 10), (1, 3, 40, 44), (2, 5, 9, 11)], ids=shape_id)
def test_the_order_of_threads_changes_nothing(shape, in_all_orders, emulated):
    x_t, prediction, y, lq = latents(shape, "x_t", "prediction", "y", "lq")
    prediction = prediction.bfloat16().contiguous(memory_format=torch.channels_last)
    seed, step, origin = field(shape[0])
    steps = (x_t, prediction, y, ROW, seed, step, origin, "epsilon", False, None, lq.bfloat16(), torch.bfloat16, False)
    table, t = Schedule(steps=5).table(), torch.arange(shape[0])
    in_all_orders(lambda: chain_step(emulated, *steps))
    in_all_orders(lambda: prior_sample(emulated, y, ROW, seed, origin, None, lq, torch.float16))
    in_all_orders(lambda: q_sample(emulated, x_t, y, t, table, lq))


# The forward process


@pairwise(
    shape={shape_id(shape): shape for shape in [*GENERAL, (3, 4, 6, 10), (1, 3, 64, 32)]},
    dtype=DTYPES,
    memory_format={"nchw": torch.contiguous_format, "nhwc": torch.channels_last},
)
def test_q_sample_matches_float64(shape, dtype, memory_format, emulated):
    x0, y, noise = (x.to(dtype).contiguous(memory_format=memory_format) for x in latents(shape, "x0", "y", "noise"))
    tables = Schedule(steps=5)
    t = torch.tensor([3, 0, 4][: shape[0]])
    ours = q_sample(emulated, x0, y, t, tables.table(), noise)
    row = torch.from_numpy(tables.coefficients)[t].view(-1, 8, 1, 1, 1)
    x0, y, noise = x0.double(), y.double(), noise.double()
    exact = x0 + row[:, columns.ETA] * (y - x0) + row[:, columns.KAPPA_SQRT_ETA] * noise
    assert_close("x_t", ours, exact, max(torch.finfo(dtype).eps / 2, 1e-6))


@pytest.mark.parametrize("layout", ["channels_last", "strided", "offset", "expanded", "misaligned"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_q_sample_of_any_layout(dtype, layout, emulated):
    x0, y, noise = (x.to(dtype) for x in latents((2, 4, 6, 10), "x0", "y", "noise"))
    table, t = Schedule(steps=5).table(), torch.tensor([1, 4])
    expected = q_sample(emulated, x0, y, t, table, noise)
    for i in range(3):  # one tensor at a time, and the result with x0, whose layout it takes
        tensors = [x0, y, noise]
        tensors[i] = misaligned(tensors[i]) if layout == "misaligned" else layouts(tensors[i])[layout]
        if layout == "expanded":
            expected = q_sample(emulated, *(x.contiguous() for x in tensors[:2]), t, table, tensors[2].contiguous())
        assert torch.equal(q_sample(emulated, *tensors[:2], t, table, tensors[2]), expected)


@pytest.mark.parametrize("shape", [(3, 4, 6, 10), (3, 5, 3, 3)], ids=["rows", "general"])
def test_q_sample_outside_the_table_gives_nan(shape, emulated):
    x0, y, noise = latents(shape, "x0", "y", "noise")
    table = Schedule(steps=5).table()
    for t in ([0, 5, 4], [-1, 0, 2**40]):
        ours = q_sample(emulated, x0, y, torch.tensor(t), table, noise)
        inside = torch.tensor([0 <= i < 5 for i in t])
        assert torch.equal(ours.isfinite().flatten(1).all(1), inside)
        assert torch.equal(ours.isnan().flatten(1).all(1), ~inside)


@pytest.mark.parametrize("table_dtype", DTYPES, ids=name_of)
def test_q_sample_with_a_table_of_another_dtype(table_dtype, emulated):
    x0, y, noise = (x.bfloat16() for x in latents((2, 4, 6, 10), "x0", "y", "noise"))
    table, t = Schedule(steps=5).table().to(table_dtype), torch.tensor([2, 4])
    ours = q_sample(emulated, x0, y, t, table, noise)
    row = table.double()[t].view(-1, 8, 1, 1, 1)
    exact = x0.double() + row[:, columns.ETA] * (y.double() - x0.double())
    exact = exact + row[:, columns.KAPPA_SQRT_ETA] * noise.double()
    assert_close("x_t", ours, exact, torch.finfo(torch.bfloat16).eps / 2)
