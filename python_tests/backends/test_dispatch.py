"""Choice of a backend: by `use_backend`, the environment and a call's arguments; a refusal gives its reason."""

import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import PackageNotFoundError

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from resshift_fast import Pipeline, backends, ops, use_backend
from resshift_fast.backends import (
    OPERATORS,
    VARIABLE,
    Kernel,
    check,
    descriptions,
    dispatch,
    fused,
    native,
    preferred,
    registry,
    status,
    unavailable,
    verification,
)

CPU = torch.device("cpu")
OPERATOR = "conv2d"
X, WEIGHT = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3)
ARGS = (X, WEIGHT, None, 1, None, 0, None, None, 1e-5, None, None, None)  # of the registered operator


@pytest.fixture(autouse=True)
def no_preference(monkeypatch):
    monkeypatch.setattr(dispatch, "_preferred", "auto")
    monkeypatch.setattr(native, "missing", lambda name: None)  # the kernels here are stand-ins
    dispatch._forget()
    yield
    monkeypatch.undo()
    dispatch._forget()


@pytest.fixture
def kernels(monkeypatch):
    """Install kernels of conv2d without verification: {backend: constant it returns, or why it takes no call}."""
    before = OPERATORS[OPERATOR]
    monkeypatch.setenv(verification.VARIABLE, "0")

    def install(**results):
        def loader(result):
            unsupported = (lambda *_: result) if isinstance(result, str) else (lambda *_: None)
            return lambda: Kernel(lambda *args: torch.full_like(before.plain(*args), result), unsupported)

        backends.add(replace(before, loaders={name: loader(result) for name, result in results.items()}))

    yield install
    backends.add(before)


@pytest.fixture
def keep_kernels(monkeypatch):
    """Remove an operator's kernels except those of the named backends, which are not verified."""
    monkeypatch.setenv(verification.VARIABLE, "0")

    def keep(name, *kept):
        operator = OPERATORS[name]
        loaders = {backend: operator.loaders[backend] for backend in kept}
        monkeypatch.setitem(OPERATORS, name, replace(operator, loaders=loaders))
        dispatch._forget()

    return keep


def ran() -> str:
    """Which kernel a call of conv2d runs: the constant that it returns, or "reference"."""
    y = ops.conv2d(X, WEIGHT)
    return "reference" if y.equal(OPERATORS[OPERATOR].plain(*ARGS)) else str(int(y.mean()))


def run(program: str, **environment: str) -> str:
    """What a new process prints, else the last line of its stderr; only the given variables choose a backend."""
    kept = {k: v for k, v in os.environ.items() if k not in (VARIABLE, "TRITON_INTERPRET")}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env={**kept, **environment}, capture_output=True, text=True)
    return result.stdout.strip() or result.stderr.strip().splitlines()[-1]


def test_auto_is_the_default():
    assert preferred() == "auto"


@pytest.mark.parametrize("name", ["auto", "reference"])
def test_use_backend_prefers_a_backend_within_its_block(name):
    with use_backend(name):
        assert preferred() == name
        with use_backend("reference"):
            assert preferred() == "reference"
        assert preferred() == name
    assert preferred() == "auto"


def test_use_backend_restores_the_preference_after_an_error():
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert preferred() == "auto"


@pytest.mark.parametrize("value, expected", [("reference", "reference"), ("", "auto"), ("auto", "auto")])
def test_the_environment_chooses_outside_use_backend(value, expected):
    program = """
from resshift_fast import backends
print(backends.preferred(), end=" ")
with backends.use_backend("reference"):
    print(backends.preferred(), end=" ")
print(backends.preferred())
"""
    assert run(program, **{VARIABLE: value}) == f"{expected} reference {expected}"


def test_a_bad_choice_in_the_environment_fails_at_its_first_use():
    program = "from resshift_fast import backends; print('imported', end=' ', flush=True); backends.preferred()"
    assert run(program, **{VARIABLE: "tpu"}) == "imported"
    program = "from resshift_fast import backends; backends.preferred()"
    expected = f"ValueError: {VARIABLE}: unknown backend 'tpu', expected one of auto, reference, cpu, cuda, triton"
    assert run(program, **{VARIABLE: "tpu"}) == expected


def test_a_bad_choice_in_the_environment_fails_when_a_pipeline_is_built(monkeypatch):
    monkeypatch.setattr(dispatch, "_preferred", "cuda")
    monkeypatch.setattr(native, "missing", lambda name: f"{name} was not built: no nvcc")
    with pytest.raises(ValueError, match="backend 'cuda' cuda was not built: no nvcc"):
        Pipeline.from_pretrained("nano-x4", random_weights=True)


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_a_backend_without_its_library_is_refused_with_the_reason(name, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda name: "was not built: no C++ compiler was found")
    with pytest.raises(ValueError, match=f"backend {name!r} was not built: no C\\+\\+ compiler was found"):
        check(name)
    with pytest.raises(ValueError, match="was not built"), use_backend(name):
        pytest.fail("the block must not run")
    assert preferred() == "auto"
    triton = ("triton",) if descriptions.has_triton() else ()
    assert dispatch._order("posterior_step", name) == (triton if name == "cuda" else ())


def test_a_backend_without_kernels_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(registry, "OPERATORS", {OPERATOR: replace(OPERATORS[OPERATOR], loaders={})})
    with pytest.raises(ValueError, match="'cpu' has no kernels in this build; use 'auto' or 'reference'"):
        check("cpu")


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown backend 'tpu', expected one of auto, reference, cpu, cuda, triton"):
        use_backend("tpu").__enter__()


@pytest.mark.parametrize(
    "package, gpu, interpreter, reason",
    [
        (False, False, False, "needs Triton, which is not installed; pip install triton"),
        (False, True, True, "needs Triton, which is not installed; pip install triton"),
        (True, False, False, r"needs a GPU that this build of torch can use; torch\.cuda\.is_available\(\) is False"),
        (True, False, True, None),
        (True, True, False, None),
    ],
)
def test_triton_needs_its_package_and_a_gpu_or_the_interpreter(package, gpu, interpreter, reason, monkeypatch):
    monkeypatch.setattr(descriptions, "has_triton", lambda: package)
    monkeypatch.setattr(descriptions, "_has_gpu", lambda: gpu)
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpreter else "0")
    if reason is None:
        assert unavailable("triton") is None
        assert check("triton") == "triton"
    else:
        with pytest.raises(ValueError, match=f"backend 'triton' {reason}"), use_backend("triton"):
            pytest.fail("the block must not run")


@pytest.mark.parametrize(
    "triton, numpy, works",
    [("3.6.0", "2.3.5", True), ("3.6.0+git1", "2.4.0rc1", False), ("3.5.1", "3.0", False), ("3.7.0", "2.4.6", True)],
)
def test_an_older_interpreter_needs_an_older_numpy(triton, numpy, works, monkeypatch):
    monkeypatch.setattr(descriptions, "has_triton", lambda: True)
    monkeypatch.setattr(descriptions, "_has_gpu", lambda: True)
    monkeypatch.setattr(descriptions, "version", {"triton": triton, "numpy": numpy}.get)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    assert check("triton") == "triton"  # on a GPU kernels are compiled
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    if works:
        assert check("triton") == "triton"
    else:
        with pytest.raises(ValueError, match="backend 'triton' needs a NumPy before 2.4, .*; pip install 'numpy<2.4'$"):
            check("triton")


def test_unknown_versions_are_assumed_to_work_in_the_interpreter(monkeypatch):
    def unknown(package):
        raise PackageNotFoundError(package)

    monkeypatch.setattr(descriptions, "version", unknown)
    assert descriptions.interpreter_fault() is None


def test_the_default_order_depends_on_the_device(monkeypatch):
    monkeypatch.setattr(descriptions, "has_triton", lambda: True)
    every = {"cpu": None, "triton": None, "cuda": None}
    monkeypatch.setitem(OPERATORS, OPERATOR, replace(OPERATORS[OPERATOR], loaders=every))
    orders = {kind: dispatch._order(OPERATOR, kind) for kind in ("cuda", "cpu", "xpu", "mps")}
    assert orders == {"cuda": ("cuda", "triton"), "cpu": ("cpu",), "xpu": ("triton",), "mps": ()}
    monkeypatch.setattr(descriptions, "has_triton", lambda: False)
    assert dispatch._order(OPERATOR, "cuda") == ("cuda",)


def test_auto_runs_the_cpus_kernel_or_else_the_reference(kernels):
    kernels()
    assert ran() == "reference"
    kernels(cpu=1)
    assert ran() == "1"
    kernels()
    assert ran() == "reference"


def test_use_backend_changes_what_runs(kernels):
    kernels(cpu=1)
    with use_backend("reference"):
        assert ran() == "reference"
        with use_backend("cpu"):
            assert ran() == "1"
        assert ran() == "reference"
    assert ran() == "1"


def test_triton_takes_cpu_tensors_only_in_the_interpreter(kernels, monkeypatch):
    monkeypatch.setattr(descriptions, "has_triton", lambda: True)
    monkeypatch.setattr(descriptions, "_has_gpu", lambda: True)
    kernels(cpu=1, triton=2)
    for interpreter, expected in (("1", "2"), ("0", "reference")):
        monkeypatch.setenv("TRITON_INTERPRET", interpreter)
        with use_backend("triton"):
            assert ran() == expected


def test_an_operator_without_a_kernel_of_the_preferred_backend_runs_the_reference(kernels):
    kernels(cuda=1, triton=2)
    with use_backend("cpu"):
        assert ran() == "reference"
        kernels(cpu=3)
        assert ran() == "3"


def test_an_unsupported_call_falls_back_to_the_next_backend_and_then_to_the_reference(kernels, monkeypatch):
    monkeypatch.setitem(registry.ORDER, "cpu", ("cpu", "cuda"))
    kernels(cpu=1, cuda=2)
    assert ran() == "1"
    kernels(cpu="three channels", cuda=2)
    assert ran() == "2"
    kernels(cpu="three channels", cuda="five rows")
    assert ran() == "reference"


def test_status_lists_every_operator_with_a_reason(kernels, keep_kernels, monkeypatch):
    monkeypatch.setattr(descriptions, "has_triton", lambda: True)
    monkeypatch.setattr(descriptions, "_has_gpu", lambda: False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    kernels(cpu=1)
    keep_kernels("swin_mlp", "triton")
    assert [decision.operator for decision in status()] == sorted(ops.__all__)
    assert status_of(OPERATOR) == ("cpu", "the first that runs on cpu")
    gpu = "triton needs a GPU that this build of torch can use; torch.cuda.is_available() is False"
    assert status_of("swin_mlp") == ("reference", gpu)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert status_of("swin_mlp") == ("reference", "triton does not take cpu tensors")
    with use_backend("triton"):
        assert status_of("swin_mlp") == ("triton", "preferred by use_backend")
        assert status_of(OPERATOR) == ("reference", "has no kernel in the preferred backend triton")
    with use_backend("reference"):
        assert {(d.backend, d.reason) for d in status()} == {("reference", "preferred by use_backend")}
        monkeypatch.setenv(VARIABLE, "reference")
        assert status_of(OPERATOR) == ("reference", f"preferred by {VARIABLE}")
    kernels()
    assert status_of(OPERATOR) == ("reference", "PyTorch's own kernel; no other is built")


def test_status_says_why_a_better_backend_does_not_run(kernels, monkeypatch):
    reasons = {"cuda": "was not built: nvcc is missing", "triton": None}
    monkeypatch.setattr(registry, "unavailable", reasons.get)
    monkeypatch.setattr(descriptions, "has_triton", lambda: True)
    kernels(cuda=1, triton=2)
    assert status_of(OPERATOR, "cuda") == ("triton", "the first that runs on cuda; cuda was not built: nvcc is missing")


def test_status_says_which_backend_failed_its_verification_and_for_which_dtypes(kernels, monkeypatch):
    kernels(cpu=1)
    verdicts = {torch.float16: "output 0 has relative error 1.0e-01, allowed 4.0e-03", torch.bfloat16: "passed"}
    monkeypatch.setattr(verification, "verdict", lambda operator, b, device, dtype: verdicts.get(dtype, ""))
    good, bad = (decision for decision in status() if decision.operator == OPERATOR)
    assert (good.backend, good.dtypes) == ("cpu", ("float32", "bfloat16"))
    assert (bad.backend, bad.dtypes) == ("reference", ("float16",))
    assert bad.reason == f"cpu off: verification failed: {verdicts[torch.float16]}"


def status_of(operator: str, device: str = "cpu") -> tuple[str, str]:
    """(backend, reason) that `status` gives for an operator, the same for all its dtypes."""
    (found,) = (decision for decision in status(device) if decision.operator == operator)
    assert not found.dtypes
    return found.backend, found.reason


def test_the_chosen_backend_is_the_one_that_runs(kernels):
    kernels(cpu=1)
    assert backends.chosen(OPERATOR, *ARGS) == "cpu" and backends.candidates(OPERATOR, "cpu") == ("cpu",)
    kernels(cpu="three channels")
    assert backends.chosen(OPERATOR, *ARGS) == "reference"
    with use_backend("reference"):
        assert backends.chosen(OPERATOR, *ARGS) == "reference"


def test_traced_code_calls_an_operator_that_has_a_kernel_or_is_opaque(kernels, keep_kernels, monkeypatch):
    kernels(cpu=1)
    for name in ("group_norm", "window_attention"):
        keep_kernels(name)
    assert fused(OPERATOR, CPU) and not fused(OPERATOR, torch.device("cuda")) and not fused("group_norm", CPU)
    assert not fused("window_attention", CPU, opaque=True)  # eager code calls the reference directly
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert fused("window_attention", CPU, opaque=True) and not fused("group_norm", CPU)
    with use_backend("reference"):
        assert not fused("window_attention", CPU, opaque=True) and not fused(OPERATOR, CPU)


@pytest.mark.parametrize("cpu", [{}, {"cpu": "takes nothing"}, {"cpu": 1}], ids=["no-kernel", "unsupported", "kernel"])
def test_an_operator_returns_its_inputs_dtype_under_autocast(cpu, kernels):
    kernels(**cpu)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = torch.ops.resshift_fast.conv2d(*ARGS)
        assert (X.reshape(14, 15) @ X.reshape(14, 15).T).dtype == torch.bfloat16
    assert y.dtype == torch.float32
    assert y.equal(torch.ops.resshift_fast.conv2d(*ARGS))


def test_a_kernel_runs_with_its_tensors_device_as_the_current_device(monkeypatch):
    """A launcher starts its kernel on the current device, which may differ from the tensors' device."""
    current, during = [0], []

    @contextmanager
    def device(which):
        before, current[0] = current[0], which.index
        yield
        current[0] = before

    def kernel(x, *_):
        during.append(current[0])
        return torch.empty_like(x)

    monkeypatch.setenv(verification.VARIABLE, "0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setitem(OPERATORS, OPERATOR, replace(OPERATORS[OPERATOR], loaders={"cuda": lambda: Kernel(kernel)}))
    for current[0] in (0, 1):  # a tensor on cuda:1 would need two GPUs, even a fake one
        before = current[0]
        with FakeTensorMode():
            backends.run(OPERATOR, torch.empty(1, 1, 3, 3, device="cuda:0"))
        assert (during.pop(), current[0]) == (0, before)


def test_auto_and_reference_give_equal_results():
    x, weight, bias = torch.randn(1, 32, 4, 4), torch.rand(32), torch.rand(32)
    results = []
    for name in ("auto", "reference"):
        with use_backend(name):
            results.append(ops.group_norm(x, 32, weight, bias))
    torch.testing.assert_close(*results)


@pytest.mark.slow
def test_triton_is_not_imported_unless_it_runs():
    program = """
import sys, torch
from resshift_fast import backends, ops
backends.unavailable("triton")
ops.group_norm(torch.randn(1, 4, 3, 3), 2, torch.ones(4), torch.ones(4))
assert backends.chosen("group_norm", torch.randn(1, 4, 3, 3), 2, *2 * [torch.ones(4)], 1e-5, *3 * [None]) != "triton"
print("triton" in sys.modules, any(name.startswith("resshift_fast.kernels") for name in sys.modules))
"""
    assert run(program) == "False False"
