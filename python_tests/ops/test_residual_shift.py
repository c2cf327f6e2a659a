"""posterior_step, prior_sample and q_sample against the schedule's formulas in float64; noise; invalid arguments."""

from functools import partial

import pytest
import torch
from comparison import DTYPES, LAYOUTS, LargestTensor, assert_close, check_operator, layouts, name_of
from golden_data import array
from hypothesis import given, settings
from hypothesis import strategies as st
from pairwise import BACKENDS, once, pairwise

from resshift_fast.diffusion.coefficients import PREDICTION_TYPES
from resshift_fast.diffusion.noise import noise_field
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.ops import posterior_step, prior_sample, q_sample
from resshift_fast.ops.residual_shift import posterior_step_reference, prior_sample_reference, q_sample_reference

pytestmark = pytest.mark.usefixtures("poisoned_empty", "backend")

SCHEDULE = Schedule(steps=5, kappa=1.7, power=0.6, respacing=4)
SHAPE = (2, 5, 7, 3)
SEED, STEP = torch.tensor([11, 2**62 + 5]), torch.tensor(2)


def eta(t: int) -> float:
    """η of an executed step, and 0 before the first."""
    return float(SCHEDULE.sqrt_etas_all[SCHEDULE.timesteps[t]] ** 2) if t >= 0 else 0.0


def row_of(t: int, dtype: torch.dtype) -> torch.Tensor:
    """A step's coefficients: float32 as in the schedule's table, float64 for float64 latents."""
    return torch.from_numpy(SCHEDULE.coefficients[t]).to(dtype)


def next_input(x, step_eta, lq):
    """The denoiser's input for a latent at η."""
    scaled = x / (SCHEDULE.kappa**2 * step_eta + 1) ** 0.5
    return scaled if lq is None else torch.cat([scaled, lq], dim=1)


def exact_posterior(x_t, prediction, y, noise=None, lq=None, *, t, prediction_type="x0", clamp_x0=False):
    """One reverse step, computed from η only."""
    now, before, kappa = eta(t), eta(t - 1), SCHEDULE.kappa
    if prediction_type == "x0":
        x0 = prediction
    elif prediction_type == "residual":
        x0 = y - prediction
    else:
        # x_t = (1 − η) x_0 + η y + noise, solved for x_0.
        noise_in_x_t = kappa * now**0.5 * prediction if prediction_type == "epsilon" else prediction
        x0 = (x_t - now * y - noise_in_x_t) / (1 - now)
    if clamp_x0:
        x0 = torch.minimum(torch.maximum(x0, torch.tensor(-1.0)), torch.tensor(1.0))
    x_prev = before / now * x_t + (now - before) / now * x0
    if noise is not None and t > 0:
        x_prev = x_prev + kappa * (before * (now - before) / now) ** 0.5 * noise
    return x_prev, next_input(x_prev, before, lq)


def our_posterior(x_t, prediction, y, noise=None, lq=None, *, t, **options):
    return posterior_step(x_t, prediction, y, row_of(t, x_t.dtype), noise=noise, lq=lq, last=noise is None, **options)


def plain_posterior(x_t, prediction, y, noise=None, lq=None, *, t, prediction_type="x0", clamp_x0=False):
    row = row_of(t, x_t.dtype)
    options = (None, prediction_type, clamp_x0, noise, lq, x_t.dtype, noise is None)
    return posterior_step_reference(x_t, prediction, y, row, SEED, STEP, *options)


def inputs(*names):
    """Random latents with means far from 0; "lq" has two channels."""
    shapes = {"lq": (SHAPE[0], 2, *SHAPE[2:])}
    offsets = {"noise": 0.0, "prediction": -0.4}
    return {n: array(f"shift.{n}", *shapes.get(n, SHAPE)) + offsets.get(n, -2.3) for n in names}


@pairwise(
    strength=3,
    t=range(SCHEDULE.num_steps),
    prediction_type=PREDICTION_TYPES,
    clamp_x0={"free": False, "clamped": True},
    dtype=[torch.float32, torch.float64],
    backend=BACKENDS,
)
def test_posterior_step_matches_float64(t, prediction_type, clamp_x0, dtype):
    tensors = inputs("x_t", "prediction", "y", "noise", "lq") if t else inputs("x_t", "prediction", "y")
    options = {"t": t, "prediction_type": prediction_type, "clamp_x0": clamp_x0}
    functions = (partial(f, **options) for f in (our_posterior, plain_posterior, exact_posterior))
    check_operator(*functions, tensors, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=name_of)
@pytest.mark.parametrize("with_lq", [False, True], ids=["alone", "with-lq"])
def test_prior_sample_matches_float64(with_lq, dtype):
    t = SCHEDULE.num_steps - 1

    def exact(y, noise, lq=None):
        x_t = y + SCHEDULE.kappa * eta(t) ** 0.5 * noise
        return x_t, next_input(x_t, eta(t), lq)

    def ours(y, noise, lq=None):
        return prior_sample(y, row_of(t, y.dtype), noise=noise, lq=lq)

    def plain(y, noise, lq=None):
        return prior_sample_reference(y, row_of(t, y.dtype), SEED, None, noise, lq, y.dtype)

    check_operator(ours, plain, exact, inputs("y", "noise", *(["lq"] if with_lq else [])), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("steps", [(0, 3), (2, 2), (1, 0)], ids=str)
def test_q_sample_matches_float64(steps, dtype):
    def exact(x0, y, noise):
        etas = torch.tensor([eta(t) for t in steps], dtype=torch.float64).view(-1, 1, 1, 1)
        return (1 - etas) * x0 + etas * y + SCHEDULE.kappa * etas.sqrt() * noise

    # Coefficients of 16-bit latents are float32.
    table = torch.from_numpy(SCHEDULE.coefficients).to(torch.float64 if dtype == torch.float64 else torch.float32)
    ours = partial(q_sample, t=torch.tensor(steps), table=table)
    plain = partial(q_sample_reference, t=torch.tensor(steps), table=table)
    check_operator(ours, plain, exact, inputs("x0", "y", "noise"), dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout):
    options = {"t": 2, "prediction_type": "epsilon"}
    functions = (partial(f, **options) for f in (our_posterior, plain_posterior, exact_posterior))
    tensors = {n: layouts(x)[layout] for n, x in inputs("x_t", "prediction", "y", "noise", "lq").items()}
    check_operator(*functions, tensors, torch.float32)
    tensors = {n: layouts(x)[layout] for n, x in inputs("x0", "y", "noise").items()}
    options = {"t": torch.tensor([1, 3]), "table": SCHEDULE.table()}
    ours = q_sample(**tensors, **options)
    assert_close("q_sample", ours, q_sample(**{n: x.contiguous() for n, x in tensors.items()}, **options), 1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=name_of)
def test_16_bit_prediction_and_next_input(dtype):
    tensors = inputs("x_t", "prediction", "y", "noise", "lq")
    tensors["prediction"], tensors["lq"] = tensors["prediction"].to(dtype), tensors["lq"].to(dtype)
    x_prev, following = our_posterior(**tensors, t=2, next_dtype=dtype)
    assert (x_prev.dtype, following.dtype) == (torch.float32, dtype)
    expected, expected_next = exact_posterior(**{n: x.double() for n, x in tensors.items()}, t=2)
    assert_close("x_prev", x_prev, expected, 1e-6)  # only the prediction itself is rounded
    # Rounded once: the latent after its scaling, lq not again.
    assert_close("next input", following[:, :5], expected_next[:, :5], torch.finfo(dtype).eps / 4)
    assert torch.equal(following[:, 5:], tensors["lq"])
    y, noise, lq = (tensors[n] for n in ("y", "noise", "lq"))
    x_t, first = prior_sample(y, row_of(3, torch.float32), SEED, noise=noise, lq=lq, next_dtype=dtype)
    assert (x_t.dtype, first.dtype, tuple(first.shape)) == (torch.float32, dtype, (2, 7, 7, 3))


@settings(max_examples=25)
@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    st.integers(1, 15),
    st.lists(st.integers(0, 5000), min_size=6, max_size=6),
)
def test_noise_comes_from_the_field(seeds, step, places):
    batch, shape = len(seeds), (len(seeds), 5, 4, 3)
    seed, origin = torch.tensor(seeds), torch.tensor(places[: 2 * batch]).view(batch, 2)
    x_t, prediction, y = (array(f"field.{name}", *shape) for name in ("x_t", "prediction", "y"))
    row = SCHEDULE.table()[2]
    noise = noise_field(seed, torch.tensor(step), *shape[1:], origin=origin)
    ours = posterior_step(x_t, prediction, y, row, seed, torch.tensor(step), origin=origin)
    assert_close("x_prev", ours[0], posterior_step(x_t, prediction, y, row, seed, STEP, noise=noise)[0], 1e-6)
    noise = noise_field(seed, torch.tensor(0), *shape[1:], origin=origin)
    ours = prior_sample(y, row, seed, origin=origin)
    assert_close("x_T", ours[0], prior_sample(y, row, seed, noise=noise)[0], 1e-6)


def test_the_last_step_adds_no_noise():
    tensors = inputs("x_t", "prediction", "y")
    row = row_of(0, torch.float32)
    ours = [
        posterior_step(**tensors, coefficients=row, seed=SEED, step=STEP, **options)[0]
        for options in ({"last": True}, {"last": False}, {"noise": inputs("noise")["noise"]})
    ]
    for x_prev in ours:
        assert torch.equal(x_prev, tensors["prediction"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=name_of)
@pytest.mark.parametrize("shape", [SHAPE, (2, 3, 6, 10)], ids=str)
def test_the_next_input_can_be_left_out(shape, dtype):
    tensors = {name: array(f"alone.{name}", *shape) - 2.3 for name in ("x_t", "prediction", "y", "noise")}
    tensors["prediction"] = tensors["prediction"].to(dtype, memory_format=torch.channels_last)
    row = row_of(2, torch.float32)
    for options in ({}, {"last": True}, {"prediction_type": "residual"}):
        both = posterior_step(**tensors, coefficients=row, lq=tensors["y"], **options)
        with LargestTensor() as largest:
            alone = posterior_step(**tensors, coefficients=row, lq=tensors["y"], next_input=False, **options)
        assert alone[0].equal(both[0]) and alone[1] is None
        assert largest.bytes <= both[0].untyped_storage().nbytes()
    y, noise = tensors["y"], tensors["noise"]
    alone = prior_sample(y, row, noise=noise, next_input=False)
    assert alone[0].equal(prior_sample(y, row, noise=noise)[0]) and alone[1] is None


def test_the_gradient_without_a_next_input():
    def loss(**options):
        tensors = {name: x.requires_grad_() for name, x in inputs("x_t", "prediction", "y").items()}
        x_prev, _ = posterior_step(**tensors, coefficients=row_of(2, torch.float32), last=True, **options)
        return torch.autograd.grad(x_prev.square().sum(), tensors["x_t"])[0]

    assert loss(next_input=False).equal(loss())


def test_inputs_are_not_changed():
    tensors = inputs("x_t", "prediction", "y", "noise", "lq")
    copies = {name: x.clone() for name, x in tensors.items()}
    our_posterior(**tensors, t=2, clamp_x0=True)
    prior_sample(tensors["y"], row_of(3, torch.float32), SEED, noise=tensors["noise"])
    assert all(torch.equal(tensors[name], copies[name]) for name in tensors)


X, ROW = torch.ones(SHAPE), torch.ones(8)
GOOD = {"x_t": X, "prediction": X, "y": X, "coefficients": ROW, "seed": SEED, "step": STEP}
COMMON = [  # a change to the arguments, the error, its message
    ({"coefficients": torch.ones(5, 8)}, ValueError, r"coefficients has shape \(5, 8\), expected \(8,\) one row"),
    ({"coefficients": ROW.half()}, TypeError, "coefficients has dtype torch.float16"),
    ({"coefficients": ROW.to("meta")}, ValueError, "coefficients is on meta"),
    ({"seed": 7}, TypeError, "seed must be an int64 tensor, got int"),
    ({"seed": SEED.int()}, TypeError, "seed must be an int64 tensor, got torch.int32"),
    ({"seed": SEED[:1]}, ValueError, r"seed has shape \(1,\), expected \(2,\)"),
    ({"seed": SEED.to("meta")}, ValueError, "seed is on meta"),
    ({"seed": None}, ValueError, "seed is None, but the noise field needs it; pass a seed or the noise"),
    ({"origin": torch.zeros(2, 2)}, TypeError, "origin must be an int64 tensor, got torch.float32"),
    ({"origin": SEED}, ValueError, r"origin has shape \(2,\), expected \(2, 2\)"),
    ({"noise": X[:1]}, ValueError, r"noise has shape \(1, 5, 7, 3\), expected \(2, 5, 7, 3\) like the latent"),
    ({"noise": X.double()}, TypeError, "noise has dtype torch.float64, expected the latent's torch.float32"),
    ({"noise": X.to("meta")}, ValueError, "noise is on meta"),
    ({"lq": X[:, :, :6]}, ValueError, r"lq has shape \(2, 5, 6, 3\), expected \(2, C', 7, 3\)"),
    ({"lq": X[:1]}, ValueError, r"lq has shape \(1, 5, 7, 3\), expected \(2, C', 7, 3\)"),
    ({"lq": X.long()}, TypeError, "lq has dtype torch.int64"),
    ({"lq": X.to("meta")}, ValueError, "lq is on meta"),
]
POSTERIOR = [
    ({"x_t": X[0]}, ValueError, r"posterior_step: x_t must be \[B, C, H, W\]"),
    ({"x_t": X[:0]}, ValueError, "posterior_step: x_t is empty"),
    ({"x_t": X.half()}, TypeError, "x_t has dtype torch.float16, expected torch.float32"),
    ({"prediction": X[:, :3]}, ValueError, r"prediction has shape \(2, 3, 7, 3\), expected \(2, 5, 7, 3\) like x_t"),
    ({"prediction": X.long()}, TypeError, "prediction has dtype torch.int64"),
    ({"prediction": X.to("meta")}, ValueError, "prediction is on meta"),
    ({"y": X[..., :2]}, ValueError, r"y has shape \(2, 5, 7, 2\), expected \(2, 5, 7, 3\) like x_t"),
    ({"y": X.bfloat16()}, TypeError, "y has dtype torch.bfloat16, expected x_t's torch.float32"),
    ({"step": 2}, TypeError, "step must be an int64 tensor, got int"),
    ({"step": torch.tensor([2])}, ValueError, r"step has shape \(1,\), expected \(\)"),
    ({"step": STEP.to("meta")}, ValueError, "step is on meta"),
    ({"step": None}, ValueError, "step is None, but the noise field needs it; pass seed and step, or noise"),
    ({"prediction_type": "x_0"}, ValueError, "posterior_step: prediction_type is 'x_0', expected one of x0, epsilon"),
]


def message_only(value):
    return value if isinstance(value, str) else ""


@once
@pytest.mark.parametrize("change, error, message", POSTERIOR + COMMON, ids=message_only)
def test_posterior_step_refuses(change, error, message):
    with pytest.raises(error, match=message):
        posterior_step(**(GOOD | change))


PRIOR = [
    ({"y": X[0]}, ValueError, r"prior_sample: y must be \[B, C, H, W\]"),
    ({"y": X.bfloat16()}, TypeError, "prior_sample: y has dtype torch.bfloat16, expected torch.float32"),
]


@once
@pytest.mark.parametrize("change, error, message", PRIOR + COMMON, ids=message_only)
def test_prior_sample_refuses(change, error, message):
    with pytest.raises(error, match=message):
        prior_sample(**({"y": X, "coefficients": ROW, "seed": SEED} | change))


@once
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x0": X[0]}, ValueError, r"q_sample: x0 must be \[B, C, H, W\]"),
        ({"y": X[:1]}, ValueError, r"y has shape \(1, 5, 7, 3\), expected \(2, 5, 7, 3\) like x0"),
        ({"y": X.double()}, TypeError, "y has dtype torch.float64, expected x0's torch.float32"),
        ({"noise": X[:, :1]}, ValueError, r"noise has shape \(2, 1, 7, 3\)"),
        ({"noise": X.to("meta")}, ValueError, "noise is on meta"),
        ({"t": torch.tensor([0.0, 1.0])}, TypeError, "t must be an int64 tensor, got torch.float32"),
        ({"t": torch.tensor([0])}, ValueError, r"t has shape \(1,\), expected \(2,\)"),
        ({"t": torch.tensor([0, 1], device="meta")}, ValueError, "t is on meta"),
        ({"table": ROW}, ValueError, r"table has shape \(8,\), expected \(T, 8\)"),
        ({"table": ROW.half().expand(4, 8)}, TypeError, "table has dtype torch.float16"),
    ],
    ids=message_only,
)
def test_q_sample_refuses(change, error, message):
    good = {"x0": X, "y": X, "t": torch.tensor([0, 1]), "table": SCHEDULE.table(), "noise": X}
    with pytest.raises(error, match=message):
        q_sample(**(good | change))
