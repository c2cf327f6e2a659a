"""Prints as JSON how kernels are compiled and started with or without programmatic dependent launch.

    python compiled_dependents.py 90 KERNEL ...    these kernels, and those in this file, for this architecture

It is a separate process, because the variable is read when the package is imported, and because the interpreter that
the other tests use replaces Triton's compiler.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import torch
import triton
import triton.language as tl
from fake_driver import FakeGpu, active
from torch import Tensor
from triton import JITFunction

from resshift_fast.kernels import ahead
from resshift_fast.kernels.dependents import wait_for_previous
from resshift_fast.kernels.launch import Launch, Start
from scripts.kernel_proof import coverage, machine_code
from scripts.kernel_proof.launch_cases import LAUNCH_CASES

# Instructions that wait, allow dependents or access global memory, in PTX and in machine code.
PTX = re.compile(r"^\s+(?:@!?%p\d+ )?((?:griddepcontrol|ld\.global|st\.global|cp\.async|atom|red)\b[.\w]*)", re.M)
SASS = re.compile(
    r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?"
    r"(ACQBULK|PREEXIT|LDG|LDGSTS|STG|LD|ST|ATOMG?|REDG?|UBLKCP|UBLKRED|UTMALDG|UTMASTG)\b",
    re.M,
)


@triton.jit
def first_kernel(p_x, p_y):
    wait_for_previous()
    o = tl.arange(0, 128)
    tl.store(p_y + o, tl.load(p_x + o))


@triton.jit
def late_kernel(p_x, p_y):
    o = tl.arange(0, 128)
    b_x = tl.load(p_x + o)
    wait_for_previous()
    tl.store(p_y + o, b_x)


@triton.jit
def never_kernel(p_x, p_y):
    o = tl.arange(0, 128)
    tl.store(p_y + o, tl.load(p_x + o))


OWN = (first_kernel, late_kernel, never_kernel)


def launches_of(kernels: list[str], arch: int) -> dict[str, Launch]:
    """The first bfloat16 launch of each kernel among the launch cases, and one of each kernel above."""
    found: dict[str, Launch] = {}
    for case in LAUNCH_CASES:
        if case.dtype is torch.bfloat16 and not found.keys() >= set(kernels):
            for launch in coverage.recorded(case, arch):
                found.setdefault(launch.name, launch)
    x = torch.empty(128, device="meta")
    own = {kernel.fn.__name__: Launch(kernel, (1,), (x, x), {}, 4, 2, {}) for kernel in OWN}
    return {name: found[name] for name in kernels} | own


def machine_instructions(cubin: bytes) -> list[str]:
    """The instructions of interest in a kernel's machine code."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        command = [machine_code.disassembler(), "-sass", file]
        return SASS.findall(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def compiled(launch: Launch, arch: int) -> dict:
    """Whether a kernel is started with the attribute, and its instructions of interest."""
    kernel = ahead.compile_job(ahead.job_of(launch, arch))
    ptx, cubin = kernel.asm["ptx"], kernel.asm["cubin"]
    return {"attribute": kernel.metadata.launch_pdl, "ptx": PTX.findall(ptx), "sass": machine_instructions(cubin)}


def starts_with_attribute(start: Callable[..., None], *tensors: Tensor) -> bool:
    """Whether a `Start` passes the attribute to Triton."""
    with active(FakeGpu()), mock.patch.object(JITFunction, "run") as run:
        start(*tensors)
    return bool(run.call_args.kwargs.get("launch_pdl"))


def main() -> None:
    arch, kernels = int(sys.argv[1]), sys.argv[2:]
    x = torch.zeros(128)
    starts = {kernel.fn.__name__: starts_with_attribute(Start(kernel, (1,)), x, x) for kernel in OWN}
    found = {name: compiled(launch, arch) for name, launch in launches_of(kernels, arch).items()}
    print(json.dumps({"starts": starts, "compiled": found}))


if __name__ == "__main__":
    main()
