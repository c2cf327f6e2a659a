"""Settings: their ranges, defaults and overrides."""

import inspect
from dataclasses import MISSING, fields, replace
from itertools import pairwise

import pytest

from resshift_fast.cli.train import train
from resshift_fast.models import catalog
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.optimization import learning_rate


def test_the_command_and_the_settings_have_the_same_defaults():
    command = {name: parameter.default for name, parameter in inspect.signature(train).parameters.items()}
    command["compile"] = command.pop("compile_model")
    command["val_metrics"] = tuple(filter(None, command["val_metrics"].split(",")))
    shared = [field for field in fields(TrainConfig) if field.name in command and field.default is not MISSING]
    assert len(shared) > 20
    assert {field.name: command[field.name] for field in shared} == {field.name: field.default for field in shared}
    assert command["clean"] == Mixture().clean


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("lr", "override 'lr' has no value; write lr=VALUE"),
        ("batchsize=3", "batchsize cannot be overridden; did you mean batch_size"),
        ("model=nano-x4", "model cannot be overridden"),
        ("run=x", "run cannot be overridden"),
        ("steps=many", "override steps=many: expected an integer"),
        ("channels_last=1", "expected true or false"),
        ("steps=0", "steps must be at least 1"),
    ],
)
def test_overrides_that_make_no_sense_are_refused(text, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(data="", run="").overridden(text)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"loss": "l3"}, "l3.*l1, mse"),
        ({"precision": "float64"}, "float64"),
        ({"rollout": 1.5}, "rollout"),
        ({"steps": 0}, "steps"),
        ({"lr": 0.0}, "lr"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"warmup": -1}, "warmup must be at least 0"),
        ({"cache_mb": -1}, "cache_mb must be at least 0"),
        ({"grad_clip": float("nan")}, "grad_clip must be a number"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"objective": "none"}, "unknown objective 'none'; expected one of rollout"),
        ({"degradation": "none"}, "unknown degradation 'none'; expected one of mixture"),
    ],
    ids=[
        "loss",
        "precision",
        "rollout",
        "steps",
        "lr",
        "ema",
        "workers",
        "warmup",
        "cache",
        "nan",
        "seed",
        "objective",
        "degradation",
    ],
)
def test_settings_out_of_range_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(data="", run="", **changes)


@pytest.mark.parametrize(("model", "patch"), [("nano-x4", 128), ("realsr-x4-v3", 256), ("faceir", 512)])
def test_the_default_patch_is_one_that_the_model_takes(model, patch):
    config = TrainConfig(data="", run="", model=model)
    assert config.for_model(catalog.get(model)).patch == patch
    with pytest.raises(ValueError, match="patch must be a multiple of .* for this model, got 100; give "):
        replace(config, patch=100).for_model(catalog.get(model))


def test_learning_rate_warms_up_and_falls_to_the_minimum():
    config = TrainConfig(data="", run="", steps=100, warmup=10, lr=1.0, min_lr=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0) and rates[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))
