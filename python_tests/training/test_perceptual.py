"""The objective towards features, a teacher's pictures and a discriminator, against its formula."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from features_formula import formula, random_weights
from training_runs import make_config, make_spec, make_trainer, read_log

from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import SpaceToDepth, SpaceToDepthConfig
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.features import FeatureDistance
from resshift_fast.training.interfaces import Batch, Draws, Parts
from resshift_fast.training.perceptual import Options, Perceptual, from_config, grid_error
from resshift_fast.training.rollout import Rollout
from resshift_fast.training.texture import texture_error

STATE = random_weights()
ONE_STEP = Schedule(steps=4, kappa=0.25, one_step=True)


def _pictures(count, side, seed):
    return torch.rand(2, count, 3, side, side, generator=torch.Generator().manual_seed(seed)).mul(2).sub(1).unbind(0)


def _objective(predict=None, schedule=ONE_STEP, denoiser=None, **options):
    options = {"features": 0.1, "disc_channels": 16, "disc_layers": 1} | options
    spec = SimpleNamespace(
        prediction_type="residual", scale=4, clamp_x0=True, schedule=schedule, denoiser=denoiser or SimpleNamespace()
    )
    predict = predict or (lambda x_t, t, low, mask: torch.zeros_like(x_t))
    stage = SpaceToDepth(SpaceToDepthConfig())
    parts = Parts(spec, stage, schedule.table("cpu"), predict, torch.enable_grad, torch.device("cpu"), denoise=predict)
    features = FeatureDistance()
    features.load(STATE)
    torch.manual_seed(0)
    return Perceptual(TrainConfig(data="", run="", patch=64), parts, Options(**options), features)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_loss_is_the_formula(share):
    (image, high), (taught, _) = _pictures(2, 32, 1), _pictures(2, 32, 2)
    objective = _objective(pixel=0.7, texture=1.5, teacher_share=share)
    places = torch.tensor([[3, 5], [0, 7]])

    def square(pictures):
        return torch.stack([pictures[0, :, 3:28, 5:30], pictures[1, :, 0:25, 7:32]])

    def error(picture):
        pixels = (image.double() - picture.double()).abs().mean((1, 2, 3))
        texture = 1.5 * texture_error(image, picture).double()
        return 0.7 * pixels + texture + 0.1 * formula(square(image), square(picture), STATE)

    batch = Batch(high, torch.zeros(2, 3, 8, 8), taught=taught)
    expected = (1 - share) * error(high) + share * error(taught)
    torch.testing.assert_close(objective.by_sample(image, batch, places).double(), expected, rtol=1e-4, atol=0)
    without = objective.by_sample(image, Batch(high, batch.low), places)
    torch.testing.assert_close(without.double(), error(high), rtol=1e-4, atol=0)


def test_the_error_of_a_grid_is_that_of_a_periodic_offset_alone():
    image, truth = _pictures(2, 64, 4)
    means = torch.zeros(2, 3, 2, 2, 4, 4, dtype=torch.float64)
    for row in range(64):
        for column in range(64):
            error = (image - truth)[:, :, row, column].double() / 64
            means[:, :, row // 32, column // 32, row % 4, column % 4] += error
    expected = (means - means.mean((4, 5), keepdim=True)).abs().mean((1, 2, 3, 4, 5))
    torch.testing.assert_close(grid_error(image, truth).double(), expected, rtol=1e-4, atol=1e-7)
    grid = torch.zeros(4, 4)
    grid[0, 0] = 0.16
    assert grid_error(truth + 0.3 + grid.repeat(16, 16), truth).tolist() == pytest.approx([0.01875] * 2, rel=1e-3)
    weighted = _objective(pixel=0.0, features=0.1, grid=2.0)
    batch, places = Batch(truth, torch.zeros(2, 3, 16, 16)), torch.zeros(2, 2, dtype=torch.int64)
    difference = weighted.by_sample(image, batch, places) - _objective(pixel=0.0).by_sample(image, batch, places)
    torch.testing.assert_close(difference, 2 * grid_error(image, truth), rtol=1e-3, atol=1e-5)


def test_a_one_step_model_gets_y_plus_noise_and_its_channels_of_noise():
    seen = []

    def predict(x_t, t, low, mask, z):
        seen.append((x_t, t, z))
        return torch.full_like(x_t, 0.25)

    objective = _objective(predict, denoiser=SimpleNamespace(noise_channels=2))
    batch = Batch(torch.ones(3, 3, 64, 64), torch.full((3, 3, 16, 16), -0.5))
    image, t = objective.estimate(batch, Draws(0, 0, range(3)))
    # The residual y − x_0 is 0.25 and y is −0.5, whatever the true picture is.
    torch.testing.assert_close(image, torch.full_like(image, -0.75))
    ((x_t, seen_t, z),) = seen
    assert t.tolist() == seen_t.tolist() == [0, 0, 0] and z.shape == (3, 2, 16, 16)
    assert float(x_t.mean()) == pytest.approx(-0.5, abs=0.02) and float(x_t.std()) == pytest.approx(0.25, abs=0.02)


def test_of_an_inpainting_model_the_hole_alone_counts():
    seen = []

    def predict(x_t, t, low, mask):
        seen.append((low, mask))
        return torch.full_like(x_t, 0.25)

    high, _ = _pictures(2, 32, 5)
    mask = torch.full((2, 1, 32, 32), -1.0)
    mask[0, :, 4:20, 8:24] = mask[1, :, :2] = 1.0
    unknown = mask > 0
    batch = Batch(high, torch.where(unknown, 0.5, high), mask)
    objective = _objective(predict, features=0.0, pixel=1.0)
    objective.parts.spec.scale = 1
    image, _ = objective.estimate(batch, Draws(0, 0, range(2)))
    assert seen[0][0] is batch.low and seen[0][1] is mask
    torch.testing.assert_close(image, torch.where(unknown, 0.25, high))
    loss = objective.by_sample(image, batch, torch.zeros(2, 2, dtype=torch.int64))
    errors = (0.25 - high.double()).abs()
    expected = torch.stack([error[:, hole[0]].mean() for error, hole in zip(errors, unknown, strict=True)])
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="is an inpainting model, which rollout doesn't train"):
        Rollout(TrainConfig(data="", run=""), replace(objective.parts, spec=make_spec(needs_mask=True)))


def test_the_discriminator_waits_and_then_adds_its_term():
    scale = torch.ones((), requires_grad=True)
    objective = _objective(lambda x_t, t, low, mask: scale * x_t, adversarial=0.5, disc_start=3, disc_lead=2)
    high, _ = _pictures(2, 32, 3)
    batch = Batch(high, torch.zeros(2, 3, 8, 8))
    assert [objective.auxiliary_steps(step) for step in (0, 2, 3, 9)] == [0, 0, 1, 1]

    def parts(step):
        image, _ = objective.estimate(batch, Draws(0, step, range(2)))
        draws = Draws(0, step, range(2))
        loss = objective(batch, draws).by_sample
        return loss - objective.by_sample(image, batch, _places(objective, step)), objective.networks(image)

    before, _ = parts(4)
    assert before.abs().max() < 1e-6
    added, values = parts(5)
    torch.testing.assert_close(added, -0.5 * values.flatten(1).mean(1))
    objective(batch, Draws(0, 5, range(2))).by_sample.sum().backward()
    assert scale.grad is not None and torch.isfinite(scale.grad)

    scale.grad = None
    loss = objective.auxiliary_loss(batch, Draws(0, 5, range(2), stream=2))
    loss.sum().backward()
    assert loss.shape == (2,) and scale.grad is None
    assert all(one.grad is not None for one in objective.networks.parameters())
    report = objective.report(lambda sums: sums)
    assert set(report) == {"pixel_loss", "feature_loss", "generator", "discriminator"}


def _places(objective, step):
    """The squares of the features that the loss of a step draws, after the values of the chain."""
    draws, latent = Draws(0, step, range(2)), torch.zeros(2, 48, 8, 8)
    objective.chain.sample(Batch(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 8, 8)), latent, latent, draws)
    return draws.integers(0, 8, 2)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"pixel": 0.0, "features": 0.0}, "both 0"),
        ({"adversarial": -1.0}, "adversarial must be at least 0"),
        ({"teacher_share": 1.5}, "expected 0 to 1, got 1.5"),
        ({"disc_lr": 0.0}, "disc_lr must be above 0"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)


def test_missing_features_and_small_patches_are_refused():
    objective = _objective()
    with pytest.raises(ValueError, match="no distance was given"):
        Perceptual(TrainConfig(data="", run=""), objective.parts, Options())
    with pytest.raises(ValueError, match="needs patches of at least 96 pixels, got 64"):
        _objective(adversarial=1.0, disc_layers=5)


def test_a_training_chooses_its_weights_by_features(photos, tmp_path):
    torch.save(STATE, tmp_path / "weights.pth")
    options = {"feature_weights": str(tmp_path / "weights.pth"), "adversarial": 0.1, "disc_lead": 1}
    options |= {"disc_channels": 16, "disc_layers": 1}
    config = make_config(photos, tmp_path / "run", steps=2, objective="perceptual", objective_options=options)
    config = TrainConfig(**(vars(config) | {"val": str(photos), "val_every": 1, "val_limit": 1, "val_side": 64}))
    trainer = make_trainer(config, make_spec())
    assert isinstance(from_config(config, trainer.objective.parts).features, FeatureDistance)
    assert trainer.run()
    first, second = read_log(tmp_path / "run")
    gains = [
        sum(
            float(row[f"bicubic_features_{kind}"]) - float(row[f"val_features_{kind}"])
            for kind in ("clean", "degraded")
        )
        for row in (first, second)
    ]
    assert trainer.best_gain == pytest.approx(max(gains) / 2, abs=1e-3)
    assert float(second["generator"]) != 0 and float(first["discriminator"]) > 0 and not first["generator"]
