"""Operators of ResShift with Triton kernels, and the same in plain PyTorch where there is no GPU.

The kernel that runs is verified against float64 before its first use; `use_backend("reference")` prefers plain PyTorch.
`Schedule` makes the coefficients of `posterior_step`, `prior_sample` and `q_sample`; it needs NumPy.
"""

from typing import TYPE_CHECKING, Any

from resshift_fast.apps.hub import layers
from resshift_fast.backends import use_backend
from resshift_fast.ops import (
    add_concat_group_norm,
    conv2d,
    group_norm,
    pointwise_conv2d,
    posterior_step,
    prior_sample,
    q_sample,
    residual_block,
    spatial_attention,
    swin_mlp,
    upsample_conv2d,
    vector_quantize,
    window_attention,
    window_attention_proj,
)

if TYPE_CHECKING:
    from resshift_fast.diffusion.schedule import Schedule as Schedule

__all__ = [
    "Schedule",
    "add_concat_group_norm",
    "conv2d",
    "group_norm",
    "layers",
    "pointwise_conv2d",
    "posterior_step",
    "prior_sample",
    "q_sample",
    "residual_block",
    "spatial_attention",
    "swin_mlp",
    "upsample_conv2d",
    "use_backend",
    "vector_quantize",
    "window_attention",
    "window_attention_proj",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name != "Schedule":
            raise AttributeError(f"there is no {name!r}; there are {', '.join(__all__)}")
        from resshift_fast.diffusion.schedule import Schedule

        return Schedule
