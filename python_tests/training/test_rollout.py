"""The objective with rollout: which x_t and t a network sees, and the losses."""

from types import SimpleNamespace

import pytest
import torch

from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import SpaceToDepth, SpaceToDepthConfig
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.interfaces import Batch, Draws, Parts
from resshift_fast.training.rollout import Rollout, loss_between

SCHEDULE = Schedule(steps=3, kappa=0.3)


def _rollout(predict=None, **changes):
    """The objective with a network that predicts zero, unless given."""
    spec = SimpleNamespace(prediction_type="residual", scale=4, clamp_x0=True, schedule=SCHEDULE)
    stage = SpaceToDepth(SpaceToDepthConfig())
    predict = predict or (lambda x_t, t, low, mask: torch.zeros_like(x_t))
    parts = Parts(spec, stage, SCHEDULE.table("cpu"), predict, torch.no_grad, torch.device("cpu"), None)
    return Rollout(TrainConfig(data="", run="", **changes), parts)


def test_the_first_step_of_the_chain_does_not_depend_on_x0():
    objective = _rollout()
    y, noise = torch.rand(1, 48, 4, 4), torch.randn(1, 48, 4, 4)

    def x_t(value, t):
        return objective.chain.x_t(torch.full_like(y, value), y, torch.tensor([t]), noise)

    assert torch.equal(x_t(-1.0, 2), x_t(1.0, 2))
    assert not torch.equal(x_t(-1.0, 1), x_t(1.0, 1))


def test_rollout_shows_the_network_its_own_estimate():
    seen = []

    def predict(x_t, t, low, mask):
        seen.append((x_t, t))
        return torch.zeros_like(x_t)

    objective = _rollout(predict, rollout=1.0, first_step_weight=0.0)
    objective(Batch(torch.ones(2, 3, 64, 64), torch.zeros(2, 3, 16, 16)), Draws(0, 0, range(2)))
    assert len(seen) == 2 and seen[0][1].tolist() == [2, 2]
    # This network's estimate is y = 0, so x_t may not depend on the true x_0 = 1.
    assert abs(float(seen[1][0].mean())) < 0.05


def test_the_share_of_the_first_step_is_as_configured():
    t = _rollout(first_step_weight=0.7).chain.draw_t(Draws(0, 0, range(4000)))
    shares = torch.bincount(t, minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.15, 0.15, 0.7], abs=0.03)


@pytest.mark.parametrize(
    ("kind", "expected", "none"),
    [("l1", 1.5, 0.0), ("mse", 2.5, 0.0), ("charbonnier", 1.5, 0.0), ("psnr", 3.9811, -30.0)],
)
def test_losses_have_known_values(kind, expected, none):
    values = loss_between(torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([[0.0, 4.0], [5.0, 5.0]]), kind)
    assert values.tolist() == pytest.approx([expected, none], abs=2e-3)


@pytest.mark.parametrize("kind", ["l1", "mse", "charbonnier", "psnr"])
def test_a_loss_of_some_elements_is_that_of_them_alone(kind):
    generator = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 3, 3, 4, 5, generator=generator)
    where = torch.rand(3, 1, 4, 5, generator=generator) < 0.3
    where[2] = False
    found = loss_between(torch.where(where, prediction, 1e4), target, kind, where)
    for one in range(2):
        chosen = where[one].expand_as(target[one])
        alone = loss_between(prediction[one][chosen][None], target[one][chosen][None], kind)
        torch.testing.assert_close(found[one], alone[0])
    assert found[2] == (-30 if kind == "psnr" else 0)


def test_draws_belong_to_a_sample_whatever_the_division_of_the_batch():
    def values(draws):
        return [draws.normal(2, 3), draws.uniform(), draws.integers(0, 1000, 2)], draws.of_batch()

    whole, shared = values(Draws(3, 5, range(4)))
    for indices in ([0, 1], [2, 3], [3]):
        part, also_shared = values(Draws(3, 5, indices))
        assert also_shared == shared
        assert all(torch.equal(mine, full[indices]) for mine, full in zip(part, whole, strict=True))
    others = [Draws(4, 5, range(4)), Draws(3, 6, range(4)), Draws(3, 5, range(4, 8)), Draws(3, 5, range(4), stream=1)]
    assert all(not torch.equal(draws.normal(2, 3), whole[0]) for draws in others)


def test_draws_have_the_moments_of_their_distributions():
    draws = Draws(0, 0, range(2000))
    normal, uniform, integers = draws.normal(8), draws.uniform(8), draws.integers(3, 5, 8)
    assert float(normal.mean()) == pytest.approx(0.0, abs=0.03) and float(normal.std()) == pytest.approx(1.0, abs=0.03)
    assert (
        float(uniform.mean()) == pytest.approx(0.5, abs=0.01) and 0 <= float(uniform.min()) < float(uniform.max()) < 1
    )
    assert integers.unique().tolist() == [3, 4] and float(integers.float().mean()) == pytest.approx(3.5, abs=0.02)
