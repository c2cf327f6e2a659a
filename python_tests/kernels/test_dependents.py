"""Programmatic dependent launch: kernels with the attribute wait before they touch memory."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resshift_fast.kernels import dependents, group_norm
from scripts.kernel_proof import coverage

ROOT = Path(__file__).parents[2]
# Of those that compile quickly: one pass over a plane, sums over a grid, small tables, products of matrices.
COMPILED = (
    *("group_norm_given_kernel", "group_norm_bwd_weight_kernel", "bias_table_bwd_kernel"),
    "pointwise_conv2d_kernel",
)


def wait_is_first(function: ast.FunctionDef) -> bool:
    """Whether a kernel waits in its first statement, and nowhere else."""
    waits = [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == "wait_for_previous"]
    return len(waits) == 1 and ast.unparse(function.body[0]) == "wait_for_previous()"


def functions_of(file: Path) -> dict[str, ast.FunctionDef]:
    return {node.name: node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_kernel_waits_in_its_first_statement():
    kernels = coverage.started_kernels(ROOT / "kernels")
    assert len(kernels) >= 30
    assert [k for k in sorted(kernels) if not wait_is_first(functions_of(ROOT / "kernels" / k[0])[k[1]])] == []


def test_only_this_module_uses_the_instructions():
    others = [file for file in (ROOT / "kernels").glob("*.py") if file.name != "dependents.py"]
    assert [file.name for file in others if "gdc_" in file.read_text()] == []


def test_a_late_wait_is_not_accepted():
    functions = functions_of(Path(__file__).with_name("compiled_dependents.py"))
    kernels = ("first_kernel", "late_kernel", "never_kernel")
    assert [wait_is_first(functions[name]) for name in kernels] == [True, False, False]


def compile_kernels(cache: Path, value: str, arch: int, *kernels: str) -> dict:
    """Output of compiled_dependents.py."""
    variables = {dependents.VARIABLE: value, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT), *sys.path])
    command = [sys.executable, str(Path(__file__).with_name("compiled_dependents.py")), str(arch), *kernels]
    found = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=600)
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.slow
def test_compiled_kernels_wait_before_they_access_memory(tmp_path):
    """Of a few: that all wait in their first statement is known without compiling them."""
    found = compile_kernels(tmp_path, "1", 90, *COMPILED)
    kernels = found["compiled"]
    never, late = kernels.pop("never_kernel"), kernels.pop("late_kernel")
    assert kernels.keys() == {*COMPILED, "first_kernel"}
    steps = {"ptx": ["griddepcontrol.wait", "griddepcontrol.launch_dependents"], "sass": ["ACQBULK", "PREEXIT"]}
    for code, expected in steps.items():
        other = {name: kernel[code][:2] for name, kernel in kernels.items() if kernel[code][:2] != expected}
        assert not other and all(len(kernel[code]) > 3 for kernel in kernels.values())
        assert all(kernel[code].count(step) == 1 for step in expected for kernel in kernels.values())
        assert late[code][0] not in expected  # the order in the code is that of the statements
        assert not set(never[code]) & set(expected)
    assert all(kernel["attribute"] for kernel in kernels.values()) and not never["attribute"]
    assert found["starts"] == {"first_kernel": True, "late_kernel": True, "never_kernel": False}


@pytest.mark.slow
@pytest.mark.parametrize(("value", "arch"), [("1", 80), ("0", 90)], ids=["sm_80", "off"])
def test_nothing_is_compiled_without_the_instructions_or_the_variable(value, arch, tmp_path):
    found = compile_kernels(tmp_path, value, arch, COMPILED[0])
    for kernel in found["compiled"].values():
        assert not kernel["attribute"] and kernel["ptx"] and kernel["sass"]
        assert not {"ACQBULK", "PREEXIT"} & set(kernel["sass"])
        assert not any(step.startswith("griddepcontrol") for step in kernel["ptx"])
    assert len(found["compiled"]) == 4
    assert value == "1" or not any(found["starts"].values())


def test_it_is_off_unless_the_variable_says_so():
    assert dependents.ENABLED.value == (os.environ.get(dependents.VARIABLE) == "1")


def test_the_interpreter_does_not_wait(monkeypatch):
    """It has no predecessor to wait for, and no compute capability."""
    x = torch.randn(1, 8, 3, 3)
    expected = group_norm.statistics(x, 2, 1e-5)
    monkeypatch.setattr(dependents, "ENABLED", type(dependents.ENABLED)(True))
    assert dependents.launch_options(dependents.wait_for_previous, 90) == {}
    assert torch.equal(group_norm.statistics(x, 2, 1e-5), expected)
