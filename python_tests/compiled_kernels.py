"""Launches of a small kernel that cover how Triton specializes arguments, and sources of jobs that fail."""

import json
import os
import sys
import time

import torch
import triton
import triton.language as tl

from resshift_fast.kernels.ahead import job_of
from resshift_fast.kernels.launch import Launch

ARCH = 90


@triton.jit(do_not_specialize=["free"], do_not_specialize_on_alignment=["stride"])
def many_kernel(
    p_x,  # [n]
    p_y,  # [n]
    p_shift,  # [n] or None
    n,
    stride,
    free,
    scale,
    flag,
    BLOCK: tl.constexpr,
    DTYPE: tl.constexpr,
    MODE: tl.constexpr = "add",
):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    m_x = i < n
    b_x = tl.load(p_x + i * stride, mask=m_x, other=0).to(DTYPE) * scale + free
    if p_shift is not None:
        b_x += tl.load(p_shift + i, mask=m_x, other=0)
    if flag:
        b_x = -b_x
    if MODE == "double":
        b_x *= 2
    tl.store(p_y + i, b_x, mask=m_x)


@triton.jit
def wrong_kernel(p_x, BLOCK: tl.constexpr):
    tl.store(p_x + tl.arange(0, BLOCK), undefined_name)  # noqa: F821


def zeros(dtype: torch.dtype = torch.float32, offset: int = 0) -> torch.Tensor:
    """Zeros whose first element is `offset` elements after an aligned address."""
    return torch.zeros(64, dtype=dtype)[offset:]


def launches() -> list[Launch]:
    """Launches with every kind of pointer, number and constant; no two have the same specialization."""
    x, y = zeros(), zeros()
    half, brain = zeros(torch.float16), zeros(torch.bfloat16, 3)
    long, byte = zeros(torch.int64), zeros(torch.uint8, 16)
    table = [
        ((x, y, None, 64, 1, 1, 0.5, True), {"BLOCK": 64, "DTYPE": tl.float32}, 4),
        ((zeros(offset=1), y, y, 17, 16, 16, 1.0, False), {"BLOCK": 32, "DTYPE": tl.float16, "MODE": "double"}, 2),
        ((half, brain, x, 1, 3, 2**40, 2.0, False), {"BLOCK": 64, "DTYPE": tl.bfloat16}, 4),
        ((long, zeros(torch.int32), None, 2**31, 2**33, 5, 0.5, True), {"BLOCK": 64, "DTYPE": tl.float32}, 1),
        ((byte, zeros(torch.float64), None, -16, 0, -1, 0.5, True), {"BLOCK": 64, "DTYPE": tl.float32}, 4),
        ((zeros(torch.bool), y, None, 2**31 + 1, 2, 0, 0.5, False), {"BLOCK": 64, "DTYPE": tl.float32}, 4),
    ]
    return [
        Launch(many_kernel, (1,), arguments, constants, num_warps, 3, {}) for arguments, constants, num_warps in table
    ]


def emit_launches(emit) -> int:
    """A source that emits every job twice and returns the number of different jobs."""
    jobs = [job_of(launch, ARCH) for launch in launches()]
    for job in jobs + jobs:
        emit(job)
    return len(jobs)


def emit_wrong(emit) -> None:
    """A source that emits a job that does not compile, and one that does."""
    emit(job_of(Launch(wrong_kernel, (1,), (zeros(),), {"BLOCK": 16}, 1, 1, {}), ARCH))
    emit(job_of(launches()[0], ARCH))


def refuse(emit) -> None:
    """A source that raises."""
    raise ValueError("nothing to\nemit")


def die(emit) -> None:
    """A source that ends its process."""
    print("out of patience", file=sys.stderr, flush=True)
    os._exit(3)


def wait(emit, file: str) -> None:
    """A source that writes its process id to `file` and then sleeps."""
    with open(file, "w") as out:
        out.write(str(os.getpid()))
    time.sleep(100)


class Driver:
    """A fake driver of a machine with one GPU."""

    def get_current_target(self):
        return triton.backends.compiler.GPUTarget("cuda", ARCH, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


if __name__ == "__main__":  # print for each launch whether the JIT finds its kernel in the cache
    from compiled_kernels import launches as imported_launches

    found = []
    triton.knobs.compilation.listener = lambda cache_hit, **_: found.append(cache_hit)
    triton.runtime.driver.set_active(Driver())
    for one in imported_launches():
        one.kernel.run(*one.arguments, grid=one.grid, warmup=True, **one.options, **one.constants)
    print(json.dumps(found))
