"""Objectives with auxiliary networks and with values of their own for the log."""

import pytest
import torch
from torch import nn
from training_runs import make_config, make_trainer, random_batch, read_log

from resshift_fast.training import choices
from resshift_fast.training.interfaces import Auxiliary, Loss, Reporting


class _Rival:
    """An objective whose auxiliary network predicts, and is trained to, the error of the denoiser."""

    columns = ("rival",)

    def __init__(self, config, parts):
        self.parts, self.networks = parts, nn.Conv2d(48, 1, 1)
        self.optimizer = torch.optim.SGD(self.networks.parameters(), lr=0.5 * config.lr, momentum=0.9)
        self.start, self.steps = config.objective_options.get("start", 0), 2
        self.drawn, self.sum, self.count = [], 0.0, 0

    def error(self, batch, draws):
        t = draws.integers(0, len(self.parts.table))
        x0 = self.parts.first_stage.encode(batch.high)
        return t, self.parts.predict(x0, t, batch.low, None) - x0

    def auxiliary_steps(self, step):
        return self.steps if step >= self.start else 0

    def auxiliary_loss(self, batch, draws):
        with torch.no_grad():
            t, error = self.error(batch, draws)
        self.drawn.append(t.tolist())
        loss = (self.networks(error) - error.square().mean(1, keepdim=True)).square().mean((1, 2, 3))
        self.sum, self.count = self.sum + float(loss.detach().sum()), self.count + len(loss)
        return loss

    def __call__(self, batch, draws):
        assert not any(parameter.requires_grad for parameter in self.networks.parameters())
        _, error = self.error(batch, draws)
        return Loss(error.square().mean((1, 2, 3)) + self.networks(error).square().mean((1, 2, 3)))

    def report(self, total):
        value, count = total(torch.tensor([self.sum, float(self.count)])).tolist()
        self.sum, self.count = 0.0, 0
        return {"rival": value / max(1.0, count)}


@pytest.fixture
def make(photos, monkeypatch):
    monkeypatch.setitem(choices.OBJECTIVES, "rival", _Rival)

    def build(run, **changes):
        return make_trainer(make_config(photos, run, objective="rival", **changes))

    return build


def _state(trainer):
    networks = trainer.network.state_dict() | {
        f"rival.{k}": v for k, v in trainer.objective.networks.named_parameters()
    }
    return {name: value.clone() for name, value in networks.items()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_training_with_auxiliary_networks_resumes_bit_for_bit(make, tmp_path, precision):
    whole = make(tmp_path / "whole", precision=precision)
    assert isinstance(whole.objective, Auxiliary) and isinstance(whole.objective, Reporting)
    assert whole.run()
    make(tmp_path / "parts", precision=precision).run(stop_after=3)
    resumed = make(tmp_path / "parts", precision=precision)
    assert resumed.run()
    expected = _state(whole)
    assert all(torch.equal(value, expected[name]) for name, value in _state(resumed).items())
    logs = [read_log(tmp_path / name) for name in ("whole", "parts")]
    rows = [[(row["step"], row["loss"], row["rival"]) for row in log] for log in logs]
    assert rows[0] == rows[1] and len(rows[0]) == 6 and all(float(row[2]) > 0 for row in rows[0])
    assert not (tmp_path / "whole" / "timesteps.csv").read_text().count("\n") > 1  # the losses have no timesteps


def test_both_kinds_of_steps_are_taken_with_their_own_draws_and_learning_rates(make, tmp_path):
    trainer = make(tmp_path, objective_options={"start": 1}, warmup=4)
    objective, batch = trainer.objective, random_batch()
    before = _state(trainer)
    trainer.train_step(batch)
    after = _state(trainer)
    assert not objective.drawn
    changed = {name.startswith("rival.") for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {False}
    trainer.train_step(batch)
    again = _state(trainer)
    assert any(not torch.equal(again[name], after[name]) for name in after if name.startswith("rival."))
    assert len(objective.drawn) == 2
    assert objective.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * trainer.config.lr * 2 / 4)
    # Gradients of the first loss do not reach the auxiliary networks, nor those of the second the trained one.
    gradients = [parameter.grad.clone() for parameter in objective.networks.parameters()]
    trainer.loss(batch, 0).by_sample.mean().backward()
    assert all(torch.equal(one.grad, old) for one, old in zip(objective.networks.parameters(), gradients, strict=True))


def test_accumulation_keeps_the_gradients_of_auxiliary_networks(make, tmp_path):
    batch, found = random_batch(), []
    for accumulate in (1, 2):
        torch.manual_seed(1)
        trainer = make(tmp_path / str(accumulate), accumulate=accumulate, grad_clip=0.0)
        trainer.train_step(batch)
        found.append(torch.cat([parameter.grad.flatten() for parameter in trainer.objective.networks.parameters()]))
    assert float((found[0] - found[1]).abs().max()) <= 1e-5 * float(found[0].abs().max())


def test_diverged_auxiliary_networks_are_named(make, tmp_path):
    trainer = make(tmp_path)
    trainer.objective.networks.weight.data.fill_(float("inf"))
    with pytest.raises(FloatingPointError, match="gradient of the auxiliary networks became nan at step 0; run"):
        trainer.train_step(random_batch())
