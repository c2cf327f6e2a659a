"""The operators of ResShift, each in a file of its own: formula, reference, checks and public function."""

from resshift_fast.ops.add_concat_group_norm import add_concat_group_norm
from resshift_fast.ops.concat import concat as concat
from resshift_fast.ops.conv2d import conv2d
from resshift_fast.ops.conv2d import conv2d_reads_packed as conv2d_reads_packed
from resshift_fast.ops.conv2d import conv2d_takes_norm as conv2d_takes_norm
from resshift_fast.ops.conv2d_sum import conv2d_sum as conv2d_sum
from resshift_fast.ops.conv2d_sum import conv2d_sums as conv2d_sums
from resshift_fast.ops.conv2d_winograd import pack_conv2d as pack_conv2d
from resshift_fast.ops.dense_block import dense_block as dense_block
from resshift_fast.ops.group_norm import group_norm
from resshift_fast.ops.norm_stats import writes_statistics as writes_statistics
from resshift_fast.ops.pointwise_conv2d import pointwise_conv2d
from resshift_fast.ops.residual_block import residual_block
from resshift_fast.ops.residual_block import residual_block_is_fused as residual_block_is_fused
from resshift_fast.ops.residual_shift import posterior_step, prior_sample, q_sample
from resshift_fast.ops.spatial_attention import spatial_attention
from resshift_fast.ops.swin_mlp import swin_mlp
from resshift_fast.ops.upsample_conv2d import sum_upsample_taps as sum_upsample_taps
from resshift_fast.ops.upsample_conv2d import upsample_conv2d
from resshift_fast.ops.vector_quantize import vector_quantize
from resshift_fast.ops.window_attention import window_attention
from resshift_fast.ops.window_attention_proj import window_attention_proj

__all__ = [
    "add_concat_group_norm",
    "conv2d",
    "group_norm",
    "pointwise_conv2d",
    "posterior_step",
    "prior_sample",
    "q_sample",
    "residual_block",
    "spatial_attention",
    "swin_mlp",
    "upsample_conv2d",
    "vector_quantize",
    "window_attention",
    "window_attention_proj",
]
