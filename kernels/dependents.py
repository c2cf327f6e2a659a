"""Programmatic dependent launch: a kernel's blocks are set up while its predecessor's last blocks still run.

A chain of small kernels spends much of its time between them: a kernel starts when the one before has ended and its
writes have reached memory. From compute capability 9.0 on, a kernel launched with an attribute may start as soon as all
blocks of its predecessor have said so (`griddepcontrol.launch_dependents`) or ended. It must then wait
(`griddepcontrol.wait`) before it touches what that one reads or writes. Triton offers both instructions, and the
attribute as the launch option `launch_pdl` ("CUDA C++ Programming Guide", programmatic dependent launch and
synchronization; "PTX ISA", griddepcontrol).

RESSHIFT_FAST_PDL=1 turns it on, read when the package is imported; it is off by default, because it was compiled but
never run on a GPU. Results do not depend on it. The reasons why that holds:

* Every kernel begins with `wait_for_previous`, before any access to memory: whatever its predecessor wrote is visible,
  and nothing is overwritten that it still reads. Not even weights, which it may have cast, are loaded earlier, nor
  are addresses computed: ptxas moves the wait before them anyway.
* The wait ends when the predecessor has ended and its writes are visible, not when it allowed its dependents. Every
  thread of a block waits, so that a kernel with the attribute ends after its predecessor. By induction, everything
  launched earlier on the stream has ended too: a tensor that was freed is reused only by kernels that wait.
* A kernel that does not wait, PyTorch's, cuDNN's or one in CUDA C++, is launched without the attribute and starts after
  its predecessor has ended. As a predecessor it allows nothing, and its dependent starts when its last block has ended.
* Dependents are allowed right after the wait. All of a kernel's blocks must have got so far, so dependents take no
  multiprocessor that one of these still needs; no block waits for one that may not have started.
* Events and other streams wait for whole kernels. In a captured CUDA graph the attribute becomes a kind of edge, from
  CUDA 12.3 on, with the same meaning; a copy or a fill before a kernel becomes a full dependency.
"""

import os
from typing import Any

import triton
import triton.language as tl
from triton import JITFunction
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait
from triton.language.target_info import cuda_capability_geq

VARIABLE = "RESSHIFT_FAST_PDL"
ARCHITECTURE = 90  # the first with the instructions
ENABLED = tl.constexpr(os.environ.get(VARIABLE, "0") == "1")


@triton.jit
def wait_for_previous():
    """Wait for the kernel before, then let the next one start; first statement of a kernel.

    Compiles to nothing where it is turned off, and for GPUs without the instructions.
    """
    if ENABLED and cuda_capability_geq(9, 0):
        gdc_wait()
        gdc_launch_dependents()


def launch_options(kernel: Any, arch: int | str) -> dict[str, bool]:
    """The launch attribute for a kernel that begins with `wait_for_previous`, on a GPU that has it.

    Args:
        kernel: the function decorated with `triton.jit`.
        arch: compute capability, 90 for 9.0; the name of an architecture of another vendor.
    """
    if not ENABLED.value or not isinstance(kernel, JITFunction) or not isinstance(arch, int) or arch < ARCHITECTURE:
        return {}
    return {"launch_pdl": True} if "wait_for_previous" in kernel.fn.__code__.co_names else {}
