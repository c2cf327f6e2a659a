"""CUDA C++ kernels compile within their budgets, and listings of their machine code are parsed correctly."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import emulation
import pytest

from scripts.kernel_proof import cuda
from scripts.kernel_proof.budgets import Budgets

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(emulation.SANITIZED, reason="the sanitizers check the kernels, not compilers"),
]

ROOT = Path(__file__).parents[2]
BUDGETS = Budgets.load(Path(__file__).with_name("budgets.json"))
ARCHITECTURES = (80, 86, 89, 90, 100, 120)

# Two kernels as cuobjdump lists them, the second with matrix instructions and a spill.
LISTING = """
Fatbin elf code:
================
Resource usage:
 Common:
  GLOBAL:0
 Function _ZN8resshift4cuda12_GLOBAL__N_14copyINS_4HalfELi3EEEvi:
  REG:24 STACK:0 SHARED:128 LOCAL:0 CONSTANT[0]:368 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN8resshift4cuda12_GLOBAL__N_17productEv:
  REG:96 STACK:16 SHARED:0 LOCAL:8 CONSTANT[0]:368 TEXTURE:0 SURFACE:0 SAMPLER:0

\t\tFunction : _ZN8resshift4cuda12_GLOBAL__N_17productEv
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/                   HMMA.16816.F32 R8, R4, R2, R8 ;
        /*0010*/                   STL [R1], R3 ;
\t\t..........

\t\tFunction : _ZN8resshift4cuda12_GLOBAL__N_14copyINS_4HalfELi3EEEvi
\t.headerflags\t@"EF_CUDA_SM90"
        /*0000*/              @!P0 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0010*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*0020*/                   STG.E.128 desc[UR4][R2.64], R4 ;
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="needs c++filt to demangle names")
def test_a_listing_is_parsed_for_each_kernel():
    found = cuda.parse(LISTING)
    assert set(found) == {"copy<Half,3>", "product"}
    copy, product = found["copy<Half,3>"], found["product"]
    assert (copy.registers, copy.spill, copy.shared, copy.loads_128, copy.stores_128) == (24, 0, 128, 1, 1)
    assert (product.registers, product.spill, product.matrix) == (96, 24, "HMMA.16816.F32")


def test_every_kernel_has_a_budget_for_every_architecture():
    """A kernel is a `__global__` function, with any number of template arguments."""
    kernels = {}
    for file in (ROOT / "csrc/cuda").glob("*.cu"):
        words = file.read_text().replace("(", " ").split()
        starts = [i for i, word in enumerate(words) if word == "__global__"]
        names = [next(word for word in words[i:] if word.endswith("_kernel")) for i in starts]
        kernels |= {(name, file.stem): 0 for name in names}
    budgeted = {(name.split("<")[0].split()[0], name.split()[-2], name.split()[-1]) for name in BUDGETS.entries}
    expected = {(name, file, f"sm_{arch}") for name, file in kernels for arch in ARCHITECTURES}
    assert budgeted == expected


def test_no_kernel_spills_and_16_bit_products_multiply_matrices():
    assert not [name for name, entry in BUDGETS.entries.items() if entry["spill"]]
    for operator in (" window_attention", " pointwise_conv2d"):
        entries = [e for n, e in BUDGETS.entries.items() if operator in n and ("Half" in n or "BFloat16" in n)]
        assert entries and all(entry["matrix"].startswith("HMMA.16816.F32") for entry in entries)


def command(*options) -> subprocess.CompletedProcess:
    script = ROOT / "scripts/cuda_budgets.py"
    return subprocess.run([sys.executable, script, *map(str, options)], capture_output=True, text=True, cwd=ROOT)


needs_nvcc = pytest.mark.skipif(cuda.nvcc() is None, reason="there is no nvcc")


@needs_nvcc
def test_the_fastest_file_to_compile_is_within_its_budgets():
    result = command("--only", "vector_quantize", "--arch", 90)
    assert result.returncode == 0, result.stdout + result.stderr


@needs_nvcc
def test_more_registers_than_the_budget_are_an_error(tmp_path):
    name = next(name for name in BUDGETS.entries if name.endswith(" vector_quantize sm_90"))
    entry = BUDGETS.entries[name]
    strict = {name: {**entry, "registers": entry["registers"] - 1}}
    file = tmp_path / "budgets.json"
    Budgets({"nvcc": cuda.version()}, {**BUDGETS.entries, **strict}).save(file)
    result = command("--only", "vector_quantize", "--arch", 90, "--budgets", file)
    assert result.returncode == 1
    assert f"{entry['registers']} registers where the budget is {entry['registers'] - 1}" in result.stderr


def test_a_missing_nvcc_is_reported_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    result = command()
    assert result.returncode == 0 and len(result.stdout.splitlines()) == 1 and "nvcc is not installed" in result.stdout


def test_an_unknown_file_is_an_error():
    if cuda.nvcc() is None:
        pytest.skip("there is no nvcc")
    result = command("--only", "no_such_file")
    assert result.returncode == 2 and "no_such_file" in result.stderr


def test_the_budget_file_is_json_with_one_line_per_entry():
    text = Path(__file__).with_name("budgets.json").read_text()
    assert json.loads(text)["entries"] == BUDGETS.entries
    assert len(text.splitlines()) == len(BUDGETS.entries) + 5
