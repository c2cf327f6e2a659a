"""The same restoration by several providers: plain PyTorch, torch.compile with its fastest settings, and this library.

Each is set up so that its stages can be timed separately; `Runner` measures one of them.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # some builds of torch print two lines for every profile otherwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from resshift_fast import backends
from resshift_fast.core import devices
from resshift_fast.core.accuracy import full_float32
from resshift_fast.measure import memory, timing
from resshift_fast.models import catalog
from resshift_fast.models.autoencoder import VQAutoencoder
from resshift_fast.pipeline import DTYPES, Pipeline

PROVIDERS = {
    "reference": "plain PyTorch, eager",
    "compile": "plain PyTorch through torch.compile, with its fastest settings",
    "openvino": "plain PyTorch's networks, exported to OpenVINO, on a CPU",
    "ours": "the pipeline, eager",
    "ours-compiled": "the pipeline after Pipeline.compile(), whose stages cannot be timed: CUDA graphs on a GPU",
}
STAGES = ("encode", "denoise", "decode")
WHOLE = "whole"
GEMM_SIDE = {"cpu": 2048, "cuda": 8192}


@dataclass(frozen=True)
class Case:
    """A provider and what it restores.

    Args:
        provider: one of `PROVIDERS`.
        dtype: of the networks, one of `pipeline.DTYPES`.
        model: a name of the catalogue.
        size: side of the square input in pixels; tiled as the pipeline does.
        batch: number of images.
        batch_size: tiles restored at once; None takes the pipeline's default.
        weights, autoencoder, random_weights, device: as in `Pipeline.from_pretrained`; random weights are the same in
            every case, and no layer is all zeros, so that every layer affects the result.
        threads: torch's threads on the CPU; None keeps the current number.

    Raises:
        ValueError: for a value that cannot be run, with the reason.
    """

    provider: str
    dtype: str = "float32"
    model: str = "realsr-x4-v3"
    size: int = 64
    batch: int = 1
    batch_size: int | None = None
    weights: str | None = None
    autoencoder: str | None = None
    random_weights: bool = False
    device: str | None = None
    threads: int | None = None

    def __post_init__(self):
        for name, known in (("provider", PROVIDERS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("size", "batch", "batch_size", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        catalog.get(self.model)

    @property
    def name(self) -> str:
        """Provider and dtype."""
        return f"{self.provider} {self.dtype}"


@dataclass(frozen=True)
class First:
    """Measurements of building a pipeline and of its first restoration.

    Args:
        seconds: of both, including compilation.
        peak_bytes: peak memory so far; see `memory.peak_bytes`.
    """

    seconds: float
    peak_bytes: float


@dataclass(frozen=True)
class Run:
    """One timed restoration.

    Args:
        seconds: by stage if stages can be timed, and of the `WHOLE`, which also includes what is around them, such as
            tiling and pixel conversion. Encoding includes the bicubic upsampling.
        peak_bytes: peak memory during the run, weights included; None if the system does not report it.
    """

    seconds: dict[str, float]
    peak_bytes: float | None


class Runner:
    """Measures one case: call `first`, then `run` any number of times. Peak memory is that of the whole process."""

    def __init__(self, case: Case):
        if case.threads:
            torch.set_num_threads(case.threads)
        self._case, self._plain = case, case.provider in ("reference", "compile", "openvino")
        self._totals: dict[str, float] = {}
        self._read: Callable[[], float] | None = None
        self._seconds, _ = timing.seconds(self._build)

    def _build(self) -> None:
        with self._backend():
            self._pipe = build(self._case)
            if self._case.provider == "compile":
                compile_stages(self._pipe)
            elif self._case.provider == "openvino":
                give_to_openvino(self._pipe, self._case.dtype)
        if self._case.provider == "ours-compiled":
            self._pipe.compile()
        else:
            self._mark_stages()
        self._pictures = pictures(self._case)

    @contextmanager
    def _backend(self) -> Iterator[None]:
        """Context in which the case runs; no provider uses TF32 in float32."""
        with full_float32(), backends.use_backend("reference") if self._plain else nullcontext():
            yield

    def _mark_stages(self) -> None:
        for owner, function, stage in places(self._pipe):
            setattr(owner, function, self._metered(getattr(owner, function), stage))

    def _metered(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Wrap `function` so that the increase of `_read()` during a call is added to the stage's total."""

        def call(*args: Any, **kwargs: Any) -> Any:
            read = self._read
            if read is None:
                return function(*args, **kwargs)
            before = read()
            result = function(*args, **kwargs)
            self._totals[stage] = self._totals.get(stage, 0) + read() - before
            return result

        return call

    def _restore(self) -> list[Tensor]:
        case = self._case
        mask = None
        if catalog.get(case.model).needs_mask:
            left_half = np.arange(case.size) < case.size / 2
            mask = [np.broadcast_to(left_half, (case.size, case.size))] * case.batch
        with self._backend():
            return self._pipe(self._pictures, mask, seed=0, batch_size=case.batch_size, progress=False)

    def _measured(self, read: Callable[[], float]) -> dict[str, float]:
        """The increase of `read()` in each stage and in the whole of one restoration."""
        self._totals, self._read = {}, read
        before = read()
        try:
            self._restore()
            return self._totals | {WHOLE: read() - before}
        finally:
            self._read = None

    def _clock(self) -> float:
        timing.synchronize(self._pipe.device)
        return time.perf_counter()

    def first(self) -> First:
        """The first restoration, which also verifies kernels and compiles."""
        seconds, _ = timing.seconds(self._restore, self._pipe.device)
        return First(self._seconds + seconds, memory.peak_bytes(self._pipe.device))

    def pixels(self) -> np.ndarray:
        """A restoration to compare with another provider's: float32 [B, 3, H, W] in [0, 1].

        With random weights the latent is decoded without quantization: a rounding error can change which codebook entry
        is the nearest, and a random decoder gives very different images for different entries.
        """
        stage = self._pipe.first_stage
        if not (self._case.random_weights and isinstance(stage, VQAutoencoder)):
            return _stacked(self._restore())
        decode = stage.decode
        stage.decode = partial(decode, quantize=False)  # type: ignore[method-assign]
        try:
            self._recompile()
            return _stacked(self._restore())
        finally:
            stage.decode = decode  # type: ignore[method-assign]
            if self._recompile():
                self._restore()

    def _recompile(self) -> bool:
        """Compile the pipeline again if it is compiled as a whole; returns whether it is."""
        if self._case.provider == "ours-compiled":
            self._pipe.compile()
        return self._case.provider == "ours-compiled"

    def run(self) -> Run:
        """Time one restoration; on a GPU the stages are timed in a second one, since they need synchronization."""
        device = self._pipe.device
        known = memory.reset_peak(device)
        if device.type == "cpu":
            seconds = self._measured(self._clock)
        else:
            whole, _ = timing.seconds(self._restore, device)
            seconds = self._measured(self._clock) | {WHOLE: whole}
        return Run(seconds, memory.peak_bytes(device) if known else None)

    def operations(self) -> dict[str, float]:
        """Multiplications and additions in convolutions and matrix products, by stage and of the whole.

        A first restoration has more, for what depends on the weights alone and is kept.
        """
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        mapping = {attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)}
        with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            return self._measured(lambda: float(counter.get_total_flops()))

    def operator_seconds(self) -> dict[str, float]:
        """Seconds by PyTorch operator, excluding operators that it calls, on the CPU or the GPU."""
        from torch.profiler import ProfilerActivity, profile

        on_gpu = self._pipe.device.type == "cuda"
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
        for _ in range(2):  # under the profiler, compiled code is compiled again in the first run
            with profile(activities=activities) as recorded:
                self._restore()
        attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        return {event.key: getattr(event, attribute) / 1e6 for event in recorded.key_averages()}


def _stacked(restored: list[Tensor]) -> np.ndarray:
    return np.stack([picture.float().cpu().numpy() for picture in restored])


def build(case: Case) -> Pipeline:
    """The case's pipeline, in float32 for OpenVINO, which has a precision of its own."""
    if case.provider == "openvino":
        if devices.usable_device(case.device).type != "cpu":
            raise ValueError(f"openvino runs on the CPU, not on {case.device or 'a GPU'}; choose device cpu")
        case = replace(case, provider="reference", dtype="float32")
    if not case.random_weights:
        return Pipeline.from_pretrained(
            case.model,
            weights=case.weights,
            autoencoder=case.autoencoder,
            device=case.device,
            dtype=case.dtype,
            graphs=False,
        )
    spec = catalog.get(case.model)
    torch.manual_seed(0)
    networks = catalog.build_denoiser(spec), catalog.build_first_stage(spec)
    for network in networks:
        for parameter in network.parameters():
            if parameter.dim() > 1 and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return Pipeline(spec, *networks, devices.usable_device(case.device), DTYPES[case.dtype], graphs=False)


def places(pipe: Pipeline) -> list[tuple[nn.Module, str, str]]:
    """(module, method name, stage) of every stage."""
    return [
        (pipe.restoration, "encode", "encode"),
        (pipe.restoration.chain, "forward", "denoise"),
        (pipe.first_stage, "decode", "decode"),
    ]


def compile_stages(pipe: Pipeline) -> None:
    """Apply torch.compile with its fastest settings: one size, frozen weights on a CPU, CUDA graphs on a GPU.

    Weights and images are channels-last in every pipeline. The denoiser is compiled once for all its steps: the chain
    as one graph took three times as long to compile and was not faster.
    """
    on_gpu = pipe.device.type == "cuda"
    # As an option of torch.compile it would be read too late: tracing decides which tensors are constant.
    torch._inductor.config.freezing = not on_gpu
    options: dict[str, Any] = {"dynamic": False, "fullgraph": True} | ({"mode": "reduce-overhead"} if on_gpu else {})
    for owner, name in networks(pipe):
        function = torch.compile(getattr(owner, name), **options)
        setattr(owner, name, _owned(function) if on_gpu else function)


def networks(pipe: Pipeline) -> list[tuple[nn.Module, str]]:
    """(module, method name) of every network."""
    return [(pipe.first_stage, "encode"), (pipe.denoiser, "denoise"), (pipe.first_stage, "decode")]


def give_to_openvino(pipe: Pipeline, dtype: str) -> None:
    """Have OpenVINO run the networks, in "float32" or "bfloat16".

    Raises:
        ImportError, ValueError: as of `openvino.Compiled`.
    """
    from resshift_fast.measure.openvino import Compiled

    for owner, name in networks(pipe):
        if any(True for _ in owner.parameters()):  # not where pixels are only rearranged
            setattr(owner, name, Compiled(owner, name, dtype))


def _owned(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Clone the result of `function`, which the next replay of its CUDA graph would overwrite."""
    return lambda *args: function(*args).clone()


def pictures(case: Case) -> list[Tensor]:
    """Smooth images with some texture, the same for every provider: float32 [3, size, size] in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(case.batch, 3, case.size // 12 + 2, case.size // 12 + 2, generator=generator)
    smooth = F.interpolate(coarse, size=(case.size, case.size), mode="bicubic")
    texture = torch.rand(case.batch, 3, case.size, case.size, generator=generator) - 0.5
    return list((smooth + 0.1 * texture).clamp(0, 1))


def gemm_rate(dtype: str, device: torch.device, side: int | None = None, repeats: int = 3) -> float:
    """FLOP/s of a product of two square matrices, the fastest of several runs.

    Args:
        dtype: its name. device: where it runs.
        side: of the matrices; None takes that of `GEMM_SIDE`.
        repeats: number of runs.
    """
    side = side or GEMM_SIDE.get(device.type, GEMM_SIDE["cpu"])
    a, b = (torch.randn(side, side, device=device).to(DTYPES[dtype]) for _ in range(2))
    out = torch.mm(a, b)
    return 2 * side**3 / min(timing.seconds(lambda: torch.mm(a, b, out=out), device)[0] for _ in range(repeats))
