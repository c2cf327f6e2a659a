"""Prints as JSON what kernels are launched with on a fake GPU, by a `Start` and by Triton, for test_launch.py.

It is a separate process, because the interpreter that the other tests use replaces Triton's compiler in its process.
"""

import json
import os
import sys
import threading
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from fake_driver import FakeGpu, active
from torch import Tensor
from triton import JITFunction, knobs
from triton.backends.compiler import GPUTarget

from resshift_fast import backends, ops  # noqa: F401  registers the operators
from resshift_fast.kernels import residual_shift
from resshift_fast.kernels.launch import Launch, Start, record

BEYOND_INT32 = 2**31 + 16


def launch_args(args: tuple) -> list:
    """The launcher's arguments, tensors by their addresses; no hook and an empty chain of hooks count as equal."""
    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in args]
    _metadata, enter, leave = values[6:9]
    unhooked = not getattr(enter, "calls", None) and not getattr(leave, "calls", None)
    return values[:6] + ([] if unhooked else ["hooked"]) + values[9:]


def by_triton(gpu: FakeGpu, launch: Launch) -> list:
    launch.kernel[launch.grid](*launch.arguments, **launch.options, **launch.constants)
    return launch_args(gpu.starts[-1])


def start_of(launch: Launch) -> tuple[Start, tuple]:
    """A `Start` of the launch, and its tensors."""
    n_tensors = sum(name.startswith("p_") for name in launch.kernel.arg_names)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    start = Start(launch.kernel, launch.grid, *launch.arguments[n_tensors:], **options, **launch.constants)
    return start, launch.arguments[:n_tensors]


def planned(gpu: FakeGpu, start: Start, tensors: tuple) -> tuple[list, bool]:
    """The launcher's arguments in the second of two starts, and whether that start went through Triton's lookup."""
    start(*tensors)
    with mock.patch.object(JITFunction, "run", autospec=True, side_effect=JITFunction.run) as run:
        start(*tensors)
    return launch_args(gpu.starts[-1]), run.called


def unaligned(x: Tensor) -> Tensor:
    """An uninitialized tensor like x whose address is not a multiple of 16."""
    return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape)


def replaced(values: tuple, index: int, value: Any) -> tuple:
    return (*values[:index], value, *values[index + 1 :])


def variants(launch: Launch) -> dict[str, Launch]:
    """The launch, and others for which Triton may compile a different kernel."""
    arguments = launch.arguments
    found = {"unchanged": arguments}
    integers = [i for i, x in enumerate(arguments) if isinstance(x, int)]
    for name, value in (("one", 1), ("a multiple of 16", 48), ("odd", 47), ("beyond 32 bits", BEYOND_INT32)):
        found |= {f"argument {i} is {name}": replaced(arguments, i, value) for i in integers}
    tensors = [i for i, x in enumerate(arguments) if isinstance(x, Tensor)]
    for i in tensors:
        x = arguments[i]
        found[f"argument {i} is unaligned"] = replaced(arguments, i, unaligned(x))
        other = torch.float16 if x.dtype is torch.float32 else torch.float32
        found[f"argument {i} is {other}"] = replaced(arguments, i, torch.empty(x.shape, dtype=other))
        found[f"argument {i} is None"] = replaced(arguments, i, None)
    return {
        name: Launch(launch.kernel, launch.grid, values, launch.constants, launch.num_warps, launch.num_stages, {})
        for name, values in found.items()
    }


def launches() -> dict[str, Launch]:
    """One launch of every kernel that the operators' examples launch, per dtype."""
    found: dict[str, Launch] = {}
    for name, operator in backends.OPERATORS.items():
        if "triton" not in operator.loaders:
            continue
        kernel = backends.kernel(name, "triton").function
        for dtype in (torch.float32, torch.bfloat16):
            kind = dtype if not operator.dtypes or dtype in operator.dtypes else operator.dtypes[0]
            for example in operator.examples(torch.device("cpu"), kind):
                with record() as recorded:
                    kernel(*example)
                found |= {f"{launch.name} {dtype}": launch for launch in recorded}
    return found


def every_kernel(gpu: FakeGpu) -> dict[str, list]:
    """[whether the `Start` went through Triton, its arguments, Triton's arguments] of each kernel and variant.

    Variants that differ only in tensors share one `Start`.
    """
    found = {}
    for kernel, launch in launches().items():
        first, _ = start_of(launch)
        for name, variant in variants(launch).items():
            start, tensors = start_of(variant)
            start = first if start.scalars == first.scalars else start
            found[f"{kernel}: {name}"] = [*reversed(planned(gpu, start, tensors)), by_triton(gpu, variant)]
    return found


def q_sample(batch: int = 2, height: int = 4, width: int = 4, dtype: torch.dtype = torch.float32) -> tuple:
    x = torch.randn(batch, 3, height, width, dtype=dtype)
    return x, x + 1, torch.zeros(batch, dtype=torch.int64), torch.rand(5, 8), x + 2


def whole_calls(gpu: FakeGpu) -> dict[str, list]:
    """[by a `Start`, by Triton]: grid, kernel and scalars of several calls of one launcher, made in turn."""
    cases = {
        "16 pixels": q_sample(),
        "one pixel": q_sample(height=1, width=1),
        "15 pixels": q_sample(height=3, width=5),
        "float16": q_sample(dtype=torch.float16),
        "one image": q_sample(batch=1),
        "channels-last": tuple(
            x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in q_sample()
        ),
        "a table of one step": replaced(q_sample(), 3, torch.rand(1, 8)),
        "an unaligned table": replaced(q_sample(), 3, unaligned(torch.rand(5, 8))),
    }
    found: dict[str, list] = {}
    for _ in range(3):
        for name, arguments in cases.items():
            residual_shift.q_sample(*arguments)
            found[name] = [without_addresses(gpu)]
    hook = residual_shift.q_sample_kernel.pre_run_hooks
    hook.append(lambda *_, **__: None)
    for name, arguments in cases.items():
        residual_shift.q_sample(*arguments)
        found[name].append(without_addresses(gpu))
    hook.clear()
    return found


def without_addresses(gpu: FakeGpu) -> list:
    values = launch_args(gpu.starts[-1])
    return values[:6] + values[12:]


def goes_through_triton(gpu: FakeGpu) -> dict[str, bool]:
    """Whether a start that has been launched before goes through Triton, by what was changed."""
    with record() as recorded:
        residual_shift.q_sample(*q_sample())
    start, tensors = start_of(recorded[0])
    kernel, runtime = start.kernel, knobs.runtime
    calls: list[Any] = []

    def try_start(name: str) -> None:
        found[name] = planned(gpu, start, tensors)[1]

    def hook(*args: Any, **kwargs: Any) -> None:
        calls.append(args)

    found: dict[str, bool] = {}
    try_start("nothing")
    kernel.pre_run_hooks.append(hook)
    try_start("a hook before runs")
    found["the hook before runs was called"] = bool(calls)
    kernel.pre_run_hooks.clear()
    for chain in (runtime.launch_enter_hook, runtime.launch_exit_hook):
        chain.add(hook)
        try_start(f"a hook {'after' if chain.reversed else 'before'} launches")
        chain.remove(hook)
    with runtime.scope():
        runtime.launch_enter_hook = hook
        try_start("a hook in place of the chain")
    with runtime.scope():
        runtime.debug = True
        try_start("a setting of Triton's")
    gpu.device = 0
    try_start("tensors that are not on the device")
    gpu.device, gpu.target = -1, GPUTarget("hip", "gfx942", 64)
    start._direct.clear()
    kernel.device_caches.clear()
    try_start("another vendor's GPU")
    gpu.target = GPUTarget("cuda", 90, 32)
    kernel.device_caches.clear()
    try_start("nothing again")
    return found


def without_a_default() -> str:
    """The kernel of a start if Triton's default is not to fuse a·b + c."""
    with mock.patch.dict(os.environ, TRITON_DEFAULT_FP_FUSION="0"), active(FakeGpu()) as gpu:
        residual_shift.q_sample_kernel.device_caches.clear()
        residual_shift.q_sample(*q_sample(height=10))
    return gpu.starts[-1][4]


def from_threads(gpu: FakeGpu) -> list[str]:
    """The distinct grids and kernels of one call that eight threads repeat."""
    arguments = q_sample(height=6, width=6)
    before = len(gpu.starts)

    def work() -> None:
        for _ in range(20):
            residual_shift.q_sample(*arguments)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted({repr(launch_args(args)[:5]) for args in gpu.starts[before:]})


def compiled(gpu: FakeGpu) -> list:
    """As in `every_kernel`, of one kernel that is compiled and not faked."""
    with record() as recorded:
        residual_shift.q_sample(*q_sample())
    start, tensors = start_of(recorded[0])
    start.kernel.device_caches.clear()
    return [*reversed(planned(gpu, start, tensors)), by_triton(gpu, recorded[0])]


def main() -> None:
    parts: dict[str, Callable[[FakeGpu], Any]] = {
        part.__name__: part for part in (every_kernel, whole_calls, goes_through_triton, from_threads)
    }
    with active(FakeGpu()) as gpu:
        found = {name: part(gpu) for name, part in parts.items()}
    with active(FakeGpu(), compiles=True) as gpu:
        found["compiled"] = compiled(gpu)
    found["without_a_default"] = without_a_default()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
