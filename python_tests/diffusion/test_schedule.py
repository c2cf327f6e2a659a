"""The schedule against the official arrays, Bayes' rule and its own definition; invalid values."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from comparison import assert_close
from golden_data import array, arrays, document
from hypothesis import given
from hypothesis import strategies as st

from resshift_fast import ops
from resshift_fast.diffusion import coefficients as columns
from resshift_fast.diffusion.coefficients import PREDICTION_TYPES
from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.ops.residual_shift import x0_from_prediction

OFFICIAL = {
    "realsr": ("diffusion_realsr.npz", Schedule(steps=4, min_noise_level=0.2)),
    "realsr_v1": ("diffusion_realsr_v1.npz", Schedule(steps=15, min_noise_level=0.04)),
}
schedules = st.builds(
    Schedule,
    steps=st.integers(2, 60),
    kappa=st.floats(0.1, 40),
    power=st.floats(0.1, 4),
    min_noise_level=st.floats(0.01, 0.5),
    etas_end=st.floats(0.6, 0.999),
)


def parse(key: str) -> Schedule:
    """The schedule that a key of sqrt_etas.json describes."""
    fields = dict(item.split("=") for item in key.split(","))
    return Schedule(steps=int(fields.pop("steps")), **{name: float(value) for name, value in fields.items()})


@pytest.fixture(params=OFFICIAL)
def case(request):
    """Schedule, official results and their inputs; row t of each belongs to step t."""
    filename, schedule = OFFICIAL[request.param]
    shape = (schedule.steps, 3, 8, 8)
    inputs = {name: array(f"diffusion.{name}", *shape) for name in ("x0", "y", "xt", "noise")}
    return schedule, arrays(filename), inputs


@pytest.mark.parametrize("key", document("sqrt_etas.json"))
def test_sqrt_etas(key):
    ours = parse(key).sqrt_etas_all
    np.testing.assert_allclose(ours, document("sqrt_etas.json")[key], rtol=1e-12)


def test_forward_process_matches_the_official_arrays(case):
    schedule, official, given = case
    table, steps = schedule.table(), torch.arange(schedule.steps)
    x0, y, noise = given["x0"], given["y"], given["noise"]
    assert_close("q_sample", ops.q_sample(x0, y, steps, table, noise), official["q_sample"], 1e-6)
    mean = ops.q_sample(x0, y, steps, table, torch.zeros_like(noise))
    assert_close("q_mean", mean, official["q_mean"], 1e-6)
    assert_close("q_variance", table[:, columns.KAPPA_SQRT_ETA] ** 2, official["q_variance"], 1e-6)
    scaled = given["xt"] * table[:, columns.INPUT_SCALE].view(-1, 1, 1, 1)
    assert_close("scaled_input", scaled, official["scaled_input"], 1e-6)
    prior, first_input = ops.prior_sample(y, table[-1], torch.zeros(schedule.steps, dtype=torch.int64), noise=noise)
    assert_close("prior", prior, official["prior"], 1e-6)
    assert_close("prior's input", first_input, prior / math.sqrt(schedule.kappa**2 * schedule.etas[-1] + 1), 1e-6)


def test_posterior_matches_the_official_arrays(case):
    schedule, official, given = case
    seed, step = torch.zeros(1, dtype=torch.int64), torch.tensor(1)
    for t, row in enumerate(schedule.table()):
        x_t, x0, y, noise = (given[name][t : t + 1] for name in ("xt", "x0", "y", "noise"))
        mean, _ = ops.posterior_step(x_t, x0, y, row, seed, step, noise=torch.zeros_like(noise))
        assert_close(f"posterior_mean at {t}", mean[0], official["posterior_mean"][t], 1e-6)
        sample, _ = ops.posterior_step(x_t, x0, y, row, seed, step, noise=noise)
        expected = official["posterior_mean"][t] + official["posterior_variance"][t].sqrt() * noise[0] * (t > 0)
        assert_close(f"posterior sample at {t}", sample[0], expected, 1e-6)
    assert_close("posterior_variance", schedule.posterior_variance, official["posterior_variance"], 1e-6)
    log_variance = schedule.posterior_log_variance_clipped
    assert_close("posterior_log_variance", log_variance, official["posterior_log_variance_clipped"], 1e-6)


def test_loss_weights_match_the_official_array(case):
    schedule, official, _ = case
    np.testing.assert_allclose(schedule.loss_weights("x0"), official["weight_loss_mse"], rtol=1e-12)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_loss_weights_convert_a_prediction_error_to_x0(prediction_type):
    schedule = Schedule(steps=6, kappa=1.7)
    rows = torch.from_numpy(schedule.coefficients)
    x_t, prediction, y = (array(f"schedule.{name}", 1, 2, 3, 5).double() for name in ("x_t", "prediction", "y"))
    for t, row in enumerate(rows):
        x0 = x0_from_prediction(x_t, prediction, y, row, prediction_type)
        moved = x0_from_prediction(x_t, prediction + 0.5, y, row, prediction_type)
        error_of_x0 = ((moved - x0) / 0.5).square().mean().item()
        expected = schedule.loss_weights("x0")[t] * error_of_x0
        assert schedule.loss_weights(prediction_type)[t] == pytest.approx(expected, rel=1e-10)


@given(schedules)
def test_etas_rise_between_their_ends(schedule):
    first, last = min(schedule.min_noise_level / schedule.kappa, schedule.min_noise_level), schedule.etas_end
    assert np.all(np.diff(schedule.etas) >= 0)
    assert schedule.sqrt_etas_all[0] == pytest.approx(first)
    assert schedule.sqrt_etas_all[-1] == pytest.approx(last)
    assert schedule.alphas.sum() == pytest.approx(last**2)
    assert schedule.num_steps == schedule.steps


@given(schedules, st.integers(1, 59), st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3))
def test_posterior_follows_from_bayes_rule(schedule, t, x_t, x0, y):
    # x_{t−1} ~ N(x0 + η_{t−1}(y − x0), κ²η_{t−1}) is observed through x_t = x_{t−1} + α_t(y − x0) + κ√α_t ε.
    t = 1 + t % (schedule.steps - 1)
    previous, alpha, kappa = schedule.etas[t - 1], schedule.alphas[t], schedule.kappa
    if alpha < 1e-12:  # a large exponent makes neighbouring steps equal in float64
        return
    precision = 1 / (kappa**2 * previous) + 1 / (kappa**2 * alpha)
    weighted = (x0 + previous * (y - x0)) / (kappa**2 * previous) + (x_t - alpha * (y - x0)) / (kappa**2 * alpha)
    row = schedule.coefficients[t]
    assert row[columns.NOISE_STD] ** 2 == pytest.approx(1 / precision, rel=1e-6)
    mean = row[columns.MEAN_X_T] * x_t + row[columns.MEAN_X0] * x0
    assert mean == pytest.approx(weighted / precision, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "steps, respacing, kept",
    [
        (4, None, [0, 1, 2, 3]),
        (4, 4, [0, 1, 2, 3]),
        (4, 3, [0, 1, 2]),
        (4, 2, [0, 2]),
        (4, 1, [0]),
        (15, 4, [0, 3, 7, 11]),
        (15, 5, [0, 3, 6, 9, 12]),
        (50, 7, [0, 7, 14, 21, 28, 35, 42]),
    ],
)
def test_respacing_keeps_the_official_indices(steps, respacing, kept):
    whole, schedule = Schedule(steps=steps), Schedule(steps=steps, respacing=respacing)
    assert schedule.timesteps.tolist() == kept
    assert schedule.num_steps == len(kept)
    np.testing.assert_array_equal(schedule.etas, whole.etas[kept])
    np.testing.assert_array_equal(schedule.alphas, np.diff(whole.etas[kept], prepend=0))
    assert schedule.table().shape == (len(kept), columns.NUM_COEFFICIENTS)


@given(st.integers(2, 1000), st.data())
def test_respaced_steps_are_distinct_and_in_range(steps, data):
    respacing = data.draw(st.integers(1, steps))
    kept = Schedule(steps=steps, respacing=respacing).timesteps
    assert kept[0] == 0 and kept[-1] < steps and len(kept) == respacing
    assert np.all(np.diff(kept) > 0)


def test_a_single_step_goes_straight_to_x0():
    schedule = Schedule(steps=15, respacing=1)
    row = schedule.coefficients[0]
    assert (row[columns.MEAN_X_T], row[columns.MEAN_X0], row[columns.NOISE_STD]) == (0, 1, 0)
    assert schedule.posterior_log_variance_clipped.tolist() == [-math.inf]
    with pytest.raises(ValueError, match="loss_weights: .* one step.* at least 2"):
        schedule.loss_weights()


@pytest.mark.parametrize("respacing, kept", [(None, 6), (3, 4)], ids=["all", "respaced"])
def test_a_student_executes_the_last_kept_step(respacing, kept):
    teacher = Schedule(steps=7, kappa=1.3, respacing=respacing)
    schedule = Schedule(steps=7, kappa=1.3, respacing=respacing, one_step=True)
    assert schedule.timesteps.tolist() == [kept] and schedule.num_steps == 1
    row, last = schedule.coefficients[0], teacher.coefficients[-1]
    same = [columns.ETA, columns.ONE_MINUS_ETA, columns.KAPPA_SQRT_ETA, columns.INPUT_SCALE]
    np.testing.assert_array_equal(row[same], last[same])
    assert (row[columns.MEAN_X_T], row[columns.MEAN_X0], row[columns.NOISE_STD]) == (0.0, 1.0, 0.0)


def test_coefficient_rows():
    schedule = Schedule(steps=5, kappa=1.3, respacing=3)
    eta, previous = schedule.etas, np.append(0, schedule.etas[:-1])
    scale = 1 / np.sqrt(1.3**2 * eta + 1)
    expected = {
        columns.ETA: eta,
        columns.ONE_MINUS_ETA: 1 - eta,
        columns.KAPPA_SQRT_ETA: 1.3 * np.sqrt(eta),
        columns.MEAN_X_T: previous / eta,
        columns.MEAN_X0: 1 - previous / eta,
        columns.NOISE_STD: 1.3 * np.sqrt(previous * (1 - previous / eta)),
        columns.INPUT_SCALE: scale,
        columns.NEXT_INPUT_SCALE: np.append(1, scale[:-1]),
    }
    assert sorted(expected) == list(range(columns.NUM_COEFFICIENTS))
    for column, values in expected.items():
        np.testing.assert_allclose(schedule.coefficients[:, column], values, rtol=1e-12, atol=1e-15)
    assert schedule.table().dtype == torch.float32
    np.testing.assert_array_equal(schedule.table().numpy(), schedule.coefficients.astype(np.float32))
    assert schedule.table("meta").device.type == "meta"


def test_schedules_are_immutable_and_hashable():
    assert Schedule() == Schedule(steps=4, kappa=2.0) and hash(Schedule()) == hash(Schedule())
    with pytest.raises(dataclasses.FrozenInstanceError):
        Schedule().steps = 5


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"steps": 1}, "steps is 1, expected at least 2"),
        ({"kappa": 0.0}, "kappa is 0.0, expected a positive"),
        ({"kappa": -1.0}, "kappa is -1.0, expected a positive"),
        ({"kappa": math.nan}, "kappa is nan, expected a positive"),
        ({"kappa": math.inf}, "kappa is inf, expected a positive"),
        ({"power": 0.0}, "power is 0.0, expected a positive"),
        ({"power": math.inf}, "power is inf, expected a positive"),
        ({"min_noise_level": -0.1}, "min_noise_level is -0.1, expected a positive"),
        ({"etas_end": 1.01}, r"etas_end is 1.01, expected a value in \(0.1, 1\]"),
        ({"etas_end": 0.1}, r"etas_end is 0.1, expected a value in \(0.1, 1\]"),
        ({"etas_end": math.nan}, "etas_end is nan"),
        ({"respacing": 0}, "respacing is 0, expected 1 to steps=4"),
        ({"respacing": 5}, "respacing is 5, expected 1 to steps=4"),
    ],
    ids=str,
)
def test_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Schedule(**fields)


def test_refuses_an_unknown_prediction_type():
    with pytest.raises(ValueError, match="loss_weights: prediction_type is 'x_0', expected one of x0, epsilon"):
        Schedule().loss_weights("x_0")
