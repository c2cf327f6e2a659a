"""One interface to all kinds of input: read pixels by index, write the result in bands, return it in the same kind."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resshift_fast import images
from resshift_fast.images import Photo
from resshift_fast.images.alpha import bleed_colors, fill_alpha
from resshift_fast.images.layouts import check_layout, from_bchw, layout_of, to_bchw


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

    def whole(self) -> Tensor:
        """All pixels, float32 [3, H, W] in [−1, 1]."""
        return self.crop(np.arange(self.height), np.arange(self.width))

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
        out = self._out[rows]
        if mask is not None:
            pixels = np.where(mask[rows, :, None], pixels, self._photo.pixels[rows])
        pixels = np.broadcast_to(pixels, out.shape)
        for channel in range(3):  # their planes are apart: at once NumPy would copy three values at a time
            out[:, :, channel] = pixels[:, :, channel]

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


def sources_of(image: Any, layout: str | None = None) -> tuple[list[Source], Callable[[list[Any]], Any]]:
    """The images in `image`, and a function that converts the list of their results to the kind of `image`.

    Args:
        image: path, bytes or open file of an image, PIL image, Photo, array or tensor of uint8, uint16 or floating
            point, or a list or tuple of these.
        layout: of arrays and tensors, one of `layouts.LAYOUTS`; None takes [H, W] or [H, W, C] for arrays, [B, C, H, W]
            or [C, H, W] for tensors.

    Returns:
        (sources, gather): gather takes the list of results.

    Raises:
        TypeError: for a kind or dtype that is not accepted. ValueError: for another rank, an unknown layout, and empty,
            NaN or out-of-range values. OSError, images.ImageError: for a file that cannot be read.
    """
    check_layout(layout)
    if isinstance(image, list | tuple):
        parts = [sources_of(one, layout) for one in image]
        counts = [len(sources) for sources, _ in parts]

        def gather(results: list[Any]) -> Any:
            taken = iter(results)
            whole = [back([next(taken) for _ in range(n)]) for (_, back), n in zip(parts, counts, strict=True)]
            return whole if isinstance(image, list) else tuple(whole)

        return [source for sources, _ in parts for source in sources], gather
    if isinstance(image, Tensor):
        return _tensor_sources(image, layout)
    if isinstance(image, np.ndarray):
        return _array_sources(image, layout)
    return [_photo_source(image)], lambda results: results[0]


def _photo_source(image: Any) -> PhotoSource:
    if isinstance(image, Photo):
        return PhotoSource(image)
    if images.is_file(image):
        return PhotoSource(images.read(image), images.to_pil)
    if hasattr(image, "getbands"):
        return PhotoSource(images.from_pil(image), images.to_pil)
    raise TypeError(
        f"cannot restore a {type(image).__name__}; give a path, the bytes of an image file, an open file, a PIL image, "
        "an array [H, W, 3], a tensor [B, 3, H, W], or a list of these"
    )


def _array_sources(array: np.ndarray, layout: str | None) -> tuple[list[Source], Callable[[list[Any]], Any]]:
    if array.dtype.kind not in "fu" or array.dtype.itemsize > 8 or array.dtype.type in (np.uint32, np.uint64):
        raise TypeError(
            f"an array must be uint8, uint16, or floating point in [0, 1], got {array.dtype}; convert it with "
            "array.astype(numpy.uint8) if its values are 0 to 255"
        )
    layout = layout_of(array, layout)
    planes = to_bchw(array, layout)
    if array.dtype.kind == "f":
        # torch takes neither another byte order nor negative strides.
        native = np.ascontiguousarray(planes, array.dtype.newbyteorder("="))
        sources, gather_floats = _float_sources(torch.from_numpy(native), "array")
        return sources, lambda results: np.ascontiguousarray(from_bchw(gather_floats(results).numpy(), layout))
    sources, gather = _integer_sources(planes, "array")
    return sources, lambda results: np.ascontiguousarray(from_bchw(gather(results), layout))


def _integer_sources(planes: np.ndarray, kind: str) -> tuple[list[Source], Callable[[list[np.ndarray]], np.ndarray]]:
    """The images in uint8 or uint16 [B, C, H, W]; the results are [1, C, H, W] each, and [B, C, H, W] together."""
    channels, batch = planes.shape[1], planes.shape[0]

    def source(image: np.ndarray, name: str) -> Source:
        pixels = image.transpose(1, 2, 0)
        alpha = np.ascontiguousarray(pixels[:, :, 3]) if channels == 4 else None
        wide = np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if channels == 1 else pixels[:, :, :3]
        return PhotoSource(Photo(np.ascontiguousarray(wide), alpha, gray=channels == 1, name=name), back)

    def back(photo: Photo) -> np.ndarray:
        whole = photo.pixels[:, :, :1] if channels == 1 else photo.pixels
        if photo.alpha is not None:
            whole = np.dstack([whole, photo.alpha])
        return whole.transpose(2, 0, 1)[None]

    sources = [source(image, kind if batch == 1 else f"{kind}[{i}]") for i, image in enumerate(planes)]
    return sources, lambda results: results[0] if batch == 1 else np.concatenate(results)


def _tensor_sources(tensor: Tensor, layout: str | None) -> tuple[list[Source], Callable[[list[Any]], Any]]:
    is_integer = tensor.dtype in (torch.uint8, torch.uint16)
    if not tensor.is_floating_point() and not is_integer:
        raise TypeError(
            f"a tensor must be floating point in [0, 1], uint8 or uint16, got {tensor.dtype}; use x.float() / 255, or "
            "x.byte(), if its values are 0 to 255"
        )
    if tensor.layout != torch.strided or tensor.is_meta:
        raise TypeError("a tensor must hold its pixels, got a sparse or meta tensor; use x.to_dense(), or give it data")
    layout = layout_of(tensor, layout)
    tensor = to_bchw(tensor.detach(), layout)
    if is_integer:
        sources, join = _integer_sources(tensor.cpu().numpy(), "tensor")
        device = tensor.device
        return sources, lambda results: from_bchw(torch.from_numpy(join(results)), layout).contiguous().to(device)
    sources, gather = _float_sources(tensor, "tensor")
    return sources, lambda results: from_bchw(gather(results), layout).contiguous()


def _float_sources(tensor: Tensor, kind: str) -> tuple[list[Source], Callable[[list[Tensor]], Tensor]]:
    """The images in floats [B, C, H, W]; the results together are [B, C, H, W]."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"the {kind} has NaN or infinite values; values must be in [0, 1]")
    low, high = float(tensor.min()), float(tensor.max())
    # Values that were scaled and scaled back are off by rounding errors.
    tolerance = max(1e-5, 2 * torch.finfo(tensor.dtype).eps)
    if low < -tolerance or high > 1 + tolerance:
        raise ValueError(f"the {kind}'s values are in [{low:.4g}, {high:.4g}], expected [0, 1]; scale or clamp them")
    if low < 0 or high > 1:
        tensor = tensor.clamp(0, 1)
    sources: list[Source] = [
        TensorSource(one, kind if len(tensor) == 1 else f"{kind}[{i}]") for i, one in enumerate(tensor)
    ]
    return sources, lambda results: results[0][None] if len(results) == 1 else torch.stack(results)
