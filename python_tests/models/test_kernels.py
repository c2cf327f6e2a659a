"""A whole denoiser and a whole first stage on the Triton kernels, in the interpreter if there is no GPU."""

import pytest
import torch
from golden_data import array, fill_
from pipelines import SPECS

from resshift_fast import use_backend
from resshift_fast.backends import dispatch, verification
from resshift_fast.models import catalog

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def kernels(monkeypatch):
    """Turn verification off; {operator that was called: number of kernels that dispatch may try}."""
    monkeypatch.setenv(verification.VARIABLE, "0")
    counts: dict[str, int] = {}
    choose = dispatch._choose

    def counted(key):
        choice = choose(key)
        counts[key[0]] = len(choice.kernels)
        return choice

    monkeypatch.setattr(dispatch, "_choose", counted)
    return counts


def both(function):
    """Results of the reference and of the kernels."""
    with torch.no_grad():
        with use_backend("reference"):
            expected = function()
        with use_backend("triton"):
            return expected, function()


@pytest.mark.slow
def test_a_denoiser(kernels):
    denoiser = fill_(catalog.build_denoiser(SPECS["x4-vq"])).to(DEVICE)
    config = denoiser.config
    x = array("x", 1, config.in_channels, 16, 16).to(DEVICE)
    lq = array("lq", 1, 3, *(16 * config.lq_size // config.image_size,) * 2).to(DEVICE)
    expected, ours = both(lambda: denoiser(x, torch.tensor([3], device=DEVICE), lq))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert not torch.equal(ours, expected)
    written = {"window_attention_proj_statistics", "swin_mlp_statistics", "pointwise_conv2d_statistics"}
    assert {"residual_block", "group_norm", "swin_mlp", "pointwise_conv2d"} | written <= kernels.keys()
    assert "window_attention" not in kernels
    assert all(kernels.values())


@pytest.mark.slow
def test_a_first_stage(kernels):
    stage = fill_(catalog.build_first_stage(SPECS["x4-vq"])).to(DEVICE)
    latent = array("latent", 1, stage.latent_channels, 4, 6).to(DEVICE)
    expected, ours = both(lambda: stage.decode(latent))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    assert {"vector_quantize", "spatial_attention", "add_concat_group_norm"} <= kernels.keys()
    assert all(kernels.values())
