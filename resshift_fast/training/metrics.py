"""Fidelity measures of the super-resolution literature: PSNR and SSIM on the luma channel, and others on request."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from resshift_fast.training.config import TrainConfig

# Y of ITU-R BT.601 in studio range, as in MATLAB's rgb2ycbcr, for RGB in [0, 255].
_LUMA = np.array([65.481, 128.553, 24.966]) / 255.0
_LUMA_OFFSET = 16.0


def luma(image: np.ndarray) -> np.ndarray:
    """Y channel of an RGB image.

    Args:
        image: [H, W, 3], uint8, or float in [0, 255], which is first clipped and rounded as in a saved image.

    Returns:
        float64 [H, W] in [16, 235], not rounded.

    Raises:
        ValueError: for another shape.
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an RGB image has shape [H, W, 3], got {list(image.shape)}; convert it to RGB first")
    if image.dtype != np.uint8:
        image = np.clip(np.rint(image), 0, 255)
    return image.astype(np.float64) @ _LUMA + _LUMA_OFFSET


def _luma_pair(image: np.ndarray, reference: np.ndarray, border: int, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    if image.shape != reference.shape:
        raise ValueError(f"both images need one shape, got {list(image.shape)} and {list(reference.shape)}")
    first, second = luma(image), luma(reference)
    if border < 0 or min(first.shape) - 2 * border < smallest:
        raise ValueError(
            f"border {border} leaves less than {smallest} pixels of a {first.shape[0]}×{first.shape[1]} image"
        )
    inner = slice(border, -border or None)
    return first[inner, inner], second[inner, inner]


def psnr_y(image: np.ndarray, reference: np.ndarray, border: int = 0) -> float:
    """Peak signal-to-noise ratio of the Y channel in dB, peak 255; infinite for equal images.

    Args:
        image, reference: RGB [H, W, 3], uint8 or float in [0, 255].
        border: pixels to leave out on every side.

    Raises:
        ValueError: for unequal shapes or a border that leaves nothing.
    """
    first, second = _luma_pair(image, reference, border, 1)
    error = float(np.mean((first - second) ** 2))
    return float("inf") if error == 0.0 else float(10.0 * np.log10(255.0**2 / error))


def _gaussian_window(size: int = 11, sigma: float = 1.5) -> np.ndarray:
    offsets = np.arange(size) - (size - 1) / 2
    window = np.exp(-(offsets**2) / (2 * sigma**2))
    return window / window.sum()


def _filter_valid(image: np.ndarray, window: np.ndarray) -> np.ndarray:
    rows = np.lib.stride_tricks.sliding_window_view(image, len(window), axis=0) @ window
    return np.lib.stride_tricks.sliding_window_view(rows, len(window), axis=1) @ window


def ssim_y(image: np.ndarray, reference: np.ndarray, border: int = 0) -> float:
    """Mean structural similarity of the Y channel (Wang et al. 2004).

    As in the authors' MATLAB program: 11×11 Gaussian window with σ = 1.5, K = (0.01, 0.03), dynamic range 255, and only
    positions where the whole window fits.

    Args:
        image, reference: RGB [H, W, 3], uint8 or float in [0, 255].
        border: pixels to leave out on every side.

    Raises:
        ValueError: for unequal shapes, or if less than 11×11 pixels remain.
    """
    first, second = _luma_pair(image, reference, border, 11)
    window = _gaussian_window()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean1, mean2 = _filter_valid(first, window), _filter_valid(second, window)
    variance1 = _filter_valid(first * first, window) - mean1**2
    variance2 = _filter_valid(second * second, window) - mean2**2
    covariance = _filter_valid(first * second, window) - mean1 * mean2
    numerator = (2 * mean1 * mean2 + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean1**2 + mean2**2 + c1) * (variance1 + variance2 + c2))))


Metric = Callable[[np.ndarray, np.ndarray], float]
"""Compares a restored image with the true one, both uint8 RGB [H, W, 3]; the second is not used by some."""


class NetworkMetric:
    """A metric that a network computes.

    Args:
        network: called as network(image, reference) with [1, 3, H, W] on `device`, and returns a tensor with one value.
        device: of the network.
        signed: whether it takes values in [−1, 1] instead of [0, 1].
        reference: whether it takes the true image.
    """

    def __init__(self, network: nn.Module, device: torch.device, *, signed: bool = False, reference: bool = True):
        self.network, self._device, self._signed, self._reference = network, device, signed, reference

    @torch.no_grad()
    def __call__(self, image: np.ndarray, reference: np.ndarray) -> float:
        images = [_unit_tensor(one, self._device) for one in (image, reference)[: 2 if self._reference else 1]]
        return float(self.network(*(one * 2 - 1 if self._signed else one for one in images)))


def from_config(config: TrainConfig, device: torch.device) -> dict[str, Metric]:
    """The metrics of a validation by name: PSNR and SSIM of Y, and those that the settings add.

    Raises:
        ValueError: if pyiqa is needed and not installed.
        ValueError, OSError: for an unknown metric of pyiqa, or weights of LPIPS that cannot be read.
    """
    found: dict[str, Metric] = {"psnr_y": psnr_y, "ssim_y": ssim_y}
    if config.val_lpips is not None:
        found["lpips"] = _lpips(config.val_lpips, device)
    for name in config.val_metrics:
        found[name] = _pyiqa(name, device)
    return found


def _unit_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].to(device).float() / 255.0


def _lpips(vgg: str, device: torch.device) -> Metric:
    lpips: Any = import_module("resshift_fast.training.lpips").LPIPS.from_files(vgg).to(device)
    return NetworkMetric(lpips, device, signed=True)


def _pyiqa(name: str, device: torch.device) -> Metric:
    try:
        pyiqa: Any = import_module("pyiqa")
    except ImportError as error:
        raise ValueError(f"the metric {name} needs {error.name}, which is not installed; pip install pyiqa") from None
    try:
        metric = pyiqa.create_metric(name, device=device)
    except (KeyError, AssertionError) as error:
        raise ValueError(f"pyiqa has no metric {name!r} ({error}); pyiqa.list_models() names them") from None

    return NetworkMetric(metric, device, reference=metric.metric_mode == "FR")
