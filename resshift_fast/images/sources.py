"""One interface to all kinds of input: read pixels by index, write the result in bands, return it in the same kind."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import images
from resshift_fast.images import Photo
from resshift_fast.images.alpha import bleed_colors, fill_alpha


class Source(ABC):
    """One image on its way through the pipeline.

    Attributes:
        height, width: input pixels. name: for messages.
    """

    height: int
    width: int
    name: str

    @abstractmethod
    def crop(self, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        """Pixels at the given indices, float32 [3, len(rows), len(columns)] in [−1, 1]."""

    @abstractmethod
    def begin(self, scale: int, mask: np.ndarray | None = None) -> None:
        """Allocate the result, whose sides are `scale` times the input's.

        The mask, bool [H, W], is True where to fill in: the networks see no colour of it, and its erased parts become
        visible.
        """

    @abstractmethod
    def write(self, top: int, band: np.ndarray, mask: np.ndarray | None) -> None:
        """Store result rows from `top` on, float32 [3, height, W·scale] in [−1, 1].

        Pixels outside `mask`, bool [H, W] or None for all, keep their input values.
        """

    @abstractmethod
    def result(self) -> Any:
        """The finished image, in the kind of the input."""


class PhotoSource(Source):
    """8- and 16-bit images: files, PIL images, arrays, Photos.

    Args:
        photo: the image. back: converts the restored Photo to the input's kind.
    """

    def __init__(self, photo: Photo, back: Callable[[Photo], Any] = lambda photo: photo):
        self._photo, self._back = photo, back
        self.height, self.width, self.name = photo.height, photo.width, photo.name

    def crop(self, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        pixels = images.to_float(self._seen[rows[:, None], columns[None, :]])
        return torch.from_numpy(pixels).permute(2, 0, 1) * 2 - 1

    def begin(self, scale: int, mask: np.ndarray | None = None) -> None:
        photo, self._mask = self._photo, mask
        self._seen = photo.pixels if photo.alpha is None else bleed_colors(photo.pixels, photo.alpha, mask)
        self._out = np.empty((self.height * scale, self.width * scale, 3), dtype=self._photo.pixels.dtype)

    def write(self, top: int, band: np.ndarray, mask: np.ndarray | None) -> None:
        values = band.transpose(1, 2, 0) + 1
        values /= 2
        pixels = images.from_float(values, self._out.dtype)
        if self._photo.gray:
            pixels = images.luma(pixels)[:, :, None]
        rows = slice(top, top + band.shape[1])
        self._out[rows] = pixels if mask is None else np.where(mask[rows, :, None], pixels, self._photo.pixels[rows])

    def result(self) -> Any:
        alpha = self._photo.alpha
        if alpha is not None:
            alpha = images.resize_alpha(alpha, self._out.shape[:2])
            alpha = alpha if self._mask is None else fill_alpha(alpha, self._mask)
        return self._back(replace(self._photo, pixels=self._out, alpha=alpha))


class TensorSource(Source):
    """One [C, H, W] float tensor in [0, 1] with 1 (gray), 3 (RGB) or 4 (RGB and alpha) channels.

    Args:
        pixels: the tensor, on any device. name: for messages.
    """

    def __init__(self, pixels: Tensor, name: str = "tensor"):
        self._pixels = pixels
        self._values = self._pixels.to("cpu", torch.float32).numpy()
        self.height, self.width, self.name = pixels.shape[1], pixels.shape[2], name

    def crop(self, rows: np.ndarray, columns: np.ndarray) -> Tensor:
        pixels = self._seen[:, rows[:, None], columns[None, :]]
        return torch.from_numpy(np.broadcast_to(pixels, (3, *pixels.shape[1:])).copy()) * 2 - 1

    def begin(self, scale: int, mask: np.ndarray | None = None) -> None:
        channels = self._values.shape[0]
        self._seen = self._values
        if channels == 4:
            colors = bleed_colors(self._values[:3].transpose(1, 2, 0), self._values[3], mask)
            self._seen = colors.transpose(2, 0, 1)
        self._out = torch.empty(channels, self.height * scale, self.width * scale, dtype=self._pixels.dtype)
        if channels == 4:
            alpha = self._pixels[3:].cpu()
            if mask is not None:
                alpha = self._filled_alpha(mask)
            elif scale > 1:
                alpha = F.interpolate(alpha.float()[None], scale_factor=scale, mode="bicubic").clamp(0, 1)[0]
            self._out[3:] = alpha

    def _filled_alpha(self, mask: np.ndarray) -> Tensor:
        """`fill_alpha` [1, H, W], in the tensor's own precision where it does not change."""
        filled = fill_alpha(self._values[3], mask)
        changed = torch.from_numpy(filled != self._values[3])
        alpha = self._pixels[3].to("cpu")
        return torch.where(changed, torch.from_numpy(filled).to(alpha.dtype), alpha)[None]

    def write(self, top: int, band: np.ndarray, mask: np.ndarray | None) -> None:
        pixels = np.clip((band + 1) / 2, 0, 1)
        if self._values.shape[0] == 1:
            pixels = images.luma(pixels.transpose(1, 2, 0))[None]
        rows = slice(top, top + band.shape[1])
        colours = min(3, self._values.shape[0])
        self._out[:colours, rows] = torch.from_numpy(pixels).to(self._out.dtype)
        if mask is not None:
            known = torch.from_numpy(~mask[rows]).expand(colours, -1, -1)
            source = self._pixels[:colours, rows].to("cpu")
            self._out[:colours, rows][known] = source[known]

    def result(self) -> Tensor:
        return self._out.to(self._pixels.device)


def sources_of(image: Any) -> tuple[list[Source], Callable[[list[Any]], Any]]:
    """The images in `image`, and a function that converts the list of their results to the kind of `image`.

    Args:
        image: path, PIL image, Photo, uint8/uint16 array, float tensor, or a list or tuple of these.

    Returns:
        (sources, gather): gather takes the list of results.

    Raises:
        TypeError: for a kind, rank or dtype that is not accepted. ValueError: for empty, NaN or out-of-range values.
        OSError, images.ImageError: for a file that cannot be read.
    """
    if isinstance(image, list | tuple):
        parts = [sources_of(one) for one in image]
        counts = [len(sources) for sources, _ in parts]

        def gather(results: list[Any]) -> Any:
            taken = iter(results)
            whole = [back([next(taken) for _ in range(n)]) for (_, back), n in zip(parts, counts, strict=True)]
            return whole if isinstance(image, list) else tuple(whole)

        return [source for sources, _ in parts for source in sources], gather
    if isinstance(image, Tensor):
        return _tensor_sources(image)
    return [_photo_source(image)], lambda results: results[0]


def _photo_source(image: Any) -> PhotoSource:
    if isinstance(image, Photo):
        return PhotoSource(image)
    if isinstance(image, str | PathLike):
        return PhotoSource(images.read(image), images.to_pil)
    if isinstance(image, np.ndarray):
        return _array_source(image)
    if hasattr(image, "getbands"):
        return PhotoSource(images.from_pil(image), images.to_pil)
    raise TypeError(
        f"cannot restore a {type(image).__name__}; give a path, a PIL image, a uint8 or uint16 array [H, W, 3], "
        "a float tensor [B, 3, H, W] in [0, 1], or a list of these"
    )


def _array_source(array: np.ndarray) -> PhotoSource:
    if array.dtype not in (np.uint8, np.uint16):
        raise TypeError(
            f"an array must be uint8 or uint16, got {array.dtype}; floats go in as a tensor [B, 3, H, W] in [0, 1]"
        )
    channels = 1 if array.ndim == 2 else array.shape[-1]
    if array.ndim not in (2, 3) or channels not in (1, 3, 4) or 0 in array.shape:
        raise ValueError(f"an array must be [H, W], or [H, W, C] with C of 1, 3 or 4, got {list(array.shape)}")
    planes = array[:, :, None] if array.ndim == 2 else array
    gray = channels == 1
    pixels = np.broadcast_to(planes, (*planes.shape[:2], 3)).copy() if gray else np.ascontiguousarray(planes[:, :, :3])
    alpha = np.ascontiguousarray(planes[:, :, 3]) if channels == 4 else None

    def back(photo: Photo) -> np.ndarray:
        if gray:
            return photo.pixels[:, :, 0].copy() if array.ndim == 2 else photo.pixels[:, :, :1].copy()
        return photo.pixels if photo.alpha is None else np.dstack([photo.pixels, photo.alpha])

    return PhotoSource(Photo(pixels, alpha, gray=gray, name="array"), back)


def _tensor_sources(tensor: Tensor) -> tuple[list[Source], Callable[[list[Any]], Any]]:
    if not tensor.is_floating_point():
        raise TypeError(f"a tensor must be floating point in [0, 1], got {tensor.dtype}; use x.float() / 255 for uint8")
    if tensor.dim() not in (3, 4) or tensor.shape[-3] not in (1, 3, 4) or tensor.numel() == 0:
        raise ValueError(f"a tensor must be [B, C, H, W] or [C, H, W] with C of 1, 3 or 4, got {list(tensor.shape)}")
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError("a tensor must hold its pixels, got a sparse or meta tensor; use x.to_dense(), or give it data")
    if not torch.isfinite(tensor).all():
        raise ValueError("the tensor has NaN or infinite values; values must be in [0, 1]")
    tensor = tensor.detach()
    low, high = float(tensor.min()), float(tensor.max())
    # Values that were scaled and scaled back are off by rounding errors.
    tolerance = max(1e-5, 2 * torch.finfo(tensor.dtype).eps)
    if low < -tolerance or high > 1 + tolerance:
        raise ValueError(f"the tensor's values are in [{low:.4g}, {high:.4g}], expected [0, 1]; scale or clamp them")
    if low < 0 or high > 1:
        tensor = tensor.clamp(0, 1)
    if tensor.dim() == 3:
        return [TensorSource(tensor)], lambda results: results[0]
    sources: list[Source] = [TensorSource(one, f"tensor[{i}]") for i, one in enumerate(tensor)]
    return sources, torch.stack
