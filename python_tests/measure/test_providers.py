"""One case of a provider: what is timed, counted and compiled."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_models
import torch
import torch.nn.functional as F
from other_projects import needs
from pipelines import SPECS
from torch import nn
from torch._inductor import config as inductor

from resshift_fast import backends
from resshift_fast.measure import providers
from resshift_fast.measure.providers import STAGES, WHOLE, Case, Runner
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import SpaceToDepth, VQAutoencoder

TINY = {"model": tiny_models.ENLARGE, "size": 16, "random_weights": True, "device": "cpu"}


@pytest.fixture(autouse=True)
def models(monkeypatch):
    monkeypatch.setattr(catalog, "MODELS", dict(catalog.MODELS) | {"x4-vq": SPECS["x4-vq"]})
    tiny_models.install(catalog.MODELS)


@pytest.fixture
def compiled(monkeypatch):
    """Replace torch.compile; its calls as (function, options)."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda f, **options: calls.append((f, options)) or f)
    with inductor.patch(freezing=False):
        yield calls


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"provider": "onnx"}, "provider is 'onnx', expected one of reference, compile, openvino, ours"),
        ({"dtype": "int8"}, "dtype is 'int8', expected one of float32, bfloat16, float16"),
        ({"size": 0}, "size is 0, expected at least 1"),
        ({"batch": -1}, "batch is -1, expected at least 1"),
        ({"model": "nano-x9"}, "nano-x9"),
    ],
)
def test_a_bad_case_is_refused_with_the_reason(wrong, message):
    with pytest.raises(ValueError, match=message):
        Case(**{"provider": "ours"} | wrong)


@pytest.mark.parametrize("provider", ["reference", "compile", "ours"])
def test_every_provider_times_the_stages_and_gives_the_same_image(provider, compiled):
    case = Case(provider, **TINY, batch=2, batch_size=2)
    runner, plain = Runner(case), Runner(Case("reference", **TINY, batch=2, batch_size=2))
    first = runner.first()
    assert first.seconds > 0 and first.peak_bytes > 5e7
    assert runner.pixels().shape == (2, 3, 64, 64)
    np.testing.assert_allclose(runner.pixels(), plain.pixels(), atol=1e-4)
    for _ in range(2):  # times are reset before each run
        seconds = runner.run().seconds
        assert set(seconds) == {*STAGES, WHOLE} and all(value > 0 for value in seconds.values())
        assert sum(seconds[stage] for stage in STAGES) <= seconds[WHOLE]
    assert backends.preferred() == "auto"


@pytest.mark.slow
@pytest.mark.parametrize("model", [tiny_models.ENLARGE, "x4-vq"])
def test_openvino_gives_the_same_image(model):
    needs("openvino")
    case = Case("openvino", **TINY | {"model": model, "size": 32})
    runner, plain = Runner(case), Runner(replace(case, provider="reference"))
    runner.first()
    np.testing.assert_allclose(runner.pixels(), plain.pixels(), atol=1e-4)
    assert set(runner.run().seconds) == {*STAGES, WHOLE}


def test_openvino_has_a_cpu_and_two_dtypes(monkeypatch):
    with pytest.raises(ValueError, match="OpenVINO computes in float32 or bfloat16 here, got float16"):
        Runner(Case("openvino", dtype="float16", **TINY))
    monkeypatch.setattr(providers.devices, "usable_device", lambda device: torch.device("cuda"))
    with pytest.raises(ValueError, match="openvino runs on the CPU, not on a GPU; choose device cpu"):
        Runner(Case("openvino", **TINY | {"device": None}))


def test_a_missing_openvino_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"pip install 'resshift-fast\[bench\]'"):
        Runner(Case("openvino", **TINY))


@pytest.mark.slow
def test_operations_are_counted_for_every_tile():
    tiles = catalog.get(tiny_models.ENLARGE).plan_tiles(32, 32)  # of 16 that overlap by 4
    counted = []
    for side in (16, 32):
        runner = Runner(Case("reference", **TINY | {"size": side}))
        runner.first()
        counted.append(runner.operations()[WHOLE])
    assert counted[1] == len(tiles[0].starts) * len(tiles[1].starts) * counted[0]


def test_compile_freezes_and_compiles_each_network_once(compiled):
    Runner(Case("compile", **TINY))
    assert [f.__name__ for f, _ in compiled] == ["encode", "denoise", "decode"]
    assert all(options == {"dynamic": False, "fullgraph": True} for _, options in compiled)
    assert inductor.freezing


def test_a_compiled_pipeline_times_no_stages(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda f, **options: f)
    runner = Runner(Case("ours-compiled", **TINY))
    runner.first()
    assert set(runner.run().seconds) == {WHOLE}


@pytest.mark.parametrize("provider", ["compile", "ours", "ours-compiled"])
def test_random_weights_are_compared_without_quantization(provider, monkeypatch, compiled):
    calls = []
    monkeypatch.setattr(
        VQAutoencoder, "decode", lambda self, latent, quantize=True: calls.append(quantize) or latent.repeat(1, 1, 4, 4)
    )
    runner = Runner(Case(provider, **TINY | {"model": "x4-vq"}))
    runner.first()
    runner.pixels()
    runner.run()
    assert calls == [True, False, True] + [True] * (provider == "ours-compiled")


def test_given_weights_are_compared_by_the_pipelines_output(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(
        SpaceToDepth, "decode", lambda self, latent: calls.append(1) or latent[:, :3].repeat(1, 1, 4, 4)
    )
    weights = str(tiny_models.save_weights(tiny_models.ENLARGE, tmp_path))
    assert Runner(Case("ours", **TINY | {"random_weights": False}, weights=weights)).pixels().shape == (1, 3, 64, 64)
    assert calls == [1]


class Linear(nn.Module):
    """A first stage and a chain of operations that can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)

    def encode(self, x):
        return self.convolution(x)

    def decode(self, x):
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(tokens, tokens, tokens)

    def forward(self, x):
        return F.linear(x, torch.ones(5, x.shape[-1]))


def test_operations_are_those_counted_by_hand(monkeypatch):
    networks, x = Linear(), torch.ones(1, 3, 6, 10)

    class Pipe:
        device = torch.device("cpu")
        first_stage, restoration = networks, SimpleNamespace(chain=networks, encode=networks.encode)

        def __call__(self, *_, **__):
            with torch.inference_mode():
                self.restoration.chain.forward(x)
                return [networks.decode(self.restoration.encode(x))]

    monkeypatch.setattr(providers, "build", lambda case: Pipe())
    assert Runner(Case("reference", **TINY)).operations() == {
        "encode": 2 * 8 * (3 * 9) * 60,
        "denoise": 2 * 5 * 10 * (3 * 6),
        "decode": 2 * 2 * 60 * 60 * 8,  # scores, and their products with the values
        WHOLE: 2 * 8 * 27 * 60 + 2 * 50 * 18 + 4 * 3600 * 8,
    }


def test_random_weights_are_equal_in_every_dtype_and_not_zero():
    case = Case("ours", **TINY | {"model": "x4-vq"})
    exact = dict(providers.build(case).denoiser.named_parameters())
    rounded = dict(providers.build(Case("ours", "bfloat16", **TINY | {"model": "x4-vq"})).denoiser.named_parameters())
    for name, parameter in exact.items():
        assert torch.equal(parameter.bfloat16(), rounded[name]), name
        assert parameter.dim() == 1 or parameter.any(), name


def test_operators_are_timed_without_those_they_call():
    runner = Runner(Case("reference", **TINY))
    seconds = runner.operator_seconds()
    assert any("convolution" in name for name in seconds) and all(value >= 0 for value in seconds.values())


def test_the_rate_of_matrix_products_is_plausible():
    assert 1e7 < providers.gemm_rate("float32", torch.device("cpu"), side=64) < 1e15
