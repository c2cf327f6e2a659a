"""The proofs for a machine with a GPU: what they say where there is none, and how each ends up in the result."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_acceptance.py"


@pytest.fixture(scope="module")
def acceptance():
    spec = importlib.util.spec_from_file_location("gpu_acceptance", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def step(acceptance, program, **options):
    return acceptance.Step("one", [sys.executable, "-c", program, "{folder}"], 0.5, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("command", [[sys.executable, str(SCRIPT)], ["make", "gpu"]], ids=["script", "make"])
def test_without_a_gpu_one_line_says_so(command):
    # Tests may run under make, which tells the one below and has it say more.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPT.parents[1], env=environment)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and not done.stdout
    assert len(lines) == 1 and lines[0].startswith("no GPU, nothing was run: ")


def test_the_proofs_fit_their_time(acceptance):
    steps = acceptance.steps()
    assert len({one.name for one in steps}) == len(steps)
    assert all(0 < one.share <= 0.5 for one in steps)
    for one in steps:
        files = [part for part in one.command if part.endswith(".py")]
        assert all((SCRIPT.parents[1] / file).exists() for file in files), one.name


@pytest.mark.parametrize(
    "program, verdict",
    [("print('fine')", "passed"), ("raise SystemExit(3)", "failed"), ("import time; time.sleep(60)", "failed: longer")],
    ids=["passes", "fails", "hangs"],
)
def test_verdicts(acceptance, tmp_path, program, verdict):
    seconds = 6.0 if "sleep" in program else 60.0
    result = acceptance.run(step(acceptance, program), tmp_path, seconds)
    assert result["verdict"].startswith(verdict)
    assert ("fine" in result["output"]) == (verdict == "passed")


def test_a_missing_tool_and_spent_time_are_not_passed(acceptance, tmp_path):
    assert acceptance.run(step(acceptance, "", tool="no-such-tool"), tmp_path, 60)["verdict"] == "tool not installed"
    assert acceptance.run(step(acceptance, ""), tmp_path, 1)["verdict"] == "no time left"


def test_tables_go_into_the_result(acceptance, tmp_path):
    program = "import sys, pathlib; f = pathlib.Path(sys.argv[1]); (f/'a.csv').write_text('x,y\\n1,2\\n');"
    program += "(f/'b.json').write_text('{\"z\": 3}')"
    result = acceptance.run(step(acceptance, program, tables=("*.csv", "b.json")), tmp_path, 60)
    assert result["tables"] == {"a.csv": [{"x": "1", "y": "2"}], "b.json": {"z": 3}}
