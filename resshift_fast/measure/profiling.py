"""One restoration to profile: warmed up first, then repeated while a profiler records.

All commands and scripts that profile run this, so that their figures are of the same work. Weights are random, since no
time depends on them.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # some builds of torch print two lines for every profile otherwise

import torch

from resshift_fast import backends
from resshift_fast.core import devices, nvtx
from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.models import catalog
from resshift_fast.pipeline import DTYPES, Pipeline

if TYPE_CHECKING:
    from resshift_fast.measure.roofline import GPU, Floor

TOOLS = ("torch", "nsys")
WAYS = ("eager", "graphs", "torch")
CAPTURE = "resshift_fast/capture"


@dataclass(frozen=True)
class Workload:
    """The restoration that is profiled.

    Args:
        model: a name of the catalogue.
        size: side of the square input in pixels, restored as one tile, padded to the model's `pad_multiple`.
        batch: images restored at once.
        steps: denoiser evaluations; None takes the model's own number.
        dtype: of the networks, one of `pipeline.DTYPES`.
        device: None takes CUDA if it is available, else the CPU.
        how: "eager", "graphs" (CUDA graphs) or "torch" (torch.compile); None takes graphs on CUDA and eager elsewhere.
        warmup: restorations before those that are recorded.
        runs: restorations that are recorded.

    Raises:
        ValueError: for a value that cannot be run, with the reason.
    """

    model: str = "realsr-x4-v3"
    size: int = 64
    batch: int = 1
    steps: int | None = None
    dtype: str = "bfloat16"
    device: str | None = None
    how: str | None = None
    warmup: int = 2
    runs: int = 3

    def __post_init__(self):
        for name in ("size", "batch", "warmup", "runs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.how not in (None, *WAYS):
            raise ValueError(f"how is {self.how!r}, expected one of {', '.join(WAYS)}")
        self.spec  # noqa: B018  raises now for an unknown model or number of steps

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> "Workload":
        """The workload that `record` has written to workload.json."""
        return cls(**{field.name: settings[field.name] for field in fields(cls) if field.name in settings})

    @property
    def spec(self) -> catalog.ModelSpec:
        """The model, with `steps` denoiser evaluations."""
        spec = catalog.get(self.model)
        if self.steps is None:
            return spec
        return replace(spec, schedule=replace(spec.schedule, respacing=self.steps))

    @property
    def side(self) -> int:
        """Side of the input after padding."""
        multiple = self.spec.pad_multiple
        return -(-self.size // multiple) * multiple

    def pipeline(self) -> Pipeline:
        """The model on its device, with random weights and without CUDA graphs."""
        torch.manual_seed(0)
        made = Pipeline.from_pretrained(
            self.model, random_weights=True, device=self.device, dtype=self.dtype, graphs=False
        )
        if self.steps is None:
            return made
        return Pipeline(self.spec, made.denoiser, made.first_stage, made.device, made.dtype, graphs=False)

    def call(self, pipeline: Pipeline) -> Callable[[], Any]:
        """A function that restores the same images once, from the CPU to the CPU."""
        images = torch.rand(self.batch, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))
        mask = torch.zeros(self.batch, 1, self.size, self.size) if self.spec.needs_mask else None
        if mask is not None:
            mask[..., : -(-self.size // 2)] = 1  # the left half
        return lambda: pipeline(images, mask, tile=self.side, batch_size=self.batch, progress=False)

    def floors(self, gpu: "GPU") -> "dict[str, Floor]":
        """The projected least time of one restoration on a GPU, by operator; see `roofline.project`.

        Raises:
            ImportError: if Triton, whose kernels are counted, is not installed.
        """
        from resshift_fast.measure.counting import count_sample
        from resshift_fast.measure.roofline import project

        dtype = DTYPES[self.dtype]
        rows = count_sample(self.spec, size=(self.side, self.side), batch=self.batch, dtype=dtype, arch=gpu.arch)
        return project(rows, gpu, dtype.itemsize)


def record(workload: Workload, folder: Path, tool: str = "torch") -> dict[str, Any]:
    """Run a workload while a profiler records it.

    Args:
        workload: what is run.
        folder: for workload.json, which describes the run, and with tool "torch" trace.json.
        tool: "torch" records with torch.profiler. "nsys" only marks the section that Nsight Systems records; it has to
            run this process with --capture-range=cudaProfilerApi.

    Returns:
        The content of workload.json: the workload, what it ran on, and seconds per restoration.

    Raises:
        ValueError: for a tool or `how` that this device does not support, and as `Pipeline.from_pretrained`.
    """
    if tool not in TOOLS:
        raise ValueError(f"tool is {tool!r}, expected one of {', '.join(TOOLS)}")
    device = devices.usable_device(workload.device)
    if tool == "nsys" and device.type != "cuda":
        raise ValueError(f"nsys records what a CUDA GPU does, and the device is {device}; use the tool 'torch'")
    how = workload.how or ("graphs" if device.type == "cuda" else "eager")
    make_folder(folder)
    pipeline = replace(workload, device=str(device)).pipeline()
    call = workload.call(pipeline)
    with nvtx.marking():
        _warm_up(pipeline, call, how, workload.warmup, late_capture=tool == "nsys")
        with _recording(tool, device, folder / "trace.json"):
            if tool == "nsys" and how == "graphs":
                _capture(pipeline, call)
            call()  # includes the start of the profiler, so reports leave it out
            seconds = [_timed(call) for _ in range(workload.runs)]
        unprofiled = _timed(call)
    settings = asdict(workload) | {
        "how": how,
        "device": str(device),
        "tool": tool,
        "title": _title(workload, how),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "torch": torch.__version__,
        "backend": backends.preferred(),
        "seconds": statistics.median(seconds),
        "seconds_without_profiler": unprofiled,
    }
    write_atomically(folder / "workload.json", (json.dumps(settings, indent=1) + "\n").encode())
    return settings


def _title(workload: Workload, how: str) -> str:
    steps = workload.spec.schedule.num_steps
    size, batch = f"{workload.size}x{workload.size} input", f"batch {workload.batch}"
    return f"{workload.model}, {size}, {batch}, {steps} steps, {workload.dtype}, {how}"


def _warm_up(pipeline: Pipeline, call: Callable[[], Any], how: str, times: int, late_capture: bool) -> None:
    """Do what happens once: verification, autotuning, compilation and, unless `late_capture`, graph capture."""
    with backends.measuring() if how == "graphs" else nullcontext():
        call()  # autotunes, so that a recorded capture does not
    if how == "torch" or (how == "graphs" and not late_capture):
        pipeline.compile(how, tune=False)
    for _ in range(times):
        call()


def _capture(pipeline: Pipeline, call: Callable[[], Any]) -> None:
    """Capture the CUDA graph while the profiler records, so that it can name the operator of every graph node.

    It is outside the range of any restoration, so reports leave it out. Ranges around PyTorch's own operators are
    emitted only here, where their overhead is not measured.
    """
    pipeline.compile("graphs", tune=False)
    with nvtx.named(CAPTURE), torch.autograd.profiler.emit_nvtx():
        call()


def _timed(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with nvtx.named(nvtx.RESTORATION):
        call()
    return time.perf_counter() - start


def _recording(tool: str, device: torch.device, trace: Path) -> AbstractContextManager:
    return _cuda_range() if tool == "nsys" else _torch_profile(device, trace)


@contextmanager
def _cuda_range() -> Iterator[None]:
    """Call cudaProfilerStart and cudaProfilerStop around the block, which Nsight Systems records."""
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    try:
        yield
        torch.cuda.synchronize()
    finally:
        torch.cuda.profiler.stop()


@contextmanager
def _torch_profile(device: torch.device, trace: Path) -> Iterator[None]:
    kinds = torch.profiler.ProfilerActivity
    activities = [kinds.CPU, kinds.CUDA] if device.type == "cuda" else [kinds.CPU]
    with torch.profiler.profile(activities=activities, acc_events=True) as profile:
        yield
    profile.export_chrome_trace(str(trace))
