"""The compiled libraries: why one is missing, and that C++ itself refuses arguments that lead out of bounds."""

import json
import re
from pathlib import Path

import pytest
import torch

from resshift_fast.backends import native


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder in which the libraries are searched."""
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.delenv("RESSHIFT_FAST_CPU_LIBRARY", raising=False)
    native.missing.cache_clear()
    yield tmp_path
    monkeypatch.undo()
    native.missing.cache_clear()


def test_a_library_that_was_not_built_has_the_reason_from_its_build(folder):
    (folder / "native.json").write_text(json.dumps({"cpu": "no C++ compiler was found"}))
    assert native.missing("cpu") == "was not built: no C++ compiler was found"


def test_a_checkout_that_was_not_built_says_so(folder):
    assert native.missing("cpu") == "was not built: this copy was not installed with pip"


def test_a_broken_library_gives_a_reason_and_no_crash(folder):
    (folder / "_cpu.abi3.so").write_bytes(b"no library")
    assert native.missing("cpu").startswith("could not be loaded: ")


def test_the_environment_names_another_file(folder, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_CPU_LIBRARY", str(folder / "none.so"))
    assert native.path("cpu") == folder / "none.so" and native.path("cuda").parent == folder


def test_cuda_is_not_loaded_into_a_torch_without_it(folder, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    (folder / "_cuda.abi3.so").write_bytes(b"never read")
    assert native.missing("cuda").startswith("needs a build of torch for CUDA; this is ")


def test_an_operator_that_a_library_lacks(folder):
    with pytest.raises(AttributeError):
        native.operator("cpu", "no_such_operator")


@pytest.fixture(scope="module")
def cpu():
    if reason := native.missing("cpu"):
        pytest.skip(f"the CPU's library {reason}")
    return torch.ops.resshift_fast_cpu


X = torch.randn(2, 3, 8, 6)
ROW, SEED, STEP = torch.rand(8), torch.tensor([1, 2]), torch.tensor(1)


def posterior_step(**changes):
    arguments = {
        "x_t": X,
        "prediction": X,
        "y": X,
        "coefficients": ROW,
        "seed": SEED,
        "step": STEP,
        "origin": None,
        "prediction_type": 3,
        "clamp_x0": False,
        "noise": None,
        "lq": None,
        "next_dtype": torch.float32,
        "last": False,
    }
    return torch.ops.resshift_fast_cpu.posterior_step(**{**arguments, **changes})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x_t": X.double()}, "the latent must be float32"),
        ({"x_t": X[0]}, r"must be \[B, C, H, W\]"),
        ({"x_t": X[:0]}, "not empty"),
        ({"x_t": torch.ones(1).expand(2, 3, 2**16, 2**15)}, "2.31 pixels or more"),
        ({"prediction": X[:1]}, "prediction has size 1 in dimension 0, expected 2"),
        ({"prediction": X.double()}, "prediction must be float32, float16 or bfloat16"),
        ({"prediction": X[0]}, "prediction has 3 dimensions, expected 4"),
        ({"y": X[:, :, :7]}, "y has size 7 in dimension 2"),
        ({"y": X.long()}, "y must be float32"),
        ({"coefficients": ROW[:7]}, "coefficients has 7 elements, expected 8"),
        ({"coefficients": ROW.double()}, "coefficients has another dtype"),
        ({"seed": SEED[:1]}, "seed has 1 elements, expected 2"),
        ({"seed": SEED.int()}, "seed has another dtype"),
        ({"step": torch.empty(0, dtype=torch.int64)}, "step has 0 elements"),
        ({"origin": torch.zeros(2, 1, dtype=torch.int64)}, "origin has 2 elements, expected 4"),
        ({"noise": X[..., :5]}, "noise has size 5 in dimension 3"),
        ({"lq": X[:1]}, "lq must be"),
        ({"lq": X.double()}, "lq must be float32"),
        ({"next_dtype": torch.float64}, "next_dtype must be float32"),
        ({"prediction_type": 4}, "prediction_type must be 0 to 3"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_posterior_step_checks_its_arguments(cpu, changes, message):
    with pytest.raises(RuntimeError, match=message):
        posterior_step(**changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"x0": X[0]}, r"x0 must be \[B, C, H, W\]"),
        ({"y": X[:1]}, "y has size 1"),
        ({"noise": X.half()}, "must have x0's dtype"),
        ({"t": torch.tensor([1])}, "t has 1 elements, expected 2"),
        ({"table": torch.rand(4, 7)}, r"table must be \[T, 8\]"),
        ({"table": torch.rand(4, 8).double()}, "table must be float32"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_q_sample_checks_its_arguments(cpu, changes, message):
    arguments = {"x0": X, "y": X, "t": torch.tensor([0, 3]), "table": torch.rand(4, 8), "noise": X}
    with pytest.raises(RuntimeError, match=message):
        cpu.q_sample(**{**arguments, **changes})


def test_a_step_outside_the_table_gives_nan(cpu):
    result = cpu.q_sample(X, X, torch.tensor([4, -1]), torch.rand(4, 8), X)
    assert result.isnan().all()


def test_the_number_of_threads_changes_no_bit(cpu):
    x = torch.randn(2, 3, 96, 64)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(cpu.prior_sample(x, ROW, SEED, None, None, x, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    for one, several in zip(*results, strict=True):
        assert torch.equal(one, several)


def test_a_tiles_noise_equals_that_part_of_the_whole_bitwise(cpu):
    zeros, seed = torch.zeros(1, 5, 40, 48), torch.tensor([2**40 + 3])
    whole, _ = cpu.prior_sample(zeros, ROW, seed, None, None, None, torch.float32)
    origin = torch.tensor([[7, 11]])
    tile, _ = cpu.prior_sample(zeros[:, :, 7:29, 11:42], ROW, seed, origin, None, None, torch.float32)
    assert torch.equal(tile, whole[:, :, 7:29, 11:42]) and whole.std() > 0


def test_instruction_sets_are_named_as_in_the_library():
    header = (Path(native.__file__).parents[2] / "csrc/cpu/isa.h").read_text()
    names = re.search(r"enum class Isa : int \{ (.*) \};", header)[1]
    assert tuple(names.split(", ")) == native.INSTRUCTION_SETS
