"""scripts/gpu_acceptance.py: its table of steps, how a step is run and ended, and the files that it writes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "gpu_acceptance.py"
sys.path.append(str(SCRIPT.parent))

from acceptance import machine, result, running  # noqa: E402
from acceptance.steps import GPU, REHEARSAL, Step, steps  # noqa: E402

SCALES = pytest.mark.parametrize("scale", [GPU, REHEARSAL], ids=["gpu", "rehearsal"])
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def step(program, *arguments, **options):
    return Step("one", 0.5, (sys.executable, "-c", program, *arguments), **options)


def run(one, folder, seconds=60.0, **options):
    return running.run(one, folder, seconds, ROOT, {}, **options)


def start(*arguments, **variables):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


# The table.


@SCALES
def test_the_shares_add_up_to_the_whole(scale):
    assert sum(one.share for one in steps(scale)) == pytest.approx(1.0)
    assert all(0 < one.share <= 0.25 for one in steps(scale))


@SCALES
def test_every_step_has_a_name_of_its_own_and_a_command_that_exists(scale):
    table = steps(scale)
    assert len({one.name for one in table}) == len(table)
    for one in table:
        files = [part for part in one.command if part.endswith((".py", ".sh"))]
        assert files or "resshift_fast" in one.command, one.name
        assert all((ROOT / file).exists() for file in files), one.name
        writes = any("{folder}" in part for part in one.command)
        assert writes == bool(one.tables), one.name
        assert one.tests == ("pytest" in one.command), one.name


def test_a_rehearsal_has_the_steps_of_the_real_run():
    real, rehearsed = steps(GPU), steps(REHEARSAL)
    assert [one.share for one in real] == [one.share for one in rehearsed]
    for one, other in zip(real, rehearsed, strict=True):
        assert (one.tables, one.files, one.tests, one.may_be_cut) == (
            other.tables,
            other.files,
            other.tests,
            other.may_be_cut,
        )
    assert not any("cuda" in other.command for other in rehearsed)


def test_the_most_informative_steps_come_first():
    names = [one.name for one in steps()]
    assert names[:2] == ["smoke", "operators"] and names[2].startswith("restorations 64x64, batch 1")
    assert names[-1] == "torch.compile, max-autotune"
    assert all(one.may_be_cut for one in steps() if "torch.compile" in one.name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["memory errors", "races"])
def test_sanitizers_run_tests_that_exist_and_can_pass(name):
    (one,) = (one for one in steps() if one.name == name)
    arguments = list(one.command[one.command.index("pytest") + 1 :])
    command = [sys.executable, "-m", "pytest", "--collect-only", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if "<Function " in line]
    assert len(found) >= 5, done.stdout + done.stderr
    assert all("float16" in line and "captured" not in line and "bfloat16" not in line for line in found)


# Time.


@pytest.mark.parametrize("budget", [600, 17.3, 1e-3])
def test_unused_time_goes_to_later_steps_and_the_sum_is_the_budget(budget):
    table = steps()
    left, given = budget, []
    for number, one in enumerate(table):
        given.append(running.seconds_for(one, table[number + 1 :], left))
        left -= given[-1]
    assert given[0] == pytest.approx(budget * table[0].share)
    assert sum(given) == pytest.approx(budget) and left == pytest.approx(0, abs=1e-9)
    assert running.seconds_for(table[-2], table[-1:], 90.0) > 90 * table[-2].share
    assert running.seconds_for(table[-1], [], 90.0) == pytest.approx(90)


def test_a_step_without_time_does_not_pass(tmp_path):
    assert run(step(""), tmp_path, 1.0)["verdict"] == running.LATE


def alive(pid):
    """Whether a process runs; a zombie, which stays in the table until its parent waits for it, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import os, signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
child += "open(sys.argv[1], 'a').write(f'{os.getpid()} '); time.sleep(120)"
grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"
subprocess.Popen([sys.executable, "-c", child, sys.argv[1]])
subprocess.Popen([sys.executable, "-c", grandchild, sys.argv[1], child])
open(sys.argv[1] + ".csv", "w").write("x,y\\n1,2\\n")
open(sys.argv[1], "a").write(f"{os.getpid()} ")
while sys.argv[2] == "hangs" or len(open(sys.argv[1]).read().split()) < 3:
    time.sleep(0.05)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc, which Linux has")
@pytest.mark.parametrize("how", ["hangs", "ends"])
def test_nothing_that_a_step_started_outlives_it(how, tmp_path, monkeypatch):
    monkeypatch.setattr(running, "GRACE", 0.5)
    pids = tmp_path / "pids"
    seconds = 9.0 if how == "hangs" else 60.0
    found = run(step(STUBBORN, str(pids), how, tables=("pids.csv",)), tmp_path, seconds)
    assert found["verdict"] == (running.FAILED if how == "hangs" else running.PASSED)
    assert ("ended after 9 s" in found.get("problem", "")) == (how == "hangs")
    assert found["tables"] == {"pids.csv": [{"x": "1", "y": "2"}]}
    started = list(map(int, pids.read_text().split()))
    assert len(started) == 3 and not any(map(alive, started))


# Verdicts.


@pytest.mark.parametrize(
    "program, verdict, problem",
    [
        ("print('fine')", running.PASSED, None),
        ("raise SystemExit(3)", running.FAILED, "exit status 3"),
        ("import os; os.kill(os.getpid(), 11)", running.FAILED, "killed by SIGSEGV"),
    ],
    ids=["passes", "fails", "crashes"],
)
def test_verdicts(program, verdict, problem, tmp_path):
    found = run(step(program), tmp_path)
    assert (found["verdict"], found.get("problem")) == (verdict, problem)
    assert ("fine" in found["output"]) == (verdict == running.PASSED)


def test_a_tool_that_is_missing_is_named(tmp_path):
    found = run(step("", tool="no-such-tool"), tmp_path)
    assert (found["verdict"], found["problem"]) == (running.ABSENT, "no-such-tool is not installed")


def test_a_step_that_may_be_cut_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "LEAST_SECONDS", 0.1)
    found = run(step("import time; time.sleep(60)", may_be_cut=True), tmp_path, 1.0)
    assert found["verdict"] == running.CUT


@pytest.mark.parametrize(
    "counts, verdict",
    [
        (None, running.CUT),
        ({"passed": 3, "skipped": 1}, running.CUT),
        ({"passed": 3, "failed": 1}, running.FAILED),
        ({"passed": 3, "error": 1}, running.FAILED),
        ({"skipped": 3}, running.FAILED),
        ({}, running.FAILED),
    ],
)
def test_a_cut_step_fails_if_one_of_its_tests_failed(counts, verdict):
    assert running.judge(step("", may_be_cut=True), None, 1.0, counts)["verdict"] == verdict
    assert running.judge(step(""), None, 1.0, counts)["verdict"] == running.FAILED


LINES = """python_tests/test_a.py::test_one[x y] PASSED                      [ 10%]
[gw3] [ 20%] PASSED python_tests/test_a.py::test_two[FAILED ]
[gw0] [ 30%] SKIPPED python_tests/test_a.py::test_three
python_tests/test_a.py::test_four SKIPPED (there is no GPU)  [ 40%]
python_tests/test_a.py::test_five FAILED                      [ 50%]
FAILED python_tests/test_a.py::test_five - assert 1 == 2
"""


def test_outcomes_are_counted_while_tests_run(tmp_path):
    (tmp_path / "output.txt").write_text(LINES)
    assert running.outcomes(tmp_path / "output.txt") == {"passed": 2, "skipped": 2, "failed": 1}


@pytest.mark.parametrize("skipped", [True, False])
def test_tests_that_were_all_skipped_are_a_failure(skipped, tmp_path):
    (tmp_path / "test_it.py").write_text(f"import pytest\n@pytest.mark.skipif({skipped}, reason='no')\ndef test(): 0\n")
    command = (sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--rootdir", str(tmp_path))
    one = Step("one", 0.5, (*command, "-c", os.devnull, str(tmp_path / "test_it.py")), tests=True)
    found = run(one, tmp_path)
    if skipped:
        assert (found["verdict"], found["problem"]) == (running.FAILED, "no test passed, 1 were skipped")
    else:
        assert (found["verdict"], found["outcomes"]) == (running.PASSED, {"passed": 1})


# Written files.


def test_tables_are_read_while_they_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "GLANCE", 0.05)
    program = "import sys, pathlib, time; f = pathlib.Path(sys.argv[1]); (f/'a.csv').write_text('x,y\\n1,2\\n');"
    program += "(f/'b.json').write_text('{\"z\": 3'); time.sleep(1); (f/'b.json').write_text('{\"z\": 3}')"
    seen = []
    found = run(step(program, "{folder}", tables=("*.csv", "b.json")), tmp_path, keep=seen.append)
    assert found["tables"] == {"a.csv": [{"x": "1", "y": "2"}], "b.json": {"z": 3}}
    assert {"verdict": "running", "tables": {"a.csv": [{"x": "1", "y": "2"}]}}.items() <= seen[-3].items()


def results(folder, **options):
    return result.Results(folder, "gpu", {"gpu": "none"}, 60.0, **options)


def test_the_result_is_complete_after_every_step(tmp_path):
    made = results(tmp_path / "new")
    assert json.loads(made.path.read_text())["ended"] is None
    made.put("one", {"verdict": running.RUNNING})
    assert json.loads(made.path.read_text())["steps"]["one"]["verdict"] == "running"
    made.put("one", {"verdict": running.PASSED})
    made.finish()
    written = json.loads(made.path.read_text())
    assert written["steps"]["one"]["verdict"] == "passed" and written["ended"] == "every step was run"
    assert {path.name for path in made.folder.iterdir()} == {"gpu.json", "gpu.log"}


def test_there_are_few_files_and_none_is_large(tmp_path, monkeypatch):
    made = results(tmp_path / "new")
    output = tmp_path / "output"
    output.mkdir()
    (output / "output.txt").write_bytes(b"x" * (running.TAIL + result.STEP_LOG_BYTES))
    for number in range(20):
        (output / f"{number}.png").write_bytes(b"x" * 100)
    monkeypatch.setattr(result, "MOST_BYTES", 200)
    (output / "0.png").write_bytes(b"x" * 300)
    for number in range(40):
        made.keep_files(step("", files=("*.png",)), output)
        made.put(f"step {number}", {"verdict": running.PASSED})
    kept = list(made.folder.iterdir())
    assert len(kept) == result.MOST_FILES and not (made.folder / "gpu-one-0.png").exists()
    assert made.log.stat().st_size <= result.LOG_BYTES


def test_a_result_that_cannot_be_written_is_reported_and_does_not_end_the_run(tmp_path):
    made = results(tmp_path / "new")
    made.path.unlink()
    made.path.mkdir()
    made.put("one", {"verdict": running.PASSED})
    assert "could not be written" in made.problem


def test_what_counts_as_failed(tmp_path):
    made = results(tmp_path)
    for verdict in (running.PASSED, running.FAILED, running.ABSENT, running.LATE, running.CUT, "stopped"):
        made.put(verdict, {"verdict": verdict})
    assert made.failed == [running.FAILED, running.LATE, "stopped"]


def test_the_summary_has_each_step_and_its_measurements(tmp_path):
    made = results(tmp_path)
    table = [step("", shown=("a", "b")), Step("two", 0.2, (), tests=True), Step("three", 0.3, ())]
    content = {"rows": [{"a": 1.23456, "b": None, "c": 5}]}
    made.put("one", {"verdict": "passed", "seconds": 3.2, "allowed": 10.0, "tables": {"x.json": content}})
    made.put("two", {"verdict": "failed", "seconds": 1.0, "allowed": 2.0, "outcomes": {"failed": 2}, "problem": "why"})
    assert result.summary(table, made).splitlines() == [
        "one    passed in 3 of 10 s (1 row)",
        "two    failed in 1 of 2 s (2 failed) - why",
        "three  was not run",
        "",
        "one",
        "a      b",
        "1.235  -",
    ]


def test_the_summary_of_a_long_table_has_its_problems():
    rows = [{"case": str(number), "problem": "off" if number % 3 == 0 else ""} for number in range(result.MOST_ROWS)]
    assert result.notable(rows) == rows
    found = result.notable([*rows, {"case": "last", "problem": "off"}])
    assert [row["case"] for row in found] == ["0", "3", "6", "9", "12", "15", "18", "last"]
    assert len(result.notable([{"problem": "off"}] * 999)) == result.MOST_ROWS


# The machine.


def test_an_editable_installation_is_tested_from_the_checkout_and_another_from_a_copy(tmp_path):
    assert machine.place(str(ROOT / "resshift_fast/__init__.py"), tmp_path) == ROOT
    assert machine.place("/somewhere/site-packages/resshift_fast/__init__.py", tmp_path) == tmp_path
    assert (tmp_path / "python_tests/conftest.py").exists() and (tmp_path / "benchmarks/operators.py").exists()
    assert not (tmp_path / "resshift_fast").exists() and not (tmp_path / "kernels").exists()


@pytest.mark.parametrize(
    "answer, rehearsal, message",
    [
        ('echo \'{"missing": "triton"}\'', True, "triton is not installed in .*; install torch with CUDA and Triton"),
        ('echo \'{"missing": "resshift_fast"}\'', True, "resshift_fast is not installed in .*; make gpu-offline"),
        ('echo \'{"torch": "2.11.0"}\'', False, "there is no GPU: torch 2.11.0 finds none"),
        ("echo no such symbol >&2; exit 134", True, "importing the package ended with 134: no such symbol"),
    ],
    ids=["triton", "package", "gpu", "crash"],
)
def test_why_nothing_can_be_run(answer, rehearsal, message, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{answer}\n")
    python.chmod(0o755)
    monkeypatch.setattr(machine.sys, "executable", str(python))
    with pytest.raises(machine.Unusable, match=message):
        machine.probe(rehearsal)


# The command.


@NO_GPU
@pytest.mark.parametrize("command", [[sys.executable, str(SCRIPT)], ["make", "gpu"], ["make", "gpu-offline"]], ids=str)
def test_without_a_gpu_one_line_says_so(command):
    # Tests may run under make, whose environment makes another make print more.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert done.returncode == 2 and not done.stdout
    assert len(lines) == 1 and lines[0].startswith("nothing was run: there is no GPU: ")


@pytest.mark.parametrize("budget", ["0", "-3", "nan", "inf", "soon"])
def test_an_invalid_budget_is_an_error(budget):
    process = start("--rehearse", "--budget", budget)
    assert "--budget" in process.communicate()[1] and process.returncode == 2


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_an_error_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("")
    process = start("--rehearse", "--only", "races", "--output", tmp_path / "file" / "folder")
    stdout, stderr = process.communicate()
    assert process.returncode == 2 and not stdout and stderr.count("\n") == 1
    assert stderr.startswith("nothing was run: the result cannot be written")


def read(folder):
    (path,) = folder.glob("rehearsal-*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_short_rehearsal(tmp_path):
    process = start("--rehearse", "--only", "operators", "races", "--budget", "240", "--output", tmp_path)
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stdout + stderr
    assert "1/2 operators: passed in " in stdout and "2/2 races: passed in " in stdout
    found = read(tmp_path)["steps"]
    rows = found["operators"]["tables"]["operators.csv"]
    assert {(row["backend"], row["verdict"]) for row in rows} >= {("triton", "right")}
    assert found["races"]["outcomes"]["passed"] > 0


@pytest.mark.slow
def test_steps_that_had_no_time_are_a_failure(tmp_path):
    process = start("--rehearse", "--only", "races", "tune", "--budget", "0.5", "--output", tmp_path)
    _stdout, stderr = process.communicate()
    assert process.returncode == 1 and stderr == "error: failed: races; tune\n"
    assert {one["verdict"] for one in read(tmp_path)["steps"].values()} == {running.LATE}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_a_run_that_is_stopped_keeps_its_results(number, tmp_path):
    process = start("--rehearse", "--only", "operators", "tune", "--output", tmp_path)
    line = process.stdout.readline()  # the heading; the signal handlers are installed a moment later
    deadline = time.monotonic() + 60
    while "1/2 operators: " not in line and time.monotonic() < deadline:
        line += process.stdout.read(1)
    process.send_signal(number)
    stdout, _stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    written = read(tmp_path)
    assert written["ended"] == f"stopped by {signal.Signals(number).name}"
    assert written["steps"]["operators"]["verdict"] == "stopped" and "tune" not in written["steps"]
    assert "tune" in stdout and "was not run" in stdout
