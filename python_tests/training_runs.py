"""A tiny network, photos and settings for tests of trainings."""

import csv
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from resshift_fast.diffusion.schedule import Schedule
from resshift_fast.models.autoencoder import AutoencoderConfig, SpaceToDepth, SpaceToDepthConfig
from resshift_fast.models.swin_unet import SwinUNet, SwinUNetConfig
from resshift_fast.training.autoencoder import AutoencoderTrainer
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.data import PatchPlan
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.interfaces import Batch
from resshift_fast.training.trainer import Trainer

TINY = SwinUNetConfig(
    image_size=16,
    in_channels=48,
    out_channels=48,
    model_channels=32,
    num_res_blocks=(1,),
    attention_resolutions=(16,),
    channel_mult=(1,),
    swin_embed_dim=32,
    mlp_ratio=1.0,
    lq_size=16,
)
TINY_AUTOENCODER = AutoencoderConfig(
    channels=32, channel_mult=(1, 1), num_res_blocks=(1, 1), latent_channels=3, codebook_size=64
)
PLAN = PatchPlan(patch=64, degradation=Mixture(clean=1.0))


def make_photos(folder):
    """Two photos of 160×192 without fine detail."""
    for index in range(2):
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 20, 3), dtype=np.uint8))
        coarse.resize((160, 192), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def make_spec(**changes):
    values = {
        "schedule": Schedule(steps=3, kappa=0.3),
        "prediction_type": "residual",
        "scale": 4,
        "clamp_x0": True,
        "needs_mask": False,
        "pad_multiple": 8,
    }
    return SimpleNamespace(**(values | changes))


def make_config(photos, run, **changes):
    values = {"steps": 6, "batch_size": 2, "patch": 64, "warmup": 2, "lr": 1e-3, "log_every": 1, "save_every": 3}
    values |= {"rollout": 0.0, "channels_last": False}
    return TrainConfig(data=str(photos), run=str(run), **(values | changes))


def make_trainer(config, spec=None, kind=Trainer, **options):
    torch.manual_seed(0)
    stage = SpaceToDepth(SpaceToDepthConfig())
    return kind(config, spec or make_spec(), denoiser=SwinUNet(TINY), first_stage=stage, **options)


def make_autoencoder_config(photos, run, *, options=None, **changes):
    """Without LPIPS, with a small discriminator from step 2 on."""
    options = {"lpips": 0.0, "disc_start": 2, "disc_channels": 16} | (options or {})
    values = {
        "model": "tiny",
        "objective": "vqgan",
        "objective_options": options,
        "betas": (0.5, 0.9),
        "ema_decay": 0.0,
    }
    return make_config(photos, run, **(values | {"patch": 32} | changes))


def make_autoencoder_trainer(config, kind=AutoencoderTrainer, **options):
    return kind(config, TINY_AUTOENCODER, **options)


def random_batch():
    return Batch(torch.rand(2, 3, 64, 64) * 2 - 1, torch.rand(2, 3, 16, 16) * 2 - 1)


def loss_of(trainer, batch):
    return float(trainer.loss(batch, 0).by_sample.detach().mean())


def read_log(run):
    with open(run / "log.csv", newline="") as file:
        return list(csv.DictReader(file))
