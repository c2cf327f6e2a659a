"""A backend is compared with plain PyTorch before its first use; a wrong one is disabled, so results stay correct."""

import errno
import os
import warnings
from dataclasses import replace
from functools import partial
from threading import Thread

import pytest
import torch
from pipelines import SPECS, photo, tiny
from torch._subclasses.fake_tensor import FakeTensorMode

from resshift_fast import Pipeline, backends, ops, use_backend
from resshift_fast.backends import OPERATORS, Kernel, autotune_cache, dispatch, native, verification
from resshift_fast.backends.verification import RUNNING
from resshift_fast.ops.conv2d import reference

CPU = torch.device("cpu")
OPERATOR = "conv2d"
X, WEIGHT, BIAS = torch.randn(2, 3, 5, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
EXPECTED = reference(X, WEIGHT, BIAS, 1)
DEFAULTS = (None, 0, None, None, 1e-5, None, None, None)  # of the registered operator's arguments after the padding


class Backend:
    """A kernel for conv2d on the CPU that counts its calls; `change` is applied to the correct result."""

    def __init__(self, change=lambda y: y):
        self.calls, self.change = 0, change

    def __call__(self, *args):
        self.calls += 1
        return self.change(OPERATORS[OPERATOR].plain(*args))

    @property
    def used(self) -> bool:
        """Whether a call of the public function runs it."""
        before = self.calls
        call()
        return self.calls > before


def install(function) -> None:
    """Make `function` the CPU backend's kernel of conv2d."""
    operator = OPERATORS[OPERATOR]
    backends.add(replace(operator, loaders={**operator.loaders, "cpu": lambda: Kernel(function)}))


def call() -> torch.Tensor:
    return ops.conv2d(X, WEIGHT, BIAS)


def new_process() -> None:
    """Clear the verdicts cached in memory, as in a new process."""
    verification._verdicts.clear()
    verification._environment.cache_clear()
    dispatch._forget()


def verdict_file(tmp_path):
    (file,) = (tmp_path / "verdicts").rglob(f"{OPERATOR}-cpu-float32")
    return file


@pytest.fixture(autouse=True)
def own_verdicts(tmp_path, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    monkeypatch.delenv("RESSHIFT_FAST_VERIFY", raising=False)
    monkeypatch.setattr(native, "missing", lambda name: None)  # the kernels here are stand-ins
    before, remembered = OPERATORS[OPERATOR], dict(verification._verdicts)
    new_process()
    with use_backend("auto"):
        yield
    backends.add(before)
    new_process()
    verification._verdicts.update(remembered)


def test_a_kernel_that_is_wrong_at_its_second_run_is_disabled():
    calls = []

    def change(y):
        calls.append(0)
        return y if len(calls) % 2 else y * 1.01

    install(Backend(change))
    with pytest.warns(RuntimeWarning, match="the cpu backend of conv2d is off"):
        assert call().equal(EXPECTED)


def raises(_):
    raise RuntimeError("no such\nlaunch")


WRONG = {
    "one-percent-off": (lambda y: y * 1.01, r"output 0 has relative error 1\.0e-02, allowed 1\.0e-05"),
    "one-value-off": (lambda y: y.index_fill(3, torch.tensor([0]), 0.0), "output 0 has relative error"),
    "shape": (lambda y: y[..., 1:], r"output 0 is torch\.float32 \(2, 48, 9, 6\) with strides .*, expected"),
    "dtype": (lambda y: y.double(), r"output 0 is torch\.float64 .*, expected torch\.float32"),
    "strides": (lambda y: y.transpose(2, 3).contiguous().transpose(2, 3), r"output 0 is .* with strides"),
    "nan": (lambda y: torch.full_like(y, torch.nan), "output 0 has relative error nan"),
    "one-nan": (lambda y: y.index_fill(3, torch.tensor([0]), torch.nan), "output 0 has relative error nan"),
    "infinity": (lambda y: y / 0, "output 0 has relative error"),
    "number-of-outputs": (lambda y: (y, y), "2 outputs, expected 1"),
    "exception": (raises, "RuntimeError: no such launch"),
}


def test_a_correct_backend_is_verified_once_and_used(recwarn):
    backend = Backend()
    install(backend)
    assert call().equal(EXPECTED)
    examples = len(OPERATORS[OPERATOR].examples(CPU, torch.float32))
    assert backend.calls == 2 * examples + 1
    call()
    assert backend.calls == 2 * examples + 2
    assert not recwarn.list


@pytest.mark.parametrize("change, message", WRONG.values(), ids=WRONG)
def test_a_wrong_backend_is_disabled_with_one_warning(change, message):
    backend = Backend(change)
    install(backend)
    start = r"the cpu backend of conv2d is off for torch\.float32 on cpu: "
    with pytest.warns(RuntimeWarning, match=f"{start}{message}.*; plain PyTorch is used instead") as caught:
        assert call().equal(EXPECTED)
        calls = backend.calls
        assert call().equal(EXPECTED)
    assert len(caught) == 1
    assert backend.calls == calls


def test_a_backend_that_cannot_be_loaded_is_disabled():
    def load():
        raise ImportError("no compiled part")

    operator = OPERATORS[OPERATOR]
    backends.add(replace(operator, loaders={"cpu": load}))
    with pytest.warns(RuntimeWarning, match="ImportError: no compiled part"):
        assert call().equal(EXPECTED)


def test_each_dtype_is_verified_separately():
    backend = Backend(lambda y: y * 1.01 if y.dtype == torch.float32 else y)
    install(backend)
    with pytest.warns(RuntimeWarning) as caught:
        call()
        ops.conv2d(X.double(), WEIGHT.double())
    assert len(caught) == 1
    before = backend.calls
    ops.conv2d(X.double(), WEIGHT.double())
    assert backend.calls == before + 1


def test_an_error_of_16_bit_rounding_passes():
    install(Backend(lambda y: y * (1 + 2**-9) if y.dtype == torch.bfloat16 else y))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.conv2d(X.bfloat16(), WEIGHT.bfloat16())


def test_verdict_runs_nothing(tmp_path, monkeypatch):
    backend = Backend(lambda y: y * 1.01)
    install(backend)
    key = (OPERATORS[OPERATOR], "cpu", CPU, torch.float32)
    assert verification.verdict(*key) == "" and not backend.calls
    assert not (tmp_path / "verdicts").exists()
    with pytest.warns(RuntimeWarning):
        call()
    for forget in (lambda: None, new_process):
        forget()
        calls = backend.calls
        assert verification.verdict(*key) == "output 0 has relative error 1.0e-02, allowed 1.0e-05"
        assert backend.calls == calls
    file = verdict_file(tmp_path)
    file.write_text(RUNNING)
    assert verification.verdict(*key) == ""
    monkeypatch.setenv(verification.VARIABLE, "0")
    assert verification.verdict(*key) == "passed"


def test_a_later_process_reads_the_verdict(tmp_path):
    correct, wrong = Backend(), Backend(lambda y: y * 1.01)
    install(correct)
    call()
    assert verdict_file(tmp_path).read_text() == "passed"
    new_process()
    before = correct.calls
    call()
    assert correct.calls == before + 1
    verdict_file(tmp_path).unlink()
    install(wrong)
    new_process()
    with pytest.warns(RuntimeWarning, match="relative error"):
        call()
    new_process()
    before = wrong.calls
    with pytest.warns(RuntimeWarning, match="relative error") as caught:
        assert call().equal(EXPECTED)
    assert (wrong.calls, len(caught)) == (before, 1)


@pytest.mark.parametrize("changed", ["torch", "kernels", "library", "processor"])
def test_another_environment_is_verified_again(changed, tmp_path, monkeypatch):
    backend = Backend()
    install(backend)
    call()
    if changed == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    elif changed == "library":
        (tmp_path / "library.so").write_text("changed")
        monkeypatch.setattr(native, "path", lambda name: tmp_path / "library.so")
    elif changed == "processor":
        monkeypatch.setattr(autotune_cache, "processor", lambda: "another")
    else:
        (tmp_path / "ops").mkdir()
        (tmp_path / "ops/conv2d.py").write_text("changed")
        monkeypatch.setattr(verification, "__file__", str(tmp_path / "backends" / "verification.py"))
    new_process()
    before = backend.calls
    call()
    assert backend.calls > before + 1
    assert len(list((tmp_path / "verdicts").rglob("conv2d-cpu-float32"))) == 2


def test_an_interruption_leaves_no_verdict(tmp_path):
    def interrupted(_):
        raise KeyboardInterrupt

    backend = Backend(interrupted)
    install(backend)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert verdict_file(tmp_path).read_text() == ""
    backend.change = lambda y: y
    assert backend.used


def test_a_full_gpu_leaves_no_verdict_and_raises(tmp_path, monkeypatch):
    """Plain PyTorch would need even more memory."""

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(verification, "compare", full)
    path = tmp_path / "verdict"
    with pytest.raises(torch.OutOfMemoryError):
        verification._verdict(path, OPERATORS[OPERATOR], "cuda", torch.device("cuda"), torch.float32)
    assert path.read_text() == ""


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")], ids=repr)
def test_a_lack_of_memory_disables_a_kernel_in_this_process_only(error, tmp_path):
    def full(_):
        raise error

    install(Backend(full))
    with pytest.warns(RuntimeWarning, match="was not enough memory to verify it .*; the next process tries again"):
        assert call().equal(EXPECTED)
    assert verdict_file(tmp_path).read_text() == ""
    new_process()
    backend = Backend()
    install(backend)
    assert backend.used


@pytest.mark.parametrize("content", [b"passed\n", b"\0\0\0", b"\xff\xfe\x80", b"wrong by far", b'{"half', b"[]"])
def test_a_file_that_another_program_wrote_is_replaced(content, tmp_path, recwarn):
    backend = Backend()
    install(backend)
    assert backend.used
    verdict_file(tmp_path).write_bytes(content)
    new_process()
    calls = backend.calls
    call()
    assert backend.calls == calls + 2 * len(OPERATORS[OPERATOR].examples(CPU, torch.float32)) + 1
    assert verdict_file(tmp_path).read_text() == "passed" and not recwarn.list


@pytest.mark.parametrize("put", ["pipe", "folder", "device"])
def test_something_else_in_place_of_the_file_is_passed_over(put, tmp_path):
    backend = Backend()
    install(backend)
    assert backend.used
    file = verdict_file(tmp_path)
    file.unlink()
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": partial(os.symlink, "/dev/full")}[put](file)
    new_process()
    calls = backend.calls
    call()
    assert backend.calls > calls + 1


def test_a_full_disk_only_loses_the_verdict(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "fsync", full)
    backend = Backend()
    install(backend)
    assert backend.used
    assert verdict_file(tmp_path).read_text() == ""


def test_an_unwritable_cache_folder_still_verifies(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "file"))
    install(Backend(lambda y: y * 1.01))
    with pytest.warns(RuntimeWarning, match="relative error"):
        assert call().equal(EXPECTED)
    new_process()
    backend = Backend()
    install(backend)
    assert backend.used


def test_verification_can_be_switched_off(tmp_path, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_VERIFY", "0")
    backend = Backend(lambda y: y * 1.01)
    install(backend)
    assert call().equal(EXPECTED * 1.01)
    assert backend.calls == 1
    assert not (tmp_path / "verdicts").exists()


def test_nothing_is_verified_during_capture(monkeypatch):
    backend = Backend()
    install(backend)
    with monkeypatch.context() as capture:
        capture.setattr(verification, "forbidden", lambda: True)
        assert call().equal(EXPECTED)
        assert backend.calls == 0
    assert backend.used  # the fallback was not cached
    new_process()
    monkeypatch.setattr(verification, "forbidden", lambda: True)
    before = backend.calls
    call()
    assert backend.calls == before + 1  # allowed by the stored verdict


def test_a_stored_failure_applies_during_capture(monkeypatch, recwarn):
    backend = Backend(lambda y: y * 1.01)
    install(backend)
    with pytest.warns(RuntimeWarning):
        call()
    new_process()
    monkeypatch.setattr(verification, "forbidden", lambda: True)
    assert not backend.used


def pipeline(name: str = "x4") -> Pipeline:
    """A new pipeline over the networks of `tiny`."""
    shared = tiny(name)
    return Pipeline(SPECS[name], shared.denoiser, shared.first_stage, CPU, torch.float32)


@pytest.mark.parametrize("fault", ["one-percent-off", "exception", "nan"])
def test_a_pipeline_verifies_before_its_first_image(fault, tmp_path):
    image = photo(16, 16)
    install(Backend())  # the same operator, whose kernel is plain PyTorch
    expected = pipeline()(image, progress=False)
    verdict_file(tmp_path).unlink()
    new_process()
    backend = Backend(WRONG[fault][0])
    install(backend)
    with pytest.warns(RuntimeWarning, match="the cpu backend of conv2d is off") as caught:
        pipe = pipeline()
    assert len(caught) == 1
    calls = backend.calls
    assert calls > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (pipe(image, progress=False) == expected).all()
        pipeline()
    assert backend.calls == calls


def test_a_later_pipeline_reads_stored_verdicts_and_launches_nothing(tmp_path):
    backend = Backend()
    install(backend)
    pipeline()
    assert backend.calls == 2 * len(OPERATORS[OPERATOR].examples(CPU, torch.float32))
    new_process()
    calls = backend.calls
    pipeline()
    assert backend.calls == calls
    verdict_file(tmp_path).unlink()
    new_process()
    pipeline()
    assert backend.calls == 2 * calls


def test_a_pipeline_verifies_nothing_if_verification_is_off(tmp_path, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_VERIFY", "0")
    backend = Backend()
    install(backend)
    pipeline()
    assert backend.calls == 0
    assert not (tmp_path / "verdicts").exists()


def test_a_pipeline_without_kernels_verifies_nothing(monkeypatch):
    monkeypatch.setattr(native, "missing", lambda name: "was not built")
    dispatch._forget()
    monkeypatch.setattr(verification, "passes", lambda *_: pytest.fail("a backend was verified"))
    backends.verify(CPU, torch.float32)
    pipeline()


def test_the_operators_of_inference_are_verified_in_the_models_dtype(monkeypatch):
    verified = []
    monkeypatch.setattr(verification, "passes", lambda operator, *key: verified.append((operator.name, *key)))
    for operator in OPERATORS.values():
        monkeypatch.setitem(OPERATORS, operator.name, replace(operator, loaders={"cpu": lambda: None}))
    dispatch._forget()
    backends.verify(CPU, torch.bfloat16)
    dtypes = {name: dtype for name, backend, device, dtype in verified if (backend, device) == ("cpu", CPU)}
    assert len(dtypes) == len(verified)
    assert {name for name in dtypes if OPERATORS[name].public} == set(ops.__all__) - {"q_sample"}
    latents = {"posterior_step", "prior_sample"}
    assert {name for name, dtype in dtypes.items() if dtype == torch.float32} == latents
    assert {dtype for name, dtype in dtypes.items() if name not in latents} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["x4", "x4-vq", "inpaint-vq"])
def test_nothing_is_left_to_verify_when_a_model_runs(name, monkeypatch):
    compared = []
    monkeypatch.setattr(verification, "compare", lambda operator, *_: compared.append(operator.name) or "passed")
    for operator in OPERATORS.values():
        plain = replace(operator, loaders={"cpu": partial(Kernel, operator.plain)})
        monkeypatch.setitem(OPERATORS, operator.name, plain)
    dispatch._forget()
    pipe = pipeline(name)
    assert set(compared) >= {"group_norm", "window_attention", "posterior_step"}
    compared.clear()
    image = torch.rand(1, 3, 16, 16)
    pipe(image, image[:, :1] > 0.5 if pipe.spec.needs_mask else None, progress=False)
    assert dispatch._choices and not compared


def test_nothing_is_verified_on_fake_tensors(tmp_path):
    backend = Backend()
    install(backend)
    with FakeTensorMode():
        backends.verify(CPU, torch.float32)
        backends.verify(torch.device("cuda"), torch.float32)
        torch.ops.resshift_fast.conv2d(torch.empty(2, 3, 5, 7), torch.empty(4, 3, 3, 3), None, 1, *DEFAULTS)
    assert backend.calls == 0
    assert not list((tmp_path / "verdicts").rglob(f"{OPERATOR}-*"))
    assert backend.used


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_nothing_is_verified_while_a_program_is_traced(compiler, monkeypatch):
    backend = Backend()
    install(backend)
    seen = []

    def watched(graph, inputs):
        backends.verify(CPU, torch.float32)
        compiled = torch._dynamo.lookup_backend(compiler)(graph, inputs)
        seen.append(backend.calls)
        return compiled

    torch._dynamo.reset()
    compiled = torch.compile(ops.conv2d, fullgraph=True, dynamic=True, backend=watched)
    assert compiled(X, WEIGHT, BIAS).equal(EXPECTED)
    torch._dynamo.reset()
    assert seen == [0]
    assert backend.used  # verified when the compiled program first runs


def test_only_one_of_several_threads_verifies_and_warns(recwarn):
    backend = Backend(lambda y: y * 1.01)
    install(backend)
    warnings.simplefilter("always")
    threads = [Thread(target=backends.verify, args=(CPU, torch.float32)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert backend.calls == 2  # one example, run twice, shows the fault
    assert len(recwarn.list) == 1


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_plain_pytorch_itself_passes(name):
    """Every operator's examples suit the comparison: its own plain path passes as a backend."""
    operator = OPERATORS[name]
    operator = replace(operator, loaders={"cpu": partial(Kernel, operator.plain)})
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        if name in ("posterior_step", "prior_sample") and dtype != torch.float32:
            continue  # latents are float32
        assert verification.compare(operator, "cpu", CPU, dtype) == "passed"
