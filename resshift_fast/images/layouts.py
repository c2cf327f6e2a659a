"""The order of the axes of arrays and tensors: `layout` names them by letters, such as "BHWC"."""

from typing import Any, TypeVar

import numpy as np
from torch import Tensor

LAYOUTS = ("BCHW", "BHWC", "CHW", "HWC", "HW")
CHANNELS = (1, 3, 4)  # gray, RGB, RGB and alpha
Values = TypeVar("Values", np.ndarray, Tensor)


def check_layout(layout: Any) -> str | None:
    """`layout`, if it is None or one of `LAYOUTS`.

    Raises:
        ValueError: if it is not.
    """
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}, expected None or one of {', '.join(LAYOUTS)}")
    return layout


def layout_of(values: np.ndarray | Tensor, layout: str | None) -> str:
    """The layout of an array or tensor: the one given, else the usual one for its kind and rank.

    Raises:
        ValueError: if its shape does not fit.
    """
    shape, is_tensor = list(values.shape), isinstance(values, Tensor)
    usual = {4: "BCHW", 3: "CHW"} if is_tensor else {3: "HWC", 2: "HW"}
    wanted = [layout] if layout else list(usual.values())
    found = layout or usual.get(len(shape))
    if found and _fits(shape, found):
        return found
    kinds = " or ".join(f"[{', '.join(one)}]" for one in wanted)
    other = next((one for one in ("BHWC", "HWC", "BCHW", "CHW", "HW") if _fits(shape, one)), None)
    raise ValueError(
        f"{'a tensor' if is_tensor else 'an array'} must be {kinds}"
        f"{'' if wanted == ['HW'] else ' with C of 1, 3 or 4'}, "
        f"got {shape}{'' if other is None else f'; if that is {other}, give layout={other!r}'}"
    )


def _fits(shape: list[int], layout: str) -> bool:
    """Whether a shape without an empty axis has the layout's axes, and as many channels as an image."""
    if len(shape) != len(layout) or 0 in shape:
        return False
    return "C" not in layout or shape[layout.index("C")] in CHANNELS


def to_bchw(values: Values, layout: str) -> Values:
    """A view [B, C, H, W] of values in another layout."""
    order = [layout.index(axis) for axis in "BCHW" if axis in layout]
    view: Any = values
    view = view.permute(order) if isinstance(view, Tensor) else view.transpose(order)
    for place, axis in enumerate("BCHW"):
        if axis not in layout:
            view = view[(slice(None),) * place + (None,)]
    return view


def from_bchw(values: Values, layout: str) -> Values:
    """A view in a layout of values [B, C, H, W]; an axis that the layout lacks has length 1."""
    view: Any = values[tuple(slice(None) if axis in layout else 0 for axis in "BCHW")]
    kept = [axis for axis in "BCHW" if axis in layout]
    order = [kept.index(axis) for axis in layout]
    view = view.permute(order) if isinstance(view, Tensor) else view.transpose(order)
    return view
