"""Programmatic dependent launch: kernels with the attribute wait before they touch memory."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resshift_fast.kernels import dependents, group_norm

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"  # has fake_driver.py
COMPILE = """
import json
from unittest import mock
import torch
from fake_driver import FakeGpu, active
from triton import JITFunction
from resshift_fast.kernels import ahead, group_norm, tuning
from resshift_fast.kernels.launch import record
x = torch.zeros(1, 64, 8, 8, dtype=torch.bfloat16)
with active(FakeGpu()), mock.patch.object(JITFunction, "run") as run:
    group_norm.statistics(x, 32, 1e-5)
found = {"start": bool(run.call_args.kwargs.get("launch_pdl"))}
x = x.to("meta")
for arch in (80, 90):
    with tuning.targeting(arch), record() as launches:
        group_norm.statistics(x, 32, 1e-5)
    compiled = ahead.compile_job(ahead.job_of(launches[0], arch))
    found[arch] = compiled.asm["ptx"], compiled.metadata.launch_pdl
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize("value", ["1", "0"], ids=["on", "off"])
def test_kernels_wait_before_they_read(value, tmp_path):
    variables = {dependents.VARIABLE: value, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    variables["PYTHONPATH"] = os.pathsep.join([str(BENCHMARKS), *sys.path])
    command = [sys.executable, "-c", COMPILE]
    found = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    kernels = json.loads(found.stdout)
    assert kernels.pop("start") == (value == "1")
    for arch, (ptx, attribute) in kernels.items():
        waits = value == "1" and arch == "90"
        assert attribute == waits
        steps = re.findall(r"\b(griddepcontrol\.\w+|ld\.global|st\.global|atom|red)\b", ptx)
        assert "ld.global" in steps
        assert steps[:2] == ["griddepcontrol.wait", "griddepcontrol.launch_dependents"] if waits else True
        assert sum(step.startswith("griddep") for step in steps) == (2 if waits else 0)


def test_it_is_off_unless_the_variable_says_so():
    assert dependents.ENABLED.value == (os.environ.get(dependents.VARIABLE) == "1")


def test_the_interpreter_does_not_wait(monkeypatch):
    """It has no predecessor to wait for, and no compute capability."""
    x = torch.randn(1, 8, 3, 3)
    expected = group_norm.statistics(x, 2, 1e-5)
    monkeypatch.setattr(dependents, "ENABLED", type(dependents.ENABLED)(True))
    assert dependents.launch_options(dependents.wait_for_previous, 90) == {}
    assert torch.equal(group_norm.statistics(x, 2, 1e-5), expected)
