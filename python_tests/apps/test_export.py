"""Exported models, run by ONNX Runtime and by torch.export, against the pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from other_projects import needs
from pipelines import SPECS, built, fresh, oracle, tiny, zero

from resshift_fast.apps import export as exporting
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import AutoencoderConfig


def expected(pipe, inputs):
    """Of the pipeline's own module and the best kernels here."""
    margin, image = pipe.restoration.margin, inputs["image"] * 2 - 1
    image = torch.nn.functional.pad(image, (margin,) * 4, mode="reflect")
    noise = [*inputs["noise"], torch.zeros_like(inputs["noise"][0])]
    seed = torch.zeros(len(image), dtype=torch.int64)
    with torch.no_grad():
        pixels, _ = pipe.restoration(image, seed, mask=inputs.get("mask"), noise=noise)
    return (pixels / 2 + 0.5).clamp(0, 1)


def example(pipe, *size):
    return exporting.Inputs(pipe.spec).example(*size, torch.Generator().manual_seed(7))


def small(name, steps, *, unit, denoiser=None, **changes):
    """With one level of the U-Net: exporting takes the time of the number of operations, whatever their size."""
    spec = SPECS[name]
    options = {"num_res_blocks": (1,), "channel_mult": (1,)} | (denoiser or {})
    schedule = replace(spec.schedule, respacing=steps)
    return built(
        replace(spec, denoiser=replace(spec.denoiser, **options), schedule=schedule, pad_multiple=unit, **changes)
    )


@pytest.mark.slow
def test_onnx_runtime_restores_the_same_at_other_sizes(tmp_path):
    needs("onnx")
    import onnxruntime

    stage = AutoencoderConfig(channels=32, channel_mult=(1, 1), num_res_blocks=(1, 1), codebook_size=64)
    pipe = small("inpaint-vq", steps=1, unit=16, denoiser={"lq_size": 64}, first_stage=stage)
    path = tmp_path / "model.onnx"
    assert exporting.export(pipe, path, "onnx") <= 1e-5
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [x.name for x in session.get_inputs()] == ["image", "noise", "mask"]
    for size in ((3, 2, 2), (1, 4, 3)):
        inputs = example(pipe, *size)
        (restored,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_allclose(restored, expected(pipe, inputs).numpy(), rtol=0, atol=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
def test_a_program_of_torch_restores_the_same_at_other_sizes(tmp_path):
    pipe, path = small("x4", steps=2, unit=8), tmp_path / "model.pt2"
    assert exporting.export(pipe, path, "torch") <= 1e-5
    program = torch.export.load(path)
    targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert targets and not [target for target in targets if "resshift" in target]
    for size in ((3, 2, 2), (1, 4, 3)):
        inputs = example(pipe, *size)
        torch.testing.assert_close(program.module()(**inputs), expected(pipe, inputs), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*catalog.MODELS, "nano-x4-1step", "realsr-x4-v1-1step"])
def test_shapes_of_inputs_are_those_of_the_model(name):
    inputs = exporting.Inputs(catalog.get(name))
    found = inputs.example(2, 1, 2, torch.Generator())
    spec, height = inputs.spec, inputs.unit
    assert found["image"].shape == (2, 3, height, 2 * height)
    stage = spec.first_stage.factor
    latent = (height * spec.scale // stage, 2 * height * spec.scale // stage)
    assert found["noise"].shape == (spec.schedule.num_steps, 2, spec.denoiser.out_channels, *latent)
    assert ("mask" in found) == spec.denoiser.cond_mask
    assert ("noise_channels" in found) == (spec.denoiser.noise_channels > 0)
    assert set(inputs.dynamic()) == set(found)


def test_another_kind_or_dtype_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="the format is 'tflite', expected one of onnx, torch"):
        exporting.export(tiny("x4"), tmp_path / "model", "tflite")
    with pytest.raises(ValueError, match="can't be exported, as its holes are filled in before"):
        exporting.export(oracle(zero, 1, mask=True, filled=True), tmp_path / "model", "onnx")
    with pytest.raises(ValueError, match=r"from the CPU in float32, this one is on cpu in torch\.bfloat16"):
        exporting.export(tiny("x4", torch.bfloat16), tmp_path / "model", "torch")
    assert not [*tmp_path.iterdir()]


def test_a_result_that_differs_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "model.pt2"
    path.write_bytes(b"earlier")

    class Program:
        def module(self):
            return lambda image, **_: torch.zeros(len(image), 3, 4 * image.shape[2], 4 * image.shape[3])

    monkeypatch.setattr(exporting, "_program", lambda *_: Program())
    monkeypatch.setattr(torch.export, "save", lambda program, file: file.write(b"wrong"))
    with pytest.raises(RuntimeError, match=r"differs by 1\.0e\+00 for an image of 32 by 32 pixels"):
        exporting.export(fresh("x4", steps=1), path, "torch")
    assert path.read_bytes() == b"earlier" and [*tmp_path.iterdir()] == [path]
