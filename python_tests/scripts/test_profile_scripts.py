"""The shell scripts around nsys and ncu: the commands that they run, and their messages without a tool or a GPU."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nsys_export import Export

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
NSYS, NCU = SCRIPTS / "profile_nsys.sh", SCRIPTS / "profile_ncu.sh"
SMALL = ("--model", "nano-x4", "--size", "16", "--dtype", "float32", "--steps", "1", "--warmup", "1", "--runs", "1")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@pytest.fixture
def tools(tmp_path):
    """The only folder on the scripts' PATH, with the commands of the system that they need."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("bash", "env", "mkdir", "dirname", "cat", "cp"):
        (folder / name).symlink_to(shutil.which(name))
    return folder


def program(folder, name, body):
    """Write a program that logs its arguments and then runs `body`."""
    path = folder / name
    path.write_text(f'#!/bin/bash\nprintf "%s " {name} "$@" >> "{folder}/log"\necho >> "{folder}/log"\n{body}\n')
    path.chmod(0o755)


def run(script, *arguments, tools, python=sys.executable):
    done = subprocess.run(
        [shutil.which("bash"), str(script), *map(str, arguments)],
        env={**os.environ, "PATH": str(tools), "PYTHON": str(python), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


def called(tools):
    path = tools / "log"
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("script", [NSYS, NCU], ids=["nsys", "ncu"])
def test_help_says_every_default(script, tools):
    code, out, _ = run(script, "--help", tools=tools)
    assert code == 0 and out.startswith(f"usage: scripts/{script.name}")
    options = [line.strip() for line in out.splitlines() if line.startswith("  --")]
    assert {"--help", "--output", "--dtype", "--batch"} <= {line.split()[0] for line in options}
    assert "Default: out/profile." in out


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        (NSYS, ("--sizes", "3"), "unknown option --sizes"),
        (NSYS, ("--size",), "--size needs a value"),
        (NSYS, ("--graph-trace", "all"), "--graph-trace is all, expected node or graph"),
        (NCU, (), "name an operator"),
        (NCU, ("group_norm", "swin_mlp"), "two operators, group_norm and swin_mlp"),
        (NCU, ("group_norm", "--fast"), "unknown option --fast"),
        (NCU, ("group_norm", "--set"), "--set needs a value"),
    ],
)
def test_bad_options(script, arguments, message, tools):
    code, out, err = run(script, *arguments, tools=tools)
    assert code == 2 and not out
    assert err.startswith("error: ") and message in err and err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_torch_records_and_the_report_is_the_same(tools, tmp_path):
    folder = tmp_path / "profile"
    code, out, err = run(NSYS, *SMALL, "--output", folder, "--top", "3", tools=tools)
    assert code == 0, err
    assert "torch.profiler records in place of nsys: torch finds no CUDA GPU here" in err
    assert "nano-x4, 16x16 input, batch 1, 1 steps, float32, eager on cpu, recorded by torch.profiler" in out
    for line in ("encode ", "prepare ", "denoise 1 ", "decode ", "all "):
        assert f"\n{line}" in out
    files = {path.name for path in folder.iterdir()}
    plot = {"report.png"} if importlib.util.find_spec("matplotlib") else set()
    tables = {"stages.csv", "operators.csv", "kernels.csv", "gaps.csv"}
    assert files == {"trace.json", "workload.json", "report.txt"} | tables | plot


GPU = 'case "$1" in -c) exit 0 ;; esac'  # a Python that answers yes when a script asks for a GPU


def test_without_nsys_it_says_how_to_get_it(tools, tmp_path):
    program(tools, "python", GPU)
    code, _, err = run(NSYS, "--output", tmp_path, tools=tools, python=tools / "python")
    assert code == 0
    assert "nsys is not installed" in err and "https://developer.nvidia.com/nsight-systems" in err
    _, recorded, reported = called(tools)
    profile = ["python", "-m", "resshift_fast", "profile", "--output", str(tmp_path), "--tool", "torch"]
    assert recorded == profile
    assert reported == ["python", "-m", "resshift_fast", "bench", "report", f"{tmp_path}/trace.json"]


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "not-installed"])
def test_the_python_of_the_active_environment_is_taken_if_it_has_the_package(installed, tools, tmp_path):
    other = tmp_path / "other"
    (other / "bin").mkdir(parents=True)
    program(tools, "python", f"{GPU}\nexit 0")
    program(other / "bin", "python", "" if installed else "exit 1")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHON"}
    environment |= {"PATH": str(tools), "VIRTUAL_ENV": str(other)}
    command = [shutil.which("bash"), str(NSYS), "--device", "cpu", "--output", str(tmp_path / "out")]
    if installed:
        assert subprocess.run(command, env=environment, capture_output=True).returncode == 0
        asked, recorded, _ = called(other / "bin")
        assert asked[1:3] == ["-I", "-c"] and recorded[1:4] == ["-m", "resshift_fast", "profile"]
        assert not called(tools)
    else:
        script = tmp_path / "scripts" / "profile_nsys.sh"  # a copy without an environment next to it
        script.parent.mkdir()
        for path in (NSYS, NSYS.with_name("find_python.sh")):
            shutil.copy(path, script.parent)
        (tools / "python").unlink()
        done = subprocess.run([command[0], str(script)], env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and not done.stdout
        assert done.stderr == "error: no Python here has resshift_fast installed; name one that has with PYTHON=...\n"


def test_torch_records_devices_other_than_gpus(tools, tmp_path):
    program(tools, "python", "exit 0")
    _, _, err = run(NSYS, "--device", "cpu", "--output", tmp_path, tools=tools, python=tools / "python")
    assert "the device is cpu, and nsys records GPUs" in err


@pytest.mark.slow
def test_with_nsys_only_what_was_recorded_between_start_and_stop_is_reported(tools, tmp_path):
    export = Export(tmp_path / "made.sqlite")
    export.range("resshift_fast/restoration", 0, 1000)
    export.kernel("group_norm_fwd_kernel", 100, 300, 50)
    export.close()
    folder = tmp_path / "profile"
    program(tools, "nsys", f'[[ $1 != export ]] || cp "{export.path}" "{folder}/profile.sqlite"')
    program(tools, "python", f'{GPU}\nexec "{sys.executable}" "$@"')
    arguments = ("--model", "nano-x4", "--how", "graphs", "--graph-trace", "graph", "--output", folder)
    code, out, err = run(NSYS, *arguments, tools=tools, python=tools / "python")
    assert code == 0, err
    _, recorded, exported, reported = called(tools)
    own = recorded.index(str(tools / "python"))
    assert recorded[:2] == ["nsys", "profile"] and f"--output={folder}/profile" in recorded[:own]
    assert {
        "--trace=cuda,nvtx",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--cuda-graph-trace=graph",
        "--force-overwrite=true",
    } <= set(recorded[:own])
    assert recorded[own + 1 :][:4] == ["-m", "resshift_fast", "profile", "--model"]
    assert recorded[-2:] == ["--tool", "nsys"] and "--graph-trace" not in recorded
    assert exported[1:3] == ["export", "--type=sqlite"] and exported[-1] == f"{folder}/profile.nsys-rep"
    assert reported[-1] == f"{folder}/profile.sqlite"
    assert "resshift_fast::group_norm" in out and "0.200" in out


# ncu


@pytest.mark.slow
def test_without_ncu_it_says_how_to_get_it(tools):
    code, out, err = run(NCU, "group_norm", tools=tools)
    assert code == 1 and not out
    assert "ncu is not installed" in err and "https://developer.nvidia.com/nsight-compute" in err
    assert "benchmarks/operators.py --op group_norm" in err


def test_ncu_profiles_only_the_call(tools, tmp_path):
    program(tools, "ncu", "")
    program(tools, "python", "")
    arguments = ("window_attention", "--case", "shifted", "--set", "basic", "--backward", "--output", tmp_path / "new")
    code, out, err = run(NCU, *arguments, tools=tools, python=tools / "python")
    assert code == 0, err
    _, profiled, printed = called(tools)
    assert profiled[1:3] == ["--profile-from-start", "off"] and profiled[profiled.index("--set") + 1] == "basic"
    own = profiled.index(str(tools / "python"))
    call = ["scripts/run_operator.py", "--case", "shifted", "--backward", "window_attention"]
    assert profiled[own + 1 :] == call
    assert printed[1:3] == ["--import", f"{tmp_path}/new/window_attention.ncu-rep"]
    assert out.endswith(f"written: {tmp_path}/new/window_attention.ncu-rep\n")


def test_a_failing_ncu_is_not_hidden(tools, tmp_path):
    program(tools, "ncu", "exit 9")
    program(tools, "python", "")
    code, out, err = run(NCU, "swin_mlp", "--output", tmp_path, tools=tools, python=tools / "python")
    assert code == 1 and not out and "ncu ended with 9" in err and "ERR_NVGPUCTRPERM" in err


@pytest.fixture(scope="module")
def run_operator():
    before = list(sys.path)
    spec = importlib.util.spec_from_file_location("run_operator", SCRIPTS / "run_operator.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path[:] = before


def test_cases_are_listed(run_operator, capsys):
    assert run_operator.main(["group_norm", "--list", "--case", "level 3", "--latent", "128"]) == 0
    assert (
        capsys.readouterr().out == "B1-C640-H16-W16-silu-scale_shift: U-Net level 3 and middle, ResBlock.out_layers\n"
    )


@pytest.mark.parametrize("direction", [(), ("--backward",)], ids=["forward", "backward"])
def test_a_case_runs(run_operator, capsys, direction):
    arguments = ["group_norm", "--case", "level 3", "--dtype", "float32", "--device", "cpu"]
    assert run_operator.main([*arguments, *direction]) == 0
    assert capsys.readouterr().out.startswith("group_norm-B1-C640-H8-W8-silu-scale_shift float32")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("softmax",), "unknown operator 'softmax', expected one of add_concat_group_norm, conv2d"),
        (("group_norm", "--case", "level 9"), "no case of group_norm contains 'level 9'"),
    ],
)
def test_an_unknown_operator_or_case(run_operator, capsys, arguments, message):
    assert run_operator.main(list(arguments)) == 1
    assert message in capsys.readouterr().err


def test_a_wrong_result_is_not_profiled(run_operator, capsys, monkeypatch):
    wrong = run_operator.measure.Check(0.5, 1e-5, "output 0: error 5.00e-01, allowed 1.00e-05")
    monkeypatch.setattr(run_operator.measure, "compare", lambda *_: wrong)
    arguments = ["group_norm", "--case", "level 3", "--dtype", "float32", "--device", "cpu"]
    assert run_operator.main(arguments) == 1
    assert "group_norm: output 0: error 5.00e-01" in capsys.readouterr().err
