"""`resshift-fast profile`."""

import json

import pytest
import tiny_models

SMALL = ("--model", tiny_models.ENLARGE, "--size", 16, "--device", "cpu", "--dtype", "float32", "--warmup", 1)


def test_records_a_restoration(program, models, tmp_path):
    folder = tmp_path / "profile"
    outcome = program("profile", *SMALL, "--runs", 1, "--steps", 2, "-o", folder)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "nano-x4, 16x16 input, batch 1, 2 steps, float32, eager on cpu"
    assert f"written: {folder / 'trace.json'}" in lines and f"written: {folder / 'workload.json'}" in lines
    assert lines[-1].endswith(f"resshift-fast bench report {folder / 'trace.json'}")
    assert json.loads((folder / "workload.json").read_text())["runs"] == 1


@pytest.mark.parametrize(
    "wrong, message",
    [
        (("--tool", "nsys"), "nsys records what a CUDA GPU does"),
        (("--how", "graphs"), "how is 'graphs', expected 'torch' on cpu"),
        (("--steps", 9), "respacing is 9"),
        (("--dtype", "int8"), "dtype is 'int8'"),
    ],
)
def test_bad_options_are_one_line(program, models, tmp_path, wrong, message):
    outcome = program("profile", *SMALL, *wrong, "-o", tmp_path)
    assert outcome.code == 1 and len(outcome.errors) == 1 and message in outcome.errors[0]
