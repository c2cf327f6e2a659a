"""`resshift-fast bench tune`: from a restoration to the stored order of backends."""

import json
import re

import pytest
import tiny_models
from slow_backends import MODEL, OPERATOR, installed

from resshift_fast import backends
from resshift_fast.backends import autotune_cache
from resshift_fast.measure import timing

SMALL = ("--model", tiny_models.ENLARGE, "--size", 16, "--device", "cpu", "--repeats", 3)


@pytest.fixture
def stand_ins(models, monkeypatch, tmp_path):
    with installed(monkeypatch, tmp_path / "cache"):
        yield tmp_path / "cache/autotune/test-cpu.json"


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_backends_are_ranked_and_the_order_is_used(program, stand_ins):
    outcome = program("bench", "tune", *SMALL)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == f"nano-x4, 16x16 input, batch 1, on {MODEL}; us of all calls together"
    assert lines[1].split() == [
        *("OPERATOR", "DTYPE", "CALLS", "CPU", "us", "CUDA", "us", "REFERENCE", "us", "TRITON", "us"),
        *("CHOSEN", "SPEED-UP", "SPREAD"),
    ]
    assert re.match(rf"{OPERATOR} +float32 +\d+ +[\d,.]+ +[\d,.]+ +[\d,.]+ +- +cpu +\d+\.\d\dx +\d+ %$", lines[2])
    assert lines[3].startswith(f"refused: triton for {OPERATOR} in float32: output 0 has relative error")
    assert lines[-1] == f"written: {stand_ins}"
    content = json.loads(stand_ins.read_text())
    assert content["command"] == (
        "resshift-fast bench tune --model nano-x4 --size 16 --batch 1 --device cpu --repeats 3 --dtype float32"
    )
    assert content["operators"][OPERATOR]["float32"]["order"] == ["cpu", "reference", "cuda"]
    shown = program("doctor").out
    assert re.search(
        rf"^  {OPERATOR} float32 +cpu: fastest of cpu, reference, cuda as measured \({re.escape(str(stand_ins))}\); "
        r"triton refused when measured: output 0",
        shown,
        re.MULTILINE,
    )
    assert re.search(rf"^  {OPERATOR} bfloat16 float16 +cpu: the first that runs on cpu$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    "loads, said",
    [
        ([(0.4,), (1.25,)], ["load average: 0.4 before, 1.2 after, on 2 cores"]),
        ([(1.5,), (2.0,)], ["load average: 1.5 before, 2.0 after, on 2 cores", "other programs have run before"]),
        ([OSError(), OSError()], []),
    ],
    ids=["quiet", "busy", "unknown"],
)
def test_the_load_is_said(program, stand_ins, monkeypatch, loads, said):
    rest = iter(loads)

    def load():
        value = next(rest)
        if isinstance(value, OSError):
            raise value
        return value

    monkeypatch.setattr("os.getloadavg", load, raising=False)
    monkeypatch.setattr("resshift_fast.core.devices.available_cores", lambda: 2)
    lines = program("bench", "tune", *SMALL).out.splitlines()
    found = lines[-1 - len(said) : -1]
    assert len(found) == len(said) and all(line.startswith(start) for line, start in zip(found, said, strict=True))
    assert sum("load average" in line or "other programs" in line for line in lines) == len(said)


def test_several_dtypes_and_another_file(program, stand_ins, tmp_path):
    output = tmp_path / "new/mine.json"
    outcome = program("bench", "tune", *SMALL, "--dtype", "float32", "--dtype", "bfloat16", "-o", output)
    assert outcome.code == 0, outcome.err
    assert json.loads(output.read_text())["operators"][OPERATOR].keys() == {"float32", "bfloat16"}
    assert not stand_ins.exists()


@pytest.mark.filterwarnings("default")  # the old file can't be read
@pytest.mark.parametrize("old", [None, b"what was measured before"], ids=["none", "replaced"])
def test_ctrl_c_leaves_no_incomplete_file(program, stand_ins, monkeypatch, old):
    if old is not None:
        stand_ins.parent.mkdir(parents=True)
        stand_ins.write_bytes(old)
    times, calls = timing.times, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return times(*args)

    monkeypatch.setattr(timing, "times", interrupted)
    outcome = program("bench", "tune", *SMALL)
    assert outcome.code == 130 and outcome.err.endswith("interrupted\n") and len(calls) == 2
    assert files(stand_ins.parent) == ([] if old is None else [stand_ins])
    assert old is None or stand_ins.read_bytes() == old


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("--dtype", "int8"), "dtype is 'int8', expected one of"),
        (("--model", "nano"), "nano"),
        (("--device", "tpu"), "device 'tpu' cannot be used here"),
        (("--output", "/dev/null/here/mine.json"), "/dev/null/here"),
    ],
)
def test_bad_options_are_one_line(program, stand_ins, wrong, message):
    outcome = program("bench", "tune", *SMALL, *wrong)
    assert outcome.code == 1 and len(outcome.errors) == 1 and message in outcome.errors[0]
    assert not stand_ins.exists()


def test_nothing_to_choose_is_an_error(program, models, monkeypatch, tmp_path):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(autotune_cache, "processor", lambda: MODEL)
    monkeypatch.setattr(backends, "candidates", lambda name, device_type: ())
    outcome = program("bench", "tune", *SMALL)
    assert outcome.code == 1 and "nothing to choose for nano-x4 on cpu" in outcome.errors[0]
    assert not files(tmp_path / "autotune")


def test_help_says_every_default(program):
    text = program("bench", "tune", "--help").out
    options = re.split(r"\n(?=  -)", text[text.index("Options:") :])[1:]
    assert len(options) == 8 and all("Default:" in option for option in options if "--help" not in option)
