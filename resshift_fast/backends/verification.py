"""Verification of a backend before its first use: small calls are compared with plain PyTorch in float64.

A verdict belongs to (operator, backend, dtype) and an environment: device, driver, torch, Triton, the kernels' sources
and what was compiled of them. It is kept in `verdicts/` of the cache folder. An illegal memory access ends the process
or poisons its CUDA context, so "running" is written first under a lock: whoever finds it unlocked knows that the
verification never ended. The kernel may have ended its process, or somebody else, who says nothing of the kernel; so a
mark of one ended process is tried again, and that of `ATTEMPTS` leaves the backend off until the mark is a day old.
RESSHIFT_FAST_VERIFY=0 trusts every backend.
"""

import contextlib
import os
import time
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from resshift_fast.backends import autotune_cache, native
from resshift_fast.core import environment
from resshift_fast.core.cache import cache_dir
from resshift_fast.core.devices import on
from resshift_fast.core.locking import locked

if TYPE_CHECKING:
    import torch

    from resshift_fast.backends import Operator

VARIABLE = "RESSHIFT_FAST_VERIFY"
PASSED, RUNNING = "passed", "running"
ATTEMPTS = 2  # processes that may end while they verify the same kernel
RETRY_AFTER = 24 * 3600.0  # seconds until one more of them is risked

_verdicts: dict[tuple[Any, ...], str] = {}
_asking = RLock()  # so that of several threads one verifies, and warns


def forbidden() -> bool:
    """Whether nothing may be launched to verify it: a CUDA graph is captured, or a trace taken on fake tensors."""
    import torch
    from torch._guards import detect_fake_mode

    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def passes(operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype") -> bool:
    """Whether a backend's kernel may be used; verifies it at the first question, and warns once if it fails.

    While a CUDA graph is captured or a trace taken, only a stored verdict counts.
    """
    if os.environ.get(VARIABLE) == "0":
        return True
    key = (operator.name, backend, device, dtype)
    if key in _verdicts:
        return _verdicts[key] == PASSED
    with _asking:
        return _asked(key, operator)


def verdict(operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype") -> str:
    """What is known of a backend's kernel, of which nothing is run: "passed", what was wrong, or "" for nothing."""
    if os.environ.get(VARIABLE) == "0":
        return PASSED
    path = _path(operator, backend, device, dtype)
    known = _verdicts.get((operator.name, backend, device, dtype)) or _stored(path)
    return _settled(known, path)


def _attempts(stored: str) -> int:
    """How many processes began the verification whose mark is stored; 0 for a verdict and for nothing."""
    word, _, number = stored.partition(" ")
    if word != RUNNING:
        return 0
    return int(number) if number.isdecimal() else 1


def _settled(stored: str, path: Path | None) -> str:
    """The stored verdict; of a mark whose process is gone, why the backend is off, or "" where it is to be tried again.

    Two things end a process: the kernel, and whoever kills it. The first would do it again, the second hardly ever.
    """
    attempts = _attempts(stored)
    if attempts == 0:
        return stored
    if path is None:
        return ""
    try:
        old = abs(time.time() - path.stat().st_mtime) > RETRY_AFTER  # also where the clock was put back
    except OSError:
        return ""
    if attempts < ATTEMPTS or old:
        return ""
    return f"its verification ended {attempts} processes; remove {path} to try again before a day has passed"


def _asked(key: tuple[Any, ...], operator: "Operator") -> bool:
    """Whether the verdict of (operator, backend, device, dtype), read or made now, is that the kernel may be used."""
    _, backend, device, dtype = key
    if key not in _verdicts:
        path = _path(operator, backend, device, dtype)
        if forbidden():
            return _stored(path) == PASSED
        path = _with_folder(path)
        _verdicts[key] = _verdict(path, operator, backend, device, dtype)
        if _verdicts[key] != PASSED:
            warnings.warn(
                f"the {backend} backend of {operator.name} is off for {dtype} on {device}: {_verdicts[key]}; "
                "plain PyTorch takes its place",
                RuntimeWarning,
                stacklevel=3,
            )
    return _verdicts[key] == PASSED


def _verdict(
    path: Path | None, operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype"
) -> str:
    """The stored verdict, else a new one, stored: "passed", or what was wrong."""
    with locked(path) as file:
        stored = file.read() if file else ""
        if settled := _settled(stored, path):
            return settled
        _write(file, f"{RUNNING} {_attempts(stored) + 1}")
        try:
            verdict = compare(operator, backend, device, dtype)
        except BaseException:  # neither an interruption nor full memory says anything of the kernel
            _write(file, "")
            raise
        _write(file, verdict)
        return verdict


def compare(operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype") -> str:
    """Run a backend's kernel on the operator's examples: "passed", or what was wrong."""
    import torch

    from resshift_fast.core.accuracy import full_float32

    try:
        kernel = operator.loaders[backend]()
        with torch.no_grad(), torch.autocast(device.type, enabled=False), on(device), full_float32():
            for args in operator.examples(device, dtype):
                if kernel.unsupported(*args) is None:
                    kernel.function(*args)  # a kernel is started another way when it was started before
                    wrong = difference(kernel.function(*args), operator.plain, args)
                    if wrong:
                        return wrong
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return PASSED


def watched(name: str, function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """A kernel's function, whose results are compared where it measures a configuration for a call.

    If they are wrong the default configuration takes its place, with a warning.

    Args:
        name: the operator. plain: it in plain PyTorch.
    """
    import torch

    from resshift_fast.kernels import tuning

    def run(*args: Any) -> Any:
        with tuning.watching() as measured:
            result = function(*args)
        try:
            # Rounding may change whole numbers altogether; for them the tuner's own comparison counts.
            compared = measured and all(x.is_floating_point() for x in _tensors(result))
            wrong = difference(result, plain, args) if compared else None
        except torch.OutOfMemoryError:  # what was measured at least writes what the default does
            return result
        if wrong is None:
            return result
        for choice in measured:
            choice.reject()
        configurations = " and ".join(map(str, measured))
        warnings.warn(f"{name}: {configurations}: {wrong}; the default takes its place", RuntimeWarning, stacklevel=3)
        return function(*args)

    return run


def difference(ours: Any, plain: Any, args: tuple[Any, ...]) -> str | None:
    """What is wrong with a kernel's outputs, or None; `accuracy` has the rule.

    Args:
        ours: the outputs. plain: the operator in plain PyTorch. args: what both were given.
    """
    from resshift_fast.core.accuracy import errors, limits

    ours, theirs, exact = (_tensors(x) for x in (ours, plain(*args), plain(*(_double(x) for x in args))))
    if len(ours) != len(theirs):
        return f"{len(ours)} outputs, expected {len(theirs)}"
    for i, (a, b, c) in enumerate(zip(ours, theirs, exact, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype or _strides(a) != _strides(b):
            return f"output {i} is {_description(a)}, expected {_description(b)}"
        if not a.dtype.is_floating_point:
            if not a.equal(b):
                return f"output {i} differs at {int((a != b).sum())} of {a.numel()} places"
            continue
        # A constant that plain PyTorch may miss by rounding too, as the bytes of a cast, is compared by its own dtype.
        coarsest = max((x.dtype for x in (a, *_tensors(args)) if x.dtype.is_floating_point), key=_epsilon)
        if problem := errors(a, c).problem(limits(coarsest, errors(b, c))):
            return f"output {i} has {problem}"
    return None


def _strides(x: "torch.Tensor") -> list[int]:
    """Strides that matter: those of sides longer than 1."""
    return [stride for stride, side in zip(x.stride(), x.shape, strict=True) if side > 1]


def _epsilon(dtype: "torch.dtype") -> float:
    import torch

    return torch.finfo(dtype).eps


def _double(x: Any) -> Any:
    import torch

    return x.double() if isinstance(x, torch.Tensor) and x.dtype.is_floating_point else x


def _tensors(x: Any) -> "list[torch.Tensor]":
    import torch

    return [x] if isinstance(x, torch.Tensor) else [y for y in x if isinstance(y, torch.Tensor)]


def _description(x: "torch.Tensor") -> str:
    return f"{x.dtype} {tuple(x.shape)} with strides {x.stride()}"


def _path(operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype") -> Path | None:
    """Where the verdict is kept; None if that is unknown."""
    try:
        folder = cache_dir() / "verdicts" / _environment(device)
    except OSError:
        return None
    return folder / f"{operator.name}-{backend}-{str(dtype).removeprefix('torch.')}"


def _with_folder(path: Path | None) -> Path | None:
    """The path, with its folder made; None where that is impossible."""
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path


@cache
def _environment(device: "torch.device") -> str:
    """Hash of everything on which a verdict depends."""
    details = [autotune_cache.processor(), os.environ.get("RESSHIFT_FAST_CPU_ISA", "")] if device.type == "cpu" else []
    kernels = find_spec("resshift_fast.kernels")
    folders = [Path(folder) for folder in (kernels and kernels.submodule_search_locations) or ()]
    paths = environment.code(Path(__file__).parents[1] / "ops", *folders)
    if device.type in native.LIBRARIES and native.path(device.type).exists():
        paths.append(native.path(device.type))
    return environment.fingerprint(device, paths, details)


def _stored(path: Path | None) -> str:
    with contextlib.suppress(OSError):
        return path.read_text() if path else ""
    return ""


def _write(file: Any, text: str) -> None:
    """Replace the file's content and have it on disk, whatever happens next."""
    if file is not None:
        file.seek(0)
        file.truncate()
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
