"""YAML files in the official training code's format against the catalogue's entries for the same models."""

import pytest

from resshift_fast import Pipeline
from resshift_fast.models import catalog, official_config

pytest.importorskip("omegaconf", reason="omegaconf, which reads YAML, is not installed")

DENOISER = """
model:
  target: models.unet.UNetModelSwin
  ckpt_path: ~
  params:
    image_size: 64
    in_channels: {latent}
    model_channels: 160
    out_channels: {latent}
    attention_resolutions: [64, 32, 16, 8]
    dropout: 0
    channel_mult: [1, 2, 2, 4]
    num_res_blocks: [2, 2, 2, 2]
    conv_resample: True
    dims: 2
    use_fp16: False
    num_head_channels: 32
    use_scale_shift_norm: True
    resblock_updown: False
    swin_depth: 2
    swin_embed_dim: 192
    window_size: 8
    mlp_ratio: 4
    cond_lq: True
    cond_mask: {mask}
    lq_size: {lq_size}
"""
DIFFUSION = """
diffusion:
  params:
    sf: {scale}
    schedule_name: exponential
    schedule_kwargs: {{power: 0.3}}
    etas_end: 0.99
    steps: {steps}
    min_noise_level: {noise}
    kappa: 2.0
    predict_type: xstart
    timestep_respacing: ~
    scale_factor: 1.0
    normalize_input: True
"""
AUTOENCODER = """
autoencoder:
  params:
    embed_dim: {latent}
    n_embed: {entries}
    ddconfig: {{double_z: False, z_channels: {latent}, resolution: 256, in_channels: 3, out_ch: 3, ch: {width},
      ch_mult: {mult}, num_res_blocks: {blocks}, attn_resolutions: [], dropout: 0.0, padding_mode: zeros}}
"""
VALUES = {
    "realsr-x4-v3": dict(latent=3, mask=False, lq_size=64, scale=4, steps=4, noise=0.2),
    "realsr-x4-v1": dict(latent=3, mask=False, lq_size=64, scale=4, steps=15, noise=0.04),
    "realsr-x2": dict(latent=3, mask=False, lq_size=128, scale=2, steps=4, noise=0.2),
    "inpaint-imagenet": dict(latent=3, mask=True, lq_size=256, scale=1, steps=4, noise=0.2),
    "faceir": dict(latent=8, mask=False, lq_size=512, scale=1, steps=4, noise=0.2),
}
VQ_F4 = dict(entries=8192, width=128, mult=[1, 2, 4], blocks=2)
VQ_F8 = dict(entries=4096, width=64, mult=[1, 2, 4, 8], blocks=[1, 2, 3, 4])
TINY = DENOISER.replace("160", "32").replace("[1, 2, 2, 4]", "[1, 1]").replace("[2, 2, 2, 2]", "1")
TINY = TINY.replace("192", "32").replace("[64, 32, 16, 8]", "[]")


def text(name: str, denoiser: str = DENOISER) -> str:
    values = VALUES[name] | (VQ_F8 if name == "faceir" else VQ_F4)
    return (denoiser + DIFFUSION + AUTOENCODER).format(**values)


@pytest.mark.parametrize("name", VALUES)
def test_describes_the_catalogue_model(name, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text(name))
    spec, expected = official_config.read(path), catalog.get(name)
    assert spec.name == "mine"
    for field in ("scale", "denoiser", "first_stage", "schedule", "prediction_type", "clamp_x0", "pad_multiple"):
        assert getattr(spec, field) == getattr(expected, field), field
    assert spec.needs_mask == expected.needs_mask


def test_without_an_autoencoder_the_latent_is_the_image(tmp_path):
    import numpy as np

    path = tmp_path / "pixels.yaml"
    path.write_text((TINY + DIFFUSION).format(**VALUES["realsr-x4-v3"] | {"lq_size": 64, "scale": 1}))
    pipeline = Pipeline.from_config(path, random_weights=True)
    assert pipeline.spec.clamp_x0 and pipeline.spec.first_stage.factor == 1
    assert pipeline(np.zeros((5, 7, 3), dtype=np.uint8)).shape == (5, 7, 3)


BAD = {
    "not-yaml": ("a: [1", "not a YAML file"),
    "a-list": ("[1, 2]", "not an official configuration|expected sections"),
    "no-model": (DIFFUSION.format(**VALUES["realsr-x2"]), "model.params is missing"),
    "schedule": (text("realsr-x2").replace("exponential", "linear"), "schedule_name is 'linear'"),
    "prediction": (text("realsr-x2").replace("xstart", "velocity"), "predict_type is 'velocity'"),
    "codebook": (text("realsr-x2").replace("z_channels: 3", "z_channels: 4"), "z_channels and embed_dim differ"),
    "reference": (text("realsr-x2").replace("kappa: 2.0", "kappa: ${no.entry}"), "bad.yaml: .*no.entry"),
    "kappa": (text("realsr-x2").replace("kappa: 2.0", "kappa: 0"), "kappa is 0.0"),
}


@pytest.mark.parametrize("content, message", BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_the_reason(content, message, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        official_config.read(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        official_config.read(tmp_path / "none.yaml")


def test_needs_weights(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text("realsr-x4-v3", TINY))
    with pytest.raises(ValueError, match="no weights are published for mine.*weights=FILE"):
        Pipeline.from_config(path)
