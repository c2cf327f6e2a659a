r"""Triton kernels for `spatial_attention`, which iterate over the keys; the score matrix never exists.

A program holds a block of queries of one image, reads keys and values block by block, and keeps the running maximum m,
the running sum l of exponentials and the unnormalized output, all float32: a block's scores s change them to

.. math:: m' = \max(m, \max s), \quad l' = l\,e^{m - m'} + \sum e^{s - m'}, \quad
          o' = o\,e^{m - m'} + e^{s - m'} v

With 512 channels the output of 64 queries alone takes half of an SM's registers (128 of a thread's 255 in 8 warps).
Reading q and k in chunks of channels with 64 keys a block spills, because all of a block's values then pass through
registers. What fits: q whole in shared memory, and blocks of few keys with all their channels, so that both products
are single `tl.dot`s and the next keys and values are loaded while one block is computed. On sm_80 that is 64 queries
and 16 keys in three stages (130 KB), in two where a program has 99 KB (sm_86, 89, 120). Nothing spills: 218 to 255
registers in 16 bit. float32 has no ieee matrix instruction; 32 queries and 16 keys in one stage take 175 to 214
registers.

On sm_90 and 100 a program has 128 queries, 32 keys a step and half of v's channels (`B_D`, 224 KB), because a matrix
instruction of a group of four warps has 64 rows. With 64 queries two groups share the rows and divide the keys: of 16
keys each multiplies 8. An instruction for 64 rows, 16 channels and n keys takes n/2 cycles and reads 2,048 + 32·n bytes
of shared memory at 128 a cycle: 18 cycles for 8 keys, 22 % of the rate, 24 for 32 keys, 67 %. So scores computed twice,
once for either half of v, still cost a third less than once in steps of 16 keys: for 64² pixels 98,000 cycles a program
of 128 for the scores, where it was 147,000, beside 33,000 for the second product. Keys and values are read by half as
many blocks of queries: 403 instead of 537 MB from L2. 64 queries with 32 keys spill.

Where there are too few blocks for the GPU (64 for a 64² latent), the keys too are divided over programs. Each part is
normalized and stored with its log-sum-exp, and a second kernel combines the parts in order. A part is an average of
values, so it is stored in their dtype: its rounding is as large as that of the result, and the weights, which sum to 1,
do not increase it. That writes and reads 2·C bytes a query and part in 16 bit, 17 MB in all for 64² pixels in two
parts, 5 µs of an H100's memory bandwidth, and makes 128 instead of 64 of its 132 SMs share 51 GFLOP.

Traffic: every block of queries reads all keys and values, but while these fit into two thirds of L2 they are read from
memory once (8 MB for 64² pixels in 16 bit). Otherwise programs that run at the same time iterate over the keys in about
the same order at the same speed and share what they read, so that keys and values are read from memory once for each
wave of programs: `passes` counts the waves, with one program an SM. A wave has programs of the same half of v.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.launch import Start
from resshift_fast.kernels.plans import planned
from resshift_fast.kernels.tuning import Config, Space, architecture, bucket

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_CHANNELS = 512
MIN_KEYS = 256  # of a part, at least: with fewer, combining the parts costs more than it saves
GPUS = {80: (108, 40), 86: (84, 6), 89: (128, 72), 90: (132, 50), 100: (148, 126), 120: (170, 96)}  # SMs, MB of L2
COMBINE_ELEMENTS = 2048  # of a program of the combining kernel

LOG2_E = tl.constexpr(1.4426950408889634)  # e^x is computed as 2^(x log2 e), because the hardware has exp2


def _config(b_m: int, b_n: int, num_warps: int, num_stages: int, hoist: bool = True, b_d: int = MAX_CHANNELS) -> Config:
    blocks = {"B_M": b_m, "B_N": b_n, "B_D": b_d, "HOIST": hoist}
    return Config(blocks, num_warps=num_warps, num_stages=num_stages)


def _candidates(key: tuple) -> list[Config]:
    channels, itemsize, _tokens = key
    blocks: dict[int, tuple[tuple[Any, ...], ...]]
    if itemsize == 4:
        blocks = {
            512: ((32, 16, 8, 1, False), (32, 16, 8, 2), (16, 16, 8, 2)),
            256: ((32, 16, 8, 2), (32, 16, 4, 2)),
        }
        return [_config(*c) for c in blocks.get(channels, ((64, 32, 8, 2), (32, 32, 4, 2), (32, 32, 8, 2)))]
    blocks = {
        512: (
            (128, 32, 8, 2, True, 256),
            (64, 32, 8, 2),
            (64, 32, 8, 1, False),
            (64, 16, 8, 2),
            (64, 16, 8, 3),
            (64, 16, 8, 3, False),
        ),
        256: ((128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 8, 2), (64, 32, 4, 2), (64, 32, 4, 3)),
        128: ((128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 2), (64, 64, 4, 3)),
    }
    return [_config(*c) for c in blocks.get(channels, ((128, 64, 4, 3), (128, 64, 8, 3), (64, 64, 4, 3)))]


def _default(arch: int, key: tuple) -> Config:
    channels, itemsize, _tokens = key
    small = arch in (86, 89) or arch >= 120  # 99 KB of shared memory for a program
    if itemsize == 4:
        if channels == 512:
            return _config(32, 16, 8, 1, False)
        if channels == 256:
            return _config(32, 16, 8, 2)
        return _config(32, 32, 8 if channels == 128 else 4, 2)
    if channels == 512:
        if arch in (90, 100):
            return _config(128, 32, 8, 2, b_d=256)
        return _config(64, 16, 8, 2 if small else 3)
    if channels == 256:
        return _config(64, 32, 4 if arch in (90, 100) else 8, 2)  # with mma.sync, 4 warps have too few registers
    return _config(64, 64, 4, 2 if channels == 128 else 3)


# Bucket: (channels as a power of two, itemsize, tokens as a power of two).
SPACE = Space("spatial_attention_kernel", _candidates, _default)


@triton.jit(do_not_specialize=["n_rows", "n_tokens", "n_parts", "tokens_each"])
def spatial_attention_kernel(
    p_q,  # [B, n_tokens, CHANNELS]
    p_k,  # [B, n_tokens, CHANNELS]
    p_v,  # [B, n_tokens, CHANNELS]
    p_out,  # [n_parts, B, n_tokens, CHANNELS]
    p_lse,  # [n_parts, B, n_tokens], float32: log2 of the sum of exponentials; None for a single part
    n_rows,  # B · n_tokens
    n_tokens,
    n_parts,  # of the keys
    tokens_each,  # keys of a part
    CHANNELS: tl.constexpr,
    B_M: tl.constexpr,
    B_N: tl.constexpr,
    B_C: tl.constexpr,
    B_D: tl.constexpr,  # channels of v of a program
    HOIST: tl.constexpr,  # whether addresses may be computed before the loop and stay in registers
):
    wait_for_previous()
    SCALE: tl.constexpr = CHANNELS**-0.5
    D_BLOCKS: tl.constexpr = (CHANNELS + B_D - 1) // B_D
    n_blocks = tl.cdiv(n_tokens, B_M)
    i_block = tl.program_id(0) % n_blocks  # adjacent programs share keys and values
    i_d = tl.program_id(0) // n_blocks % D_BLOCKS
    i_part = tl.program_id(0) // (n_blocks * D_BLOCKS) % n_parts
    i_image = (tl.program_id(0) // (n_blocks * D_BLOCKS) // n_parts).to(tl.int64)
    i_first = i_part * tokens_each
    i_last = tl.minimum(i_first + tokens_each, n_tokens)
    i_m = i_block * B_M
    o_m = tl.arange(0, B_M)
    o_n = tl.arange(0, B_N)
    o_c = tl.arange(0, B_C)
    m_c = o_c < CHANNELS
    m_q = (i_m + o_m < n_tokens)[:, None] & m_c[None, :]
    o_q = o_m[:, None] * CHANNELS + o_c[None, :]
    o_k = o_n[:, None] * CHANNELS + o_c[None, :]
    o_d = i_d * B_D + tl.arange(0, B_D)
    m_d = o_d < CHANNELS
    o_v = o_n[:, None] * CHANNELS + o_d[None, :]
    i_first_row = i_image * n_tokens  # int64, as all offsets made of it
    b_q = tl.load(p_q + (i_first_row + i_m) * CHANNELS + o_q, mask=m_q, other=0.0)

    b_max = tl.full([B_M], float("-inf"), tl.float32)
    b_sum = tl.zeros([B_M], tl.float32)
    b_out = tl.zeros([B_M, B_D], tl.float32)
    for i_n in tl.range(i_first, i_last, B_N, disable_licm=not HOIST):
        m_n = i_n + o_n < i_last
        i_offset = (i_first_row + i_n) * CHANNELS
        b_k = tl.load(p_k + i_offset + o_k, mask=m_n[:, None] & m_c[None, :], other=0.0)
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * (SCALE * LOG2_E)
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))
        b_next = tl.maximum(b_max, tl.max(b_s, axis=1))
        b_p = tl.exp2(b_s - b_next[:, None])
        b_decay = tl.exp2(b_max - b_next)
        b_sum = b_sum * b_decay + tl.sum(b_p, axis=1)
        b_max = b_next
        b_v = tl.load(p_v + i_offset + o_v, mask=m_n[:, None] & m_d[None, :], other=0.0)
        b_out = tl.dot(b_p.to(b_v.dtype), b_v, b_out * b_decay[:, None], input_precision="ieee")

    i_row = i_part * n_rows.to(tl.int64) + i_first_row + i_m
    b_out = b_out * (1.0 / b_sum)[:, None]
    m_m = i_m + o_m < n_tokens
    o_out = o_m[:, None] * CHANNELS + o_d[None, :]
    tl.store(p_out + i_row * CHANNELS + o_out, b_out.to(p_out.dtype.element_ty), mask=m_m[:, None] & m_d[None, :])
    if p_lse is not None:
        tl.store(p_lse + i_row + o_m, b_max + tl.log2(b_sum), mask=i_m + o_m < tl.where(i_d == 0, n_tokens, 0))


@triton.jit(do_not_specialize=["n_rows", "n_parts"])
def combine_parts_kernel(
    p_parts,  # [n_parts, n_rows, CHANNELS]
    p_lse,  # [n_parts, n_rows], float32
    p_out,  # [n_rows, CHANNELS]
    n_rows,
    n_parts,
    CHANNELS: tl.constexpr,
    B_R: tl.constexpr,
    B_C: tl.constexpr,
):
    wait_for_previous()
    o_r = tl.program_id(0).to(tl.int64) * B_R + tl.arange(0, B_R)
    o_c = tl.arange(0, B_C)
    m_r = o_r < n_rows
    m_out = m_r[:, None] & (o_c < CHANNELS)[None, :]
    o_out = o_r[:, None] * CHANNELS + o_c[None, :]
    b_max = tl.full([B_R], float("-inf"), tl.float32)
    for i_part in range(n_parts):
        b_max = tl.maximum(b_max, tl.load(p_lse + i_part * n_rows.to(tl.int64) + o_r, mask=m_r, other=0.0))

    b_sum = tl.zeros([B_R], tl.float32)
    b_out = tl.zeros([B_R, B_C], tl.float32)
    for i_part in range(n_parts):
        i_row = i_part * n_rows.to(tl.int64)
        b_weight = tl.exp2(tl.load(p_lse + i_row + o_r, mask=m_r, other=0.0) - b_max)
        b_sum += b_weight
        b_part = tl.load(p_parts + i_row * CHANNELS + o_out, mask=m_out, other=0.0).to(tl.float32)
        b_out += b_weight[:, None] * b_part
    tl.store(p_out + o_out, (b_out / b_sum[:, None]).to(p_out.dtype.element_ty), mask=m_out)


def unsupported(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why these kernels can't run a call; None if they can."""
    if q.dtype not in DTYPES:
        return f"{q.dtype} is not float32, float16 or bfloat16"
    channels = q.shape[1]
    if channels % 16 or channels > MAX_CHANNELS:
        return f"{channels} channels are not a multiple of 16 up to {MAX_CHANNELS}"
    return None


def _parts(n_programs: int, n_tokens: int, b_n: int, arch: int) -> tuple[int, int]:
    """The number of parts of the keys, and the keys of a part: whole blocks, and no part without keys."""
    n_parts = max(1, min(GPUS[arch][0] // n_programs, n_tokens // MIN_KEYS))
    tokens_each = triton.cdiv(triton.cdiv(n_tokens, n_parts), b_n) * b_n
    return triton.cdiv(n_tokens, tokens_each), tokens_each


def _passes(image_bytes: int, q_blocks: int, d_blocks: int, arch: int) -> dict[str, float]:
    """How often q, k and v, each of so many bytes an image, are read from memory."""
    n_sms, l2_megabytes = GPUS[arch]
    if 2 * image_bytes <= l2_megabytes * 2**20 * 2 // 3:
        return {}
    return {"p_q": d_blocks, "p_k": triton.cdiv(q_blocks * d_blocks, n_sms), "p_v": triton.cdiv(q_blocks, n_sms)}


def _architecture(device: torch.device) -> int:
    """The newest architecture of the table that is not newer than the device's."""
    return max((arch for arch in GPUS if arch <= architecture(device)), default=min(GPUS))


class Forward(NamedTuple):
    """Plan of `forward`: the first start, and the second one where the keys are divided."""

    n_parts: int
    attention: Start
    combine: Start


def _bucket(shape: tuple[int, ...], element_size: int, _: torch.device) -> tuple[int, int, int]:
    return triton.next_power_of_2(shape[1]), element_size, bucket(shape[2] * shape[3])


@planned(SPACE, _bucket)
def _forward(config: Config, shape: tuple[int, ...], element_size: int, device: torch.device) -> Forward:
    batch, channels, height, width = shape
    n_tokens = height * width
    n_rows, arch, b_c = batch * n_tokens, _architecture(device), triton.next_power_of_2(channels)
    b_d = min(config.blocks["B_D"], b_c)
    q_blocks, d_blocks = triton.cdiv(n_tokens, config.blocks["B_M"]), triton.cdiv(channels, b_d)
    n_blocks = q_blocks * d_blocks
    n_parts, tokens_each = _parts(batch * n_blocks, n_tokens, config.blocks["B_N"], arch)
    attention = Start(
        spatial_attention_kernel,
        (batch * n_blocks * n_parts,),
        *(n_rows, n_tokens, n_parts, tokens_each),
        passes=_passes(n_tokens * channels * element_size, q_blocks, d_blocks, arch),
        CHANNELS=channels,
        B_C=b_c,
        **(config.options | {"B_D": b_d}),
    )
    b_r = max(COMBINE_ELEMENTS // b_c, 1)
    grid = (triton.cdiv(n_rows, b_r),)
    combine = Start(combine_parts_kernel, grid, n_rows, n_parts, CHANNELS=channels, B_R=b_r, B_C=b_c)
    return Forward(n_parts, attention, combine)


def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Launch the kernels; returns the output, with the strides of `torch.empty_like(q)`."""
    shape = batch, channels, height, width = q.shape
    result = torch.empty_like(q)
    q, k, v = (x.contiguous(memory_format=torch.channels_last) for x in (q, k, v))
    direct = result.is_contiguous(memory_format=torch.channels_last)
    out = result if direct else torch.empty_like(q)

    def run(plan: Forward) -> tuple[Tensor]:
        if plan.n_parts == 1:
            plan.attention(q, k, v, out, None)
            return (out,)
        n_rows = batch * height * width
        parts = q.new_empty((plan.n_parts, n_rows, channels))
        lse = q.new_empty((plan.n_parts, n_rows), dtype=torch.float32)
        plan.attention(q, k, v, parts, lse)
        plan.combine(parts, lse, out)
        return (out,)

    run(_forward(q.device, shape, q.element_size(), q.device, trial=run))
    return result if direct else result.copy_(out)
