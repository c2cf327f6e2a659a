"""Kernels with one fault each, and correct ones, on which `scripts/kernel_budgets.py` is tested."""

import torch
import triton
import triton.language as tl
from kernel_proof.budgets import Exemption
from kernel_proof.launch_cases import LaunchCase

from resshift_fast.kernels.launch import Start

BLOCK = 1024
SIZE = 1 << 20


@triton.jit
def sound_kernel(
    p_x,  # [n]
    p_y,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = offsets < n
    tl.store(p_y + offsets, tl.load(p_x + offsets, mask=m_x, other=0.0), mask=m_x)


@triton.jit
def short_address_kernel(
    p_x,  # [n]
    p_y,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_x = offsets < n
    tl.store(p_y + offsets, tl.load(p_x + offsets, mask=m_x, other=0.0), mask=m_x)


@triton.jit
def late_extension_kernel(
    p_x,  # [n]
    p_y,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    offsets = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    m_x = offsets < n
    tl.store(p_y + offsets, tl.load(p_x + offsets, mask=m_x, other=0.0), mask=m_x)


@triton.jit
def narrow_kernel(
    p_x,  # [n + 1]
    p_y,  # [n + 1]
    n,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = offsets < n
    tl.store(p_y + offsets + 1, tl.load(p_x + offsets + 1, mask=m_x, other=0.0), mask=m_x)


@triton.jit
def spilling_kernel(
    p_x,  # [n]
    p_y,  # [n]
    n,
    BLOCK: tl.constexpr,
):
    # Each thread keeps 256 values in registers until the maximum is known, which is too many.
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    m_x = offsets < n
    b_x = tl.load(p_x + offsets, mask=m_x, other=0.0).to(tl.float32)
    tl.store(p_y + offsets, (b_x - tl.max(b_x, axis=0)).to(p_y.dtype.element_ty), mask=m_x)


@triton.jit
def tf32_kernel(
    p_x,  # [SIDE, SIDE]
    p_y,  # [SIDE, SIDE]
    SIDE: tl.constexpr,
):
    offsets = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    b_x = tl.load(p_x + offsets)
    tl.store(p_y + offsets, tl.dot(b_x, b_x, input_precision="tf32"))


@triton.jit
def ieee_kernel(
    p_x,  # [SIDE, SIDE]
    p_y,  # [SIDE, SIDE]
    SIDE: tl.constexpr,
):
    offsets = tl.arange(0, SIDE)[:, None] * SIDE + tl.arange(0, SIDE)[None, :]
    b_x = tl.load(p_x + offsets)
    tl.store(p_y + offsets, tl.dot(b_x, b_x, input_precision="ieee").to(p_y.dtype.element_ty))


@triton.jit
def greedy_kernel(
    p_x,  # [SIDE, SIDE]
    p_y,  # [SIDE, SIDE]
    SIDE: tl.constexpr,
):
    # A transpose through 128 KiB of shared memory.
    rows, columns = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    tl.store(p_y + columns * SIDE + rows, tl.load(p_x + rows * SIDE + columns))


@triton.jit
def broken_kernel(
    p_x,  # [n]
    n,
):
    tl.store(p_x + tl.arange(0, n), 0.0)


def _copy(kernel, block: int = BLOCK):
    def launcher(x: torch.Tensor) -> None:
        Start(kernel, (triton.cdiv(x.numel(), block),), x.numel(), BLOCK=block)(x, torch.empty_like(x))

    return launcher


def _square(kernel, side: int, num_warps: int = 4):
    def launcher(x: torch.Tensor) -> None:
        Start(kernel, (1,), SIDE=side, num_warps=num_warps)(x, torch.empty_like(x))

    return launcher


sound = _copy(sound_kernel)
short_address = _copy(short_address_kernel)
late_extension = _copy(late_extension_kernel)
narrow = _copy(narrow_kernel)
spilling = _copy(spilling_kernel, block=1 << 15)
tf32 = _square(tf32_kernel, 32)
ieee = _square(ieee_kernel, 32)
greedy = _square(greedy_kernel, 256, num_warps=32)


def broken(x: torch.Tensor) -> None:
    """Launch a kernel that does not compile."""
    Start(broken_kernel, (1,), x.numel())(x)


def _launch_case(launcher: str, dtype: torch.dtype) -> LaunchCase:
    return LaunchCase(
        f"bad_kernels.{launcher}", "n", dtype, lambda dtype: (torch.empty(SIZE, dtype=dtype, device="meta"),), ""
    )


LAUNCH_CASES = (
    _launch_case("sound", torch.float16),
    _launch_case("short_address", torch.float16),
    _launch_case("late_extension", torch.float16),
    _launch_case("narrow", torch.float16),
    _launch_case("spilling", torch.float32),
    _launch_case("tf32", torch.float32),
    _launch_case("ieee", torch.float16),
    _launch_case("greedy", torch.float32),
    _launch_case("broken", torch.float32),
)
EXEMPTIONS = (Exemption("late_extension_kernel *", "address", "shows that an exempted finding is not reported"),)
