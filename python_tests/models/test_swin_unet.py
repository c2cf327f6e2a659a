"""The denoiser: official keys, shapes, outputs and gradients; its parts; independence of images in a batch."""

import math
from dataclasses import replace

import pytest
import torch
from comparison import assert_close, relative_error
from golden_data import array, arrays, document, fill_

from resshift_fast import ops
from resshift_fast.models import catalog
from resshift_fast.models.layers import timestep_embedding
from resshift_fast.models.swin_unet import SwinLayer, SwinUNet, SwinUNetConfig

OFFICIAL = {  # catalogue entry: name in state_dict_shapes.json
    "realsr-x4-v1": "unet_realsr",
    "realsr-x4-v2": "unet_realsr",
    "realsr-x4-v3": "unet_realsr",
    "bicsr-x4": "unet_realsr",
    "realsr-x2": "unet_realsr_x2",
    "inpaint-imagenet": "unet_inpaint_imagenet",
    "inpaint-face": "unet_inpaint_imagenet",
    "faceir": "unet_faceir",
}
LARGER = ("inpaint_imagenet", "faceir", "realsr")
TASKS = {  # name of the arrays: catalogue entry
    "realsr_x2": "realsr-x2",
    "inpaint_imagenet": "inpaint-imagenet",
    "faceir": "faceir",
    "realsr": "realsr-x4-v3",
}
SMALL = SwinUNetConfig(
    image_size=16,
    model_channels=32,
    num_res_blocks=(1, 1),
    attention_resolutions=(16, 8),
    channel_mult=(1, 1),
    swin_embed_dim=32,
    window_size=4,
    mlp_ratio=1,
    lq_size=16,
)


def mini_config() -> SwinUNetConfig:
    """The configuration of mini_unet.json, whose two options without a field here have fixed values."""
    fields = document("mini_unet.json")
    assert fields.pop("use_scale_shift_norm") and not fields.pop("patch_norm")
    return SwinUNetConfig(**{name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})


@pytest.fixture(scope="module")
def mini():
    """The small denoiser with deterministic weights; tests must not change it."""
    return fill_(SwinUNet(mini_config()))


def small(**changes) -> SwinUNet:
    """A denoiser of a few thousand parameters with deterministic weights."""
    return fill_(SwinUNet(replace(SMALL, **changes))).eval().requires_grad_(False)


def shapes(module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in module.state_dict().items()}


def test_mini_keys_and_shapes(mini):
    assert shapes(mini) == document("mini_unet_shapes.json")


@pytest.mark.parametrize("model", OFFICIAL)
def test_official_keys_and_shapes(model):
    with torch.device("meta"):
        denoiser = catalog.build_denoiser(catalog.get(model))
    assert shapes(denoiser) == document("state_dict_shapes.json")[OFFICIAL[model]]


def test_all_official_entries_are_covered():
    own = {"nano-x4", "photo-x4", "photo-x1", "photo-inpaint", "distilled-x4", "distilled-x2"}
    assert set(OFFICIAL) == set(catalog.MODELS) - own


def test_mini_output_and_gradients(mini):
    expected = arrays("mini_unet.npz")
    x, lq = array("mini.x", 2, 3, 16, 16).requires_grad_(), array("mini.lq", 2, 3, 16, 16)
    out = mini(x, torch.tensor([3, 1]), lq)
    assert_close("out", out, expected["out"], 1e-5)
    names = document("mini_unet_grad_names.json")
    parameters = dict(mini.named_parameters())
    assert sorted(parameters) == sorted(names)
    loss = (out * array("mini.cotangent", 2, 3, 16, 16)).sum()
    grad_x, *gradients = torch.autograd.grad(loss, [x, *(parameters[name] for name in names)])
    assert_close("gradient of x", grad_x, expected["grad_x"], 1e-4)
    by_name = dict(zip(names, gradients, strict=True))
    given = [name for name in expected if name.startswith("grad:")]
    assert len(given) == 6
    for name in given:
        assert_close(name, by_name[name.removeprefix("grad:")], expected[name], 1e-4)
    norms = torch.stack([gradient.norm() for gradient in gradients])
    # Some gradients are zero up to rounding: their tolerance is relative to the largest norm.
    torch.testing.assert_close(norms, expected["grad_norms"], rtol=1e-4, atol=1e-6 * norms.max().item())


def test_mini_on_a_larger_rectangle(mini):
    with torch.no_grad():
        out = mini(array("mini.wide.x", 1, 3, 32, 48), torch.tensor([2]), array("mini.wide.lq", 1, 3, 32, 48))
    assert_close("out", out, arrays("mini_unet_32x48.npz")["out"], 1e-5)


@pytest.mark.parametrize("task", ["realsr_x2", *(pytest.param(task, marks=pytest.mark.slow) for task in LARGER)])
def test_official_outputs(task, official):
    denoiser, expected = official.denoiser(TASKS[task]), arrays(f"unet_{task}.npz")
    config = denoiser.config
    x = array(f"{task}.x", 1, config.in_channels, 64, 64)
    lq = array(f"{task}.lq", 1, 3, config.lq_size, config.lq_size)
    mask = torch.sign(array(f"{task}.mask", 1, 1, 256, 256)) if config.cond_mask else None
    with torch.no_grad():
        features = denoiser.condition(lq, mask)
        modulation = denoiser.modulation(torch.tensor([0, 3]))
        # Both steps in one batch.
        out = denoiser.denoise(torch.cat([x, features], dim=1).expand(2, -1, -1, -1), modulation)
    assert_close("t = 0", out[:1], expected["t0"], 1e-5)
    assert_close("t = 3", out[1:], expected["t3"], 1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cond_mask": True},
        {"lq_size": 32},
        {"lq_size": 64, "cond_mask": True},
        {"cond_lq": False},
        {"in_channels": 8, "out_channels": 6},
        {"noise_channels": 1},
        {"lq_size": 32, "noise_channels": 2},
        {"cond_lq": False, "noise_channels": 1},
    ],
    ids=["lq", "lq-mask", "lq-x2", "lq-x4-mask", "no-lq", "channels", "noise", "lq-x2-noise", "no-lq-noise"],
)
def test_forward_is_its_three_parts(changes):
    denoiser = small(**changes)
    config = denoiser.config
    x, timesteps = array("parts.x", 2, config.in_channels, 16, 24), torch.tensor([2, 0])
    side = config.lq_size // config.image_size
    lq = array("parts.lq", 2, 3, 16 * side, 24 * side) if config.cond_lq else None
    mask = torch.sign(array("parts.mask", 2, 1, 16 * side, 24 * side)) if config.cond_mask else None
    noise = array("parts.noise", 2, config.noise_channels, 16, 24) if config.noise_channels else None
    features = denoiser.condition(lq, mask, noise)
    if features is None:
        assert lq is None and noise is None and config.lq_channels == 0
    else:
        assert features.shape == (2, config.lq_channels, 16, 24)
    # Modulations are computed for all steps at once; a chain then selects the row of its step.
    rows = tuple(m[timesteps] for m in denoiser.modulation(torch.arange(4)))
    parts = denoiser.denoise(x if features is None else torch.cat([x, features], dim=1), rows)
    out = denoiser(x, timesteps, lq, mask, noise)
    assert out.shape == (2, config.out_channels, 16, 24)
    assert_close("out", parts, out, 1e-5)
    others = {"timestep": denoiser(x, 1 + timesteps, lq, mask, noise)}
    if lq is not None:
        others["lq"] = denoiser(x, timesteps, lq + 0.5, mask, noise)
    if mask is not None:
        others["mask"] = denoiser(x, timesteps, lq, -mask)
    if noise is not None:
        others["noise"] = denoiser(x, timesteps, lq, mask, -noise)
    for name, other in others.items():
        assert relative_error(other, out) > 1e-3, f"{name} changes nothing"


def test_batch_and_order_change_nothing():
    denoiser = small()
    x, lq, timesteps = array("order.x", 3, 3, 16, 8), array("order.lq", 3, 3, 16, 8), torch.tensor([0, 3, 1])
    whole = denoiser(x, timesteps, lq)
    order = [2, 0, 1]
    assert_close("shuffled", denoiser(x[order], timesteps[order], lq[order]), whole[order], 1e-5)
    for i in range(3):
        assert_close(f"image {i}", denoiser(x[i : i + 1], timesteps[i : i + 1], lq[i : i + 1]), whole[i : i + 1], 1e-5)


def test_channels_last_gives_the_same_results():
    denoiser = small()
    x, lq = array("format.x", 2, 3, 16, 8), array("format.lq", 2, 3, 16, 8)
    expected = denoiser(x, torch.tensor([0, 3]), lq)
    x, lq = (t.contiguous(memory_format=torch.channels_last) for t in (x, lq))
    out = denoiser.to(memory_format=torch.channels_last)(x, torch.tensor([0, 3]), lq)
    assert_close("out", out, expected, 1e-5)


@pytest.mark.parametrize("dtype, ratio", [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=["bfloat16", "float16"])
def test_16_bit_weights(dtype, ratio):
    x, lq = array("half.x", 1, 3, 16, 8), array("half.lq", 1, 3, 16, 8)
    expected = small()(x, torch.tensor([2]), lq)
    out = small().to(dtype)(x.to(dtype), torch.tensor([2]), lq.to(dtype))
    assert out.dtype == dtype
    assert_close("out", out, expected, ratio)


def test_a_fresh_denoiser_predicts_zero():
    denoiser = SwinUNet(SMALL)
    out = denoiser(array("fresh.x", 1, 3, 8, 8), torch.tensor([1]), array("fresh.lq", 1, 3, 8, 8))
    assert (out == 0).all()


@pytest.mark.parametrize("shape", [(2, 16, 8), (1, 16, 24)], ids=str)
def test_norms_take_statistics_from_what_made_their_image(shape, monkeypatch):
    """As where kernels write them. Only images of strided convolutions and concatenations have none."""
    denoiser, timesteps = small().double(), torch.tensor([3, 1][: shape[0]])
    x, lq = (array(f"given.{name}", shape[0], 3, *shape[1:]).double() for name in ("x", "lq"))
    expected = denoiser(x, timesteps, lq)
    given = {}

    def watched(name, function):
        def call(*args, **options):
            images = "two" if name == "residual_block" and args[1] is not None else "one"
            given.setdefault((name, images), []).append(options.get("statistics") is not None)
            return function(*args, **options)

        return call

    for name in ("conv2d_sums", "writes_statistics", "residual_block_is_fused"):
        monkeypatch.setattr(ops, name, lambda _: True)
    for name in ("residual_block", "group_norm", "swin_mlp"):
        monkeypatch.setattr(ops, name, watched(name, getattr(ops, name)))
    assert_close("out", denoiser(x, timesteps, lq), expected, 1e-12)
    # Blocks of one image: two of the encoder, the second after a strided convolution, and the two in the middle.
    assert given[("residual_block", "one")] == [True, False, True, True]
    assert given[("residual_block", "two")] == [False] * 4
    assert given[("group_norm", "one")] == [True] and all(given[("swin_mlp", "one")])


def swin_layers(denoiser):
    return {name: module for name, module in denoiser.named_modules() if isinstance(module, SwinLayer)}


def test_official_shifts_and_buffers():
    with torch.device("meta"):
        denoiser = catalog.build_denoiser(catalog.get("realsr-x4-v3"))  # buffers are not on the meta device
    layers = swin_layers(denoiser)
    assert len(layers) == 4 + 1 + 4
    for name, layer in layers.items():
        first, second = layer.blocks
        assert first.attn.shift_size == 0 and first.attn_mask is None
        assert first.attn.window_size == second.attn.window_size == 8
        if second.attn.shift_size == 0:
            assert name.startswith(("middle_block", "input_blocks.10", "output_blocks.0"))
            assert second.attn_mask is None
            continue
        assert second.attn.shift_size == 4
        windows = math.isqrt(len(second.attn_mask))
        assert windows in (2, 4, 8)
        masked = second.attn_mask.flatten(1).ne(0).any(1).view(windows, windows)
        assert masked[-1].all() and not masked[:-1].any()
    assert sum(layer.blocks[1].attn.shift_size == 4 for layer in layers.values()) == 6


def test_a_level_smaller_than_the_window_gets_a_smaller_window():
    denoiser = SwinUNet(replace(SMALL, window_size=16, image_size=16))
    for name, layer in swin_layers(denoiser).items():
        side = 8 if name.startswith(("middle_block", "input_blocks.3", "output_blocks.0")) else 16
        assert [(block.attn.window_size, block.attn.shift_size) for block in layer.blocks] == [(side, 0)] * 2


@pytest.mark.parametrize("channels", [2, 32, 160])
def test_timestep_embedding(channels):
    half = channels // 2
    expected = torch.empty(4, channels, dtype=torch.float64)
    for row, t in enumerate((0, 1, 3, 14)):
        for i in range(half):
            angle = t * 10000 ** (-i / half)
            expected[row, i], expected[row, half + i] = math.cos(angle), math.sin(angle)
    ours = timestep_embedding(torch.tensor([0, 1, 3, 14]), channels)
    assert ours.dtype == torch.float32
    assert_close("embedding", ours, expected, 1e-6)


@pytest.mark.parametrize(
    "changes, lq, mask, message",
    [
        ({}, None, None, "lq must be given for this denoiser"),
        ({"cond_lq": False}, 1, None, "lq must be None for this denoiser"),
        ({}, 1, 1, "mask must be None for this denoiser"),
        ({"cond_mask": True}, 1, None, "mask must be given for this denoiser"),
        ({"noise_channels": 1}, 1, None, "noise must be given for this denoiser"),
    ],
    ids=["no-lq", "unwanted-lq", "unwanted-mask", "no-mask", "no-noise"],
)
def test_a_missing_or_unexpected_condition_is_refused(changes, lq, mask, message):
    lq = None if lq is None else torch.ones(1, 3, 16, 16)
    mask = None if mask is None else torch.ones(1, 1, 16, 16)
    with pytest.raises(ValueError, match=message):
        small(**changes)(torch.ones(1, 3, 16, 16), torch.tensor([0]), lq, mask)


def test_a_size_that_does_not_divide_into_windows_is_refused():
    with pytest.raises(ValueError, match="image 12×10 is not a multiple of window_size=4; pad it first"):
        small()(torch.ones(1, 3, 12, 10), torch.tensor([0]), torch.ones(1, 3, 12, 10))
