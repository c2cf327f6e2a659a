"""A fake GPU for Triton: kernels are specialized as for sm_90, and their launches are recorded.

For a process without TRITON_INTERPRET. Tensors are on the CPU; Triton treats them as tensors on the GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import triton.compiler
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

CPU_INDEX = -1  # what `Tensor.get_device` gives for a CPU tensor


class FakeGpu:
    """A substitute for `triton.runtime.driver.active` whose launcher records its arguments in `starts`."""

    def __init__(self) -> None:
        self.starts: list[tuple] = []
        self.target = GPUTarget("cuda", 90, 32)
        self.device, self.stream = CPU_INDEX, 7
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.device

    def get_current_stream(self, device: int) -> int:
        return self.stream

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        return lambda *args: self.starts.append(args)

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        return object(), f"function of {name}", 32, 0, 1024

    def unload_module(self, module: Any) -> None:
        pass


class Uncompiled(triton.compiler.CompiledKernel):
    """A compiled kernel without code; its function says what it would have been compiled for."""

    def __init__(self, source: Any, target: GPUTarget, options: dict) -> None:
        signature, constants = sorted(source.signature.items()), sorted(source.constants.items())
        attributes = sorted(source.attrs.items())
        kept = {name: options.get(name) for name in ("num_warps", "num_stages", "enable_fp_fusion", "maxnreg", "debug")}
        self.src, self.name = source, source.fn.__name__
        self.function = repr((self.name, target.arch, signature, constants, attributes, kept))
        self.packed_metadata = options["num_warps"]
        self.module = self._module_pid = None
        self._run = driver.active.launcher_cls(source, None)

    def _init_handles(self) -> None:
        pass


@contextmanager
def active(gpu: FakeGpu, compiles: bool = False) -> Iterator[FakeGpu]:
    """Make Triton use a fake GPU within the block; kernels are compiled only with `compiles`."""
    before = driver._active

    def compile(source: Any, target: GPUTarget, options: dict, **_: Any) -> Uncompiled:
        return Uncompiled(source, target, options)

    driver.set_active(gpu)
    try:
        with mock.patch.object(triton.compiler, "compile", triton.compiler.compile if compiles else compile):
            yield gpu
    finally:
        driver.set_active(before)


@contextmanager
def fake_gpu() -> Iterator[list[tuple]]:
    """Make Triton use a fake GPU within the block, without compiling; the value is the list of launches."""
    with active(FakeGpu()) as gpu:
        yield gpu.starts
