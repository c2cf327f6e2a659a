"""Conversions between images and tensors."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, C] to float32 [B, C, H, W] in [−1, 1]."""
    pixels = torch.from_numpy(np.require(images, requirements=["C", "W"]))
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_images(tensor: Tensor) -> np.ndarray:
    """[B, C, H, W] in [−1, 1] to uint8 [B, H, W, C], clamped and rounded."""
    pixels = tensor.float().add(1.0).mul(127.5).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


def upsample(low: Tensor, scale: int) -> Tensor:
    """Enlarge the low-quality image `scale` times by bicubic interpolation, which needs no antialiasing."""
    return low if scale == 1 else F.interpolate(low, scale_factor=scale, mode="bicubic", align_corners=False)
