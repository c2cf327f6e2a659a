"""First stages: official keys, shapes and arrays of the VQGAN; the lossless space-to-depth stage."""

from importlib import import_module

import pytest
import torch
from comparison import assert_close, relative_error, tied_pixels
from golden_data import array, arrays, document, fill_
from hypothesis import given, settings
from hypothesis import strategies as st

from resshift_fast import ops
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import AutoencoderConfig, SpaceToDepth, SpaceToDepthConfig, VQAutoencoder

F4 = ["realsr-x4-v1", "realsr-x4-v2", "realsr-x4-v3", "realsr-x2", "bicsr-x4", "inpaint-imagenet", "inpaint-face"]
OFFICIAL = dict.fromkeys(F4, "autoencoder_vq_f4") | {"faceir": "autoencoder_vq_f8_face512"}
SMALL = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=(1, 2), latent_channels=4, codebook_size=50)


@pytest.fixture(scope="module")
def small():
    """An autoencoder of a few thousand parameters with deterministic weights."""
    return fill_(VQAutoencoder(SMALL)).requires_grad_(False)


@pytest.mark.parametrize("model", OFFICIAL)
def test_official_keys_and_shapes(model):
    with torch.device("meta"):
        state = catalog.build_first_stage(catalog.get(model)).state_dict()
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    assert shapes == document("state_dict_shapes.json")[OFFICIAL[model]]


def test_all_official_entries_are_covered():
    own = {"nano-x4", "photo-x4", "photo-x1", "photo-inpaint", "distilled-x4", "distilled-x2"}
    assert set(OFFICIAL) == set(catalog.MODELS) - own


@pytest.mark.parametrize("model", [pytest.param("faceir", marks=pytest.mark.slow), "realsr-x4-v3"])
def test_official_outputs(model, official):
    name = OFFICIAL[model]
    autoencoder, expected = official.first_stage(model), arrays(f"{name}.npz")
    side = 128 // autoencoder.factor
    latent = array(f"{name}.latent", 1, autoencoder.latent_channels, side, side)
    with torch.no_grad():
        assert_close("encode", autoencoder.encode(array(f"{name}.image", 1, 3, 128, 128)), expected["encode"], 1e-5)
        codebook = autoencoder.quantize.embedding.weight
        chosen, tied = expected["indices"].long().view(1, side, side), tied_pixels(latent, codebook)
        assert tied.sum() <= 2
        indices = ops.vector_quantize(latent, codebook)[1]
        assert torch.equal(indices[~tied], chosen[~tied])
        entries = codebook[chosen].permute(0, 3, 1, 2)
        decoded = autoencoder.decode(torch.where(tied[:, None], entries, latent))
        assert_close("decode", decoded, expected["decode"], 1e-5)
        decoded = autoencoder.decode(latent, quantize=False)
        assert_close("decode unquantized", decoded, expected["decode_unquantized"], 1e-5)


def test_sizes(small):
    assert (small.factor, small.latent_channels) == (2, 4)
    assert AutoencoderConfig().factor == 4
    latent = small.encode(array("sizes.image", 2, 3, 6, 10))
    assert latent.shape == (2, 4, 3, 5)
    assert small.decode(latent).shape == (2, 3, 6, 10)


def test_decode_quantizes_by_default(small):
    latent = array("quantize.latent", 1, 4, 3, 5)
    quantized, _ = ops.vector_quantize(latent, small.quantize.embedding.weight)
    assert_close("decode", small.decode(latent), small.decode(quantized, quantize=False), 1e-5)
    assert relative_error(small.decode(latent, quantize=False), small.decode(latent)) > 1e-3


def test_batch_and_order_change_nothing(small):
    images = array("order.image", 3, 3, 8, 6)
    latents = small.encode(images)
    decoded = small.decode(latents)
    order = [2, 0, 1]
    assert_close("encode shuffled", small.encode(images[order]), latents[order], 1e-5)
    assert_close("decode shuffled", small.decode(latents[order]), decoded[order], 1e-5)
    for i in range(3):
        assert_close(f"encode {i}", small.encode(images[i : i + 1]), latents[i : i + 1], 1e-5)
        assert_close(f"decode {i}", small.decode(latents[i : i + 1]), decoded[i : i + 1], 1e-5)


def test_attention_in_blocks_changes_nothing(small, monkeypatch):
    images = array("blocks.image", 2, 3, 8, 12)
    expected = small.encode(images)
    monkeypatch.setattr(import_module("resshift_fast.ops.spatial_attention"), "SCORE_ELEMENTS", 2 * 24 * 5)
    assert_close("encode", small.encode(images), expected, 1e-5)


@pytest.mark.parametrize("dtype, ratio", [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=["bfloat16", "float16"])
def test_16_bit_weights(small, dtype, ratio):
    half = fill_(VQAutoencoder(SMALL)).requires_grad_(False).to(dtype)
    image, latent = array("half.image", 1, 3, 8, 12), array("half.latent", 1, 4, 4, 6)
    encoded, decoded = half.encode(image.to(dtype)), half.decode(latent.to(dtype), quantize=False)
    assert encoded.dtype == decoded.dtype == dtype
    assert_close("encode", encoded, small.encode(image), ratio)
    assert_close("decode", decoded, small.decode(latent, quantize=False), ratio)
    assert half.decode(latent.to(dtype)).isfinite().all()


def test_gradients_pass_through_quantization(small):
    image = array("gradient.image", 1, 3, 8, 8).requires_grad_()
    latent = small.encode(image)
    gradient, of_latent = torch.autograd.grad(small.decode(latent).square().sum(), [image, latent])
    assert gradient.isfinite().all() and gradient.norm() > 0
    # Straight-through estimator: the gradient is that of decoding the nearest entries.
    entries, _ = ops.vector_quantize(latent.detach(), small.quantize.embedding.weight)
    entries.requires_grad_()
    (expected,) = torch.autograd.grad(small.decode(entries, quantize=False).square().sum(), [entries])
    assert_close("gradient of the latent", of_latent, expected, 1e-5)


@given(st.sampled_from([1, 2, 4]), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=30)
def test_space_to_depth_is_lossless(factor, batch, height, width):
    stage = SpaceToDepth(SpaceToDepthConfig(factor=factor))
    image = array("depth.image", batch, 3, factor * height, factor * width)
    latent = stage.encode(image)
    assert latent.shape == (batch, stage.latent_channels, height, width)
    assert (stage.factor, stage.latent_channels) == (factor, 3 * factor**2)
    assert torch.equal(stage.decode(latent), image)


def test_space_to_depth_keeps_a_block_in_one_pixel():
    image = array("depth.image", 1, 3, 8, 12)
    latent = SpaceToDepth(SpaceToDepthConfig()).encode(image)
    for colour, row, column in [(0, 0, 0), (1, 2, 3), (2, 3, 1)]:
        assert torch.equal(latent[0, 16 * colour + 4 * row + column], image[0, colour, row::4, column::4])


def test_space_to_depth_has_no_weights():
    assert not SpaceToDepth(SpaceToDepthConfig()).state_dict()
