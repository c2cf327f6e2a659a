"""`resshift-fast bench tune` on convolutions on a CPU: what it prints and stores about their algorithms."""

import json
import re

import pytest
import slow_algorithms
import tiny_models

from resshift_fast import use_backend
from resshift_fast.backends import autotune_cache, native, verification

pytestmark = pytest.mark.skipif(native.missing("cpu") is not None, reason="the CPU library is not built")


def test_shapes_whose_choice_is_not_the_default_have_a_line_each(program, models, monkeypatch, tmp_path):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(verification.VARIABLE, "0")
    monkeypatch.setattr(autotune_cache, "processor", lambda: "Test CPU")
    functions = {"slow": slow_algorithms.slow, "fast": slow_algorithms.fast, "wrong": slow_algorithms.wrong}
    slow_algorithms.install(monkeypatch, **functions)
    output = tmp_path / "mine.json"
    options = ("--model", tiny_models.ENLARGE, "--size", 16, "--device", "cpu", "--repeats", 1, "--output", output)
    with use_backend("auto"):
        outcome = program("bench", "tune", *options)
    assert outcome.code == 0, outcome.err
    stored = json.loads(output.read_text())["operators"]["conv2d"]["float32"]["algorithms"]
    assert stored and {found["choice"] for found in stored.values()} == {"fast"}
    lines = re.findall(r"^conv2d in float32, (\S+): fast is \d+\.\d\dx as fast as slow$", outcome.out, re.MULTILINE)
    assert lines == list(stored)
    (refused,) = re.findall(r"^refused: wrong of conv2d in float32, (\S+): output 0 has", outcome.out, re.MULTILINE)
    assert refused == lines[0] and "wrong" in stored[refused]["refused"]
