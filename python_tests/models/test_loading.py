"""Networks with their weights: one-step students are recognized, and their evaluations counted."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_data import fill_
from pipelines import SPECS, photo

from resshift_fast import Pipeline, sample
from resshift_fast.models import catalog
from resshift_fast.models.loading import build, trained_as
from resshift_fast.weights.checkpoints import CheckpointError, save_safetensors


@pytest.fixture
def tiny(monkeypatch):
    """A small network under the name of nano-x4."""
    spec = replace(SPECS["x4"], weights=None)
    monkeypatch.setitem(catalog.MODELS, "nano-x4", spec)
    return spec


def saved(spec, path):
    denoiser = fill_(catalog.build_denoiser(spec))
    with torch.no_grad():
        denoiser.out[2].weight *= 0.3
    save_safetensors(denoiser, path, {})
    return path


@pytest.mark.parametrize("name", ["nano-x4", "nano-x4-1step"])
def test_a_student_is_recognized_and_evaluated_once(tiny, tmp_path, name):
    path = saved(catalog.one_step(tiny), tmp_path / "student.safetensors")
    pipe = Pipeline.from_pretrained(name, weights=path, device="cpu")
    assert pipe.spec.name == "nano-x4-1step" and pipe.spec.schedule.num_steps == 1
    calls = []
    denoise = pipe.denoiser.denoise
    pipe.denoiser.denoise = lambda *args: calls.append(len(args[0])) or denoise(*args)
    progress = []
    image = photo(24, 40)
    result = pipe(image, progress=lambda done, total: progress.append((done, total)))
    assert calls == [1] and progress[-1] == (1, 1)
    assert result.shape == (96, 160, 3)
    np.testing.assert_array_equal(sample(image, name, weights=path, device="cpu", progress=False), result)
    assert not np.array_equal(pipe(image, seed=1, progress=False), result)
    drawn = [pipe(image, seed=3, noise="torch", progress=False) for _ in range(2)]
    np.testing.assert_array_equal(*drawn)
    assert not np.array_equal(drawn[0], result)


def test_a_student_without_noise_is_named(tiny, tmp_path):
    path = saved(tiny, tmp_path / "teacher.safetensors")
    spec, denoiser, _ = build(catalog.get("nano-x4-1step"), weights=path)
    assert spec.schedule.num_steps == 1 and denoiser.noise_channels == spec.denoiser.noise_channels == 0
    spec, _, _ = build(catalog.get("nano-x4"), weights=path)
    assert spec is tiny


def test_other_channels_are_no_student(tiny, tmp_path):
    state = fill_(catalog.build_denoiser(tiny)).state_dict()
    key = "input_blocks.0.0.weight"
    for change in (-1, 2, 4):
        weight = torch.ones(state[key].shape[0], state[key].shape[1] + change, 3, 3)
        assert trained_as(tiny, {key: weight}) is tiny
    assert trained_as(tiny, {key: torch.ones(3)}) is tiny and trained_as(tiny, {}) is tiny
    wide = replace(tiny, denoiser=replace(tiny.denoiser, noise_channels=2))
    with pytest.raises(CheckpointError, match=r"does not fit SwinUNet.*input_blocks\.0\.0\.weight"):
        Pipeline.from_pretrained("nano-x4", weights=saved(wide, tmp_path / "wide.safetensors"), device="cpu")


def test_a_student_has_no_published_weights(tiny):
    with pytest.raises(ValueError, match="no weights are published for nano-x4-1step; give your own"):
        Pipeline.from_pretrained("nano-x4-1step", device="cpu")
