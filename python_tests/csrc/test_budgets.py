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


@pytest.fixture
def copied(tmp_path, monkeypatch):
    """A file with one kernel, which includes another file, and its records and budgets."""
    monkeypatch.setattr(cuda, "version", lambda: "13.0.88")
    source, records = tmp_path / "copy.cu", tmp_path / "budgets.compiled"
    source.write_text('#include <cstdio>\n#include "part.h"\n')
    source.with_name("part.h").write_text("// 1\n")
    cuda.save_records(records, {f"copy sm_{arch}": cuda.key(source) for arch in (80, 90)} | {"other sm_90": "0"})
    entry = {"registers": 24, "spill": 0, "shared": 0, "loads_128": 1, "stores_128": 1, "matrix": "none"}
    return (
        source,
        records,
        Budgets({"nvcc": "13.0.88"}, {"copy_kernel<Half,3> copy sm_90": entry, "k other sm_90": entry}),
    )


def test_an_unchanged_file_is_taken_over(copied, monkeypatch):
    source, records, budgets = copied
    known = cuda.accepted([source], budgets, cuda.load_records(records))
    assert {pair: list(found) for pair, found in known.items()} == {
        ("copy", 80): [],
        ("copy", 90): ["copy_kernel<Half,3>"],
    }
    monkeypatch.setattr(cuda, "kernels", lambda file, arch: {"compiled": arch})
    results = cuda.read_all([source], [86, 90], 1, known=known)
    assert list(results) == [(source, 86, {"compiled": 86}), (source, 90, known["copy", 90])]
    # What was built is read, whatever is known.
    monkeypatch.setattr(cuda, "built", lambda file: {90})
    monkeypatch.setattr(cuda, "_listing", lambda file, arch: f"{file.name} {arch}")
    monkeypatch.setattr(cuda, "parse", lambda listing: {"read": listing})
    results = [found for *_, found in cuda.read_all([source], [80, 90], 1, source.parent, known)]
    assert results == [{}, {"read": f"{source.parent.name}_copy.cu.o 90"}]


def test_a_changed_file_or_another_compiler_takes_over_nothing(copied, monkeypatch):
    source, records, budgets = copied
    source.with_name("part.h").write_text("// 2\n")
    assert cuda.accepted([source], budgets, cuda.load_records(records)) == {}
    monkeypatch.setattr(cuda, "version", lambda: "13.1.0")
    assert cuda.load_records(records) == {} == cuda.load_records(records.with_name("none"))


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
