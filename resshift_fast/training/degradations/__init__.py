"""Degradations, which make the low-quality pictures that a model learns to restore.

`mixture` works picture by picture in 8 bits; the others work on whole batches in torch, on any device. There a draw, a
plain dataclass of the random parameters, is separate from its application, so that a draw can be given.
"""

from resshift_fast.training.degradations.mixture import (
    RESIZE_KINDS,
    Mixture,
    add_noise,
    from_config,
    gaussian_blur,
    jpeg,
    resize,
)

__all__ = ["RESIZE_KINDS", "Mixture", "add_noise", "from_config", "gaussian_blur", "jpeg", "resize"]
