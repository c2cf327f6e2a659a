"""Triton kernels for `vector_quantize`: distance, argmin and gather in one launch; no distance matrix exists.

A program takes BLOCK_M pixels of one image and streams the codebook past them in tiles of BLOCK_N entries. Every
slot [pixel, entry of the tile] holds its own least distance and the tile where it occurred, so that a tile costs
comparisons but no reduction over threads; one reduction at the end takes the least distance and, among equals, the
lowest index. A slot changes only for a strictly smaller distance: ties give the lowest index, and NaN gives index 0.

Up to MAX_UNROLLED channels, distances are sums of (z − e)² without matrix instructions. These do not cancel, so that
near-ties are decided as in exact arithmetic. Wider codebooks use |e|² − 2 z·e with float32 products. Pixel blocks are
small enough to fill the GPU at a latent of 64², so that the codebook need not be split over programs.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.tuning import Config, Space, bucket

MAX_UNROLLED = 8  # channels whose distances are summed one by one
BLOCK_K = 16  # channels of one product: `tl.dot` takes at least 16
BLOCK_C = 32  # channels gathered at once


def _config(block_m: int, block_n: int, num_warps: int) -> Config:
    return Config({"BLOCK_M": block_m, "BLOCK_N": block_n}, num_warps=num_warps)


# With as many entries a tile as threads, a thread compares one entry with all pixels of the block: each load of the
# codebook is used for BLOCK_M distances, and registers limit BLOCK_M. At 64² pixels, 16 a program fill 132 SMs.
SMALL = Space(
    "vector_quantize_small",
    candidates=lambda bucket: [_config(*c) for c in ((8, 256, 4), (16, 128, 4), (16, 256, 4), (16, 256, 8))],
    default=lambda arch, bucket: _config(16, 256, 8),
)
# Bucket of both: pixels of the batch, channels.
LARGE = Space(
    "vector_quantize_large",
    candidates=lambda bucket: [_config(m, n, w) for m in (16, 32, 64) for n, w in ((64, 4), (128, 8))],
    default=lambda arch, bucket: _config(16, 64, 4) if bucket[0] <= 1 << 13 else _config(64, 128, 8),
)


@triton.jit
def _lowest_nearest(b_best, b_start, BLOCK_N: tl.constexpr):
    """Index [BLOCK_M] of the least distance over all slots, the lowest among equals."""
    b_index = b_start + tl.arange(0, BLOCK_N)[None, :]
    b_least = tl.min(b_best, axis=1)
    # A row whose distances are all NaN or infinite keeps the first slot of the first tile.
    return tl.min(tl.where(b_best == b_least[:, None], b_index, 2147483647), axis=1)


@triton.jit
def vector_quantize_small_kernel(
    p_z,  # [B, C, H, W]
    p_codebook,  # [N, C]
    p_quantized,  # [B, C, H, W] in memory
    p_indices,  # [B, H, W], int64
    pixels,
    num_entries,
    stride_zb,
    stride_zc,
    stride_zp,
    C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    wait_for_previous()
    num_blocks = tl.cdiv(pixels, BLOCK_M)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    b_pixel = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_pixel = b_pixel < pixels
    p_image = p_z + i_image * stride_zb + b_pixel * stride_zp
    b_z = ()
    for c in tl.static_range(C):
        b_z += (tl.load(p_image + c * stride_zc, mask=m_pixel, other=0.0).to(tl.float32),)  # type: ignore[assignment]
    b_best = tl.full((BLOCK_M, BLOCK_N), float("inf"), tl.float32)
    b_start = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, num_entries, BLOCK_N):
        b_entry = start + tl.arange(0, BLOCK_N)
        m_entry = b_entry < num_entries
        p_entry = p_codebook + b_entry.to(tl.int64) * C
        b_distance = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for c in tl.static_range(C):
            # Entries past the end are infinitely far, so that no slot takes them.
            b_e = tl.load(p_entry + c, mask=m_entry, other=float("inf")).to(tl.float32)
            b_difference = b_z[c][:, None] - b_e[None, :]
            b_distance += b_difference * b_difference
        m_nearer = b_distance < b_best
        b_best = tl.where(m_nearer, b_distance, b_best)
        b_start = tl.where(m_nearer, start, b_start)
    b_index = _lowest_nearest(b_best, b_start, BLOCK_N).to(tl.int64)
    tl.store(p_indices + i_image * pixels + b_pixel, b_index, mask=m_pixel)
    for c in tl.static_range(C):
        b_e = tl.load(p_codebook + b_index * C + c, mask=m_pixel, other=0.0).to(tl.float32)
        p_channel = p_quantized + (i_image * C + c) * pixels + b_pixel
        tl.store(p_channel, b_e.to(p_quantized.dtype.element_ty), mask=m_pixel)


@triton.jit
def vector_quantize_large_kernel(
    p_z,  # [B, C, H, W]
    p_codebook,  # [N, C]
    p_quantized,  # [B, C, H, W] in memory
    p_indices,  # [B, H, W], int64
    pixels,
    num_entries,
    stride_zb,
    stride_zc,
    stride_zp,
    C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    wait_for_previous()
    num_blocks = tl.cdiv(pixels, BLOCK_M)
    i_image = (tl.program_id(0) // num_blocks).to(tl.int64)
    b_pixel = (tl.program_id(0) % num_blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    m_pixel = b_pixel < pixels
    p_image = p_z + i_image * stride_zb + b_pixel * stride_zp
    b_best = tl.full((BLOCK_M, BLOCK_N), float("inf"), tl.float32)
    b_start = tl.zeros((BLOCK_M, BLOCK_N), tl.int32)
    for start in range(0, num_entries, BLOCK_N):
        b_entry = start + tl.arange(0, BLOCK_N)
        m_entry = b_entry < num_entries
        p_entry = p_codebook + b_entry.to(tl.int64) * C
        b_product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        b_norm = tl.zeros((BLOCK_N,), tl.float32)
        for k in range(0, C, BLOCK_K):
            b_k = k + tl.arange(0, BLOCK_K)
            m_z = m_pixel[:, None] & (b_k < C)[None, :]
            m_e = (b_k < C)[:, None] & m_entry[None, :]
            b_z = tl.load(p_image[:, None] + b_k.to(tl.int64)[None, :] * stride_zc, mask=m_z, other=0.0)
            b_e = tl.load(p_entry[None, :] + b_k[:, None], mask=m_e, other=0.0).to(tl.float32)
            b_product = tl.dot(b_z.to(tl.float32), b_e, b_product, input_precision="ieee")
            b_norm += tl.sum(b_e * b_e, axis=0)
        b_norm = tl.where(m_entry, b_norm, float("inf"))
        b_distance = b_norm[None, :] - 2.0 * b_product
        m_nearer = b_distance < b_best
        b_best = tl.where(m_nearer, b_distance, b_best)
        b_start = tl.where(m_nearer, start, b_start)
    b_index = _lowest_nearest(b_best, b_start, BLOCK_N).to(tl.int64)
    tl.store(p_indices + i_image * pixels + b_pixel, b_index, mask=m_pixel)
    for c in range(0, C, BLOCK_C):
        b_c = c + tl.arange(0, BLOCK_C)
        m_q = m_pixel[:, None] & (b_c < C)[None, :]
        b_e = tl.load(p_codebook + b_index[:, None] * C + b_c[None, :], mask=m_q, other=0.0).to(tl.float32)
        p_q = p_quantized + (i_image * C + b_c.to(tl.int64))[None, :] * pixels + b_pixel[:, None]
        tl.store(p_q, b_e.to(p_quantized.dtype.element_ty), mask=m_q)


def unsupported(z: Tensor, codebook: Tensor) -> str | None:
    """Why the kernels can't run this call, or None."""
    if z.dtype == torch.float64:
        return "z is float64"
    return None


def _bucket(shape: tuple[int, ...], *_: object) -> tuple[int, int]:
    batch, channels, height, width = shape
    return bucket(batch * height * width), channels


def _plan(
    kernel: Any, config: Config, shape: tuple[int, ...], num_entries: int, strides: tuple[int, ...], **constants: Any
) -> Start:
    batch, channels, height, width = shape
    grid = (batch * triton.cdiv(height * width, config.blocks["BLOCK_M"]),)
    values = (height * width, num_entries, *strides)
    return Start(kernel, grid, *values, C=channels, **constants, **config.options)


@planned(SMALL, _bucket)
def _small(config: Config, shape: tuple[int, ...], num_entries: int, strides: tuple[int, ...]) -> Start:
    """Plan for z of this shape with these strides of images, channels and pixels: up to MAX_UNROLLED channels."""
    return _plan(vector_quantize_small_kernel, config, shape, num_entries, strides)


@planned(LARGE, _bucket)
def _large(config: Config, shape: tuple[int, ...], num_entries: int, strides: tuple[int, ...]) -> Start:
    """The same for more channels."""
    constants = {"BLOCK_K": BLOCK_K, "BLOCK_C": BLOCK_C}
    return _plan(vector_quantize_large_kernel, config, shape, num_entries, strides, **constants)


def forward(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """Launch the kernel; returns (quantized [B, C, H, W] contiguous in z's dtype, indices int64 [B, H, W])."""
    shape = batch, channels, height, width = z.shape
    if height > 1 and width > 1 and z.stride(2) != width * z.stride(3):
        z = z.contiguous()  # the kernels compute a pixel's offset as a multiple of its index in the image
    image, channel, row, column = z.stride()
    strides = (image, channel, column if width > 1 else row)
    quantized = torch.empty_like(z, memory_format=torch.contiguous_format)
    indices = z.new_empty((batch, height, width), dtype=torch.int64)
    codebook = codebook.contiguous()

    def run(start: Start) -> tuple[Tensor, ...]:
        start(z, codebook, quantized, indices)
        return quantized, indices

    plan = _small if channels <= MAX_UNROLLED else _large
    run(plan(z.device, shape, codebook.shape[0], strides, trial=run))
    return quantized, indices
