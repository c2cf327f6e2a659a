"""Verification of a backend before its first use: small calls are compared with plain PyTorch in float64.

A verdict is valid for (operator, backend, dtype) and an environment: device, driver, torch, Triton, and the sources and
libraries of the kernels. It is stored in `verdicts/` of the cache folder. An illegal memory access ends the process or
makes its CUDA context unusable, so "running" is written first, under a lock: a process that finds it without a lock
knows that the verification did not finish. The kernel may have ended that process, or a user may have killed it, so the
verification is repeated in a process of its own (`trial`), whose end decides. What a lack of memory or a signal from
outside has caused is not stored. RESSHIFT_FAST_VERIFY=0 skips verification and uses every backend.
"""

import contextlib
import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any

from resshift_fast.backends import autotune_cache, native, trial
from resshift_fast.core import environment
from resshift_fast.core.cache import CacheFile, cache_dir, read_text
from resshift_fast.core.devices import on
from resshift_fast.core.locking import locked
from resshift_fast.core.memory import is_out_of_memory

if TYPE_CHECKING:
    import torch

    from resshift_fast.backends import Operator

VARIABLE = "RESSHIFT_FAST_VERIFY"
# What a file contains; FAILED is followed by what was wrong. Anything else was not written by this package.
PASSED, RUNNING, FAILED = "passed", "running", "failed: "

MAX_LENGTH = 1000  # characters of a file

_verdicts: dict[tuple[Any, ...], str] = {}
_verifying = RLock()  # one thread at a time verifies, and warns


def forbidden() -> bool:
    """Whether kernels cannot be launched for verification: during CUDA graph capture, or tracing on fake tensors."""
    import torch
    from torch._guards import detect_fake_mode

    if torch.compiler.is_compiling() or detect_fake_mode() is not None:
        return True
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def passes(operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype") -> bool:
    """Whether a backend's kernel may be used; the first call verifies it, and warns once if it fails.

    While `forbidden`, only stored verdicts are read.

    Args:
        operator, backend: which kernel. device, dtype: of the operator's first argument.
    """
    if os.environ.get(VARIABLE) == "0":
        return True
    key = (operator.name, backend, device, dtype)
    if key in _verdicts:
        return _verdicts[key] == PASSED
    with _verifying:
        return _verified(key, operator)


def verdict(operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype") -> str:
    """The stored verdict on a backend's kernel: "passed", what was wrong, or "" if there is none. Runs nothing.

    Args:
        operator, backend, device, dtype: as in `passes`.
    """
    if os.environ.get(VARIABLE) == "0":
        return PASSED
    known = _verdicts.get((operator.name, backend, device, dtype))
    return known or _verdict_in(_stored(_path(operator, backend, device, dtype)))


def _verdict_in(stored: str) -> str:
    """The verdict in a file's content: "passed", what was wrong, or "" if there is none."""
    return stored if stored == PASSED else stored.removeprefix(FAILED) if stored.startswith(FAILED) else ""


def _verified(key: tuple[Any, ...], operator: "Operator") -> bool:
    """Whether the kernel of (operator, backend, device, dtype) passes, by a stored verdict or a new one."""
    _, backend, device, dtype = key
    if key not in _verdicts:
        path = _path(operator, backend, device, dtype)
        if forbidden():
            return _stored(path) == PASSED
        path = _with_folder(path)
        verdict = _verdicts[key] = _verdict(path, operator, backend, device, dtype)
        if verdict != PASSED:
            # A verdict that is not stored is not one on the kernel.
            stored = bool(_verdict_in(_stored(path)))
            again = f"remove {path} to verify it again" if stored else "the next process tries again"
            warnings.warn(
                f"the {backend} backend of {operator.name} is off for {dtype} on {device}: {verdict}; "
                f"plain PyTorch is used instead; {again}",
                RuntimeWarning,
                stacklevel=3,
            )
    return _verdicts[key] == PASSED


def _verdict(
    path: Path | None, operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype"
) -> str:
    """The stored verdict, else a new one, which is stored: "passed", or what was wrong."""
    with locked(path) as file:
        stored = _content(file)
        if verdict := _verdict_in(stored):
            return verdict
        _write(file, RUNNING)
        try:
            if stored == RUNNING:
                verdict, certain = trial.run(operator.name, backend, device, dtype)
            else:
                verdict, certain = compare(operator, backend, device, dtype), True
        except BaseException as error:  # an interrupt or a lack of memory is not the kernel's fault
            _write(file, "")
            if device.type == "cpu" and is_out_of_memory(error):
                return f"there was not enough memory to verify it ({type(error).__name__})"
            raise
        _write(file, "" if not certain else PASSED if verdict == PASSED else FAILED + verdict)
        return verdict


def compare(operator: "Operator", backend: str, device: "torch.device", dtype: "torch.dtype") -> str:
    """Compare a backend's kernel with the reference on the operator's examples.

    Args:
        operator, backend, device, dtype: as in `passes`.

    Returns:
        "passed", or what was wrong.

    Raises:
        torch.OutOfMemoryError, MemoryError, RuntimeError: memory is full, which says nothing about the kernel.
    """
    import torch

    from resshift_fast.core.accuracy import full_float32

    try:
        kernel = operator.loaders[backend]()
        with torch.no_grad(), torch.autocast(device.type, enabled=False), on(device), full_float32():
            for args in operator.examples(device, dtype):
                if kernel.unsupported(*args) is None:
                    kernel.function(*args)  # the second launch of a kernel takes a faster path, which is compared
                    wrong = difference(kernel.function(*args), operator.plain, args)
                    if wrong:
                        return wrong
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return PASSED


def watched(name: str, function: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a kernel's function so that its results are compared whenever a call autotunes a configuration.

    If they are wrong, the default configuration is used instead, with a warning.

    Args:
        name: the operator. function: the kernel's. plain: the operator in plain PyTorch.
    """
    import torch

    from resshift_fast.kernels import tuning

    def run(*args: Any) -> Any:
        with tuning.watching() as measured:
            result = function(*args)
        try:
            # A rounding error can change integer outputs completely; for these the tuner's own comparison has to do.
            compared = measured and all(x.is_floating_point() for x in _tensors(result))
            wrong = difference(result, plain, args) if compared else None
        except torch.OutOfMemoryError:  # the tuner has compared the results with the default's already
            return result
        if wrong is None:
            return result
        for choice in measured:
            choice.reject()
        configurations = " and ".join(map(str, measured))
        warnings.warn(f"{name}: {configurations}: {wrong}; the default is used instead", RuntimeWarning, stacklevel=3)
        return function(*args)

    return run


def difference(ours: Any, plain: Any, args: tuple[Any, ...]) -> str | None:
    """What is wrong with a kernel's outputs, or None; `core.accuracy` has the limits.

    Args:
        ours: the outputs. plain: the operator in plain PyTorch. args: the arguments of both.
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
                return f"output {i} differs at {int((a != b).sum())} of {a.numel()} elements"
            continue
        # The limit is that of the lowest precision among the output and the inputs.
        coarsest = max((x.dtype for x in (a, *_tensors(args)) if x.dtype.is_floating_point), key=_epsilon)
        if problem := errors(a, c).problem(limits(coarsest, errors(b, c))):
            return f"output {i} has {problem}"
    return None


def _strides(x: "torch.Tensor") -> list[int]:
    """The strides of dimensions longer than 1; those of others have no meaning."""
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
    """The file of the verdict; None if the cache folder is unknown."""
    try:
        folder = cache_dir() / "verdicts" / _environment(device)
    except OSError:
        return None
    return folder / f"{operator.name}-{backend}-{str(dtype).removeprefix('torch.')}"


def _with_folder(path: Path | None) -> Path | None:
    """Create the folder of a path and return the path; None if that is impossible."""
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return path


@cache
def _environment(device: "torch.device") -> str:
    """Hash of everything that a verdict depends on."""
    details = [autotune_cache.processor(), os.environ.get("RESSHIFT_FAST_CPU_ISA", "")] if device.type == "cpu" else []
    kernels = find_spec(__name__.partition(".")[0] + ".kernels")
    folders = [Path(folder) for folder in (kernels and kernels.submodule_search_locations) or ()]
    paths = environment.code(Path(__file__).parents[1] / "ops", *folders)
    if device.type in native.LIBRARIES and native.path(device.type).exists():
        paths.append(native.path(device.type))
    return environment.fingerprint(device, paths, details)


def _stored(path: Path | None) -> str:
    """A file's content without a lock; "" if it cannot be read or was not written by this package."""
    with contextlib.suppress(OSError):
        return _believed(read_text(path)) if path else ""
    return ""


def _content(file: CacheFile | None) -> str:
    with contextlib.suppress(OSError):
        return _believed(file.read()) if file else ""
    return ""


def _believed(text: str) -> str:
    """The content of a file if `_write` can have written it, else ""."""
    known = text in (PASSED, RUNNING) or (text.startswith(FAILED) and text.isprintable() and len(text) < MAX_LENGTH)
    return text if known else ""


def _write(file: CacheFile | None, text: str) -> None:
    """Replace the file's content; where that is impossible, as on a full disk, nothing is stored."""
    with contextlib.suppress(OSError):
        if file is not None:
            file.replace("".join(c if c.isprintable() else " " for c in text[: MAX_LENGTH - 1]))
