"""Ctrl-C: finished results stay, no file is incomplete, and the same command continues."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hanging import PROGRAM
from PIL import Image
from sample_photos import make_photo, names

from resshift_fast.pipeline import Pipeline

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def many(tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(1, 7):
        make_photo(folder / f"{i}.png", (8 + i, 8))
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_in_the_middle_of_a_folder(restore, weights, many, tmp_path):
    out = tmp_path / "out"
    arguments = ["restore", many, "-o", out, "--weights", weights["nano-x4"], "--device", "cpu"]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    lines = []
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        for line in process.stderr:
            lines.append(line)
            if line == "third\n":
                process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130, lines
    assert lines[-1] == "interrupted after 2 of 6; run again with --skip-existing to continue\n"
    assert "Traceback" not in "".join(lines)
    assert names(out) == ["1.png", "2.png"]
    for path in out.iterdir():
        Image.open(path).load()

    outcome = restore(many, "-o", out, "--skip-existing")
    assert outcome.code == 0
    assert outcome.err.splitlines()[-1] == "4 restored, 0 failed, 2 skipped"
    assert names(out) == [f"{i}.png" for i in range(1, 7)]


def test_ctrl_c_while_the_model_loads(restore, photos, tmp_path, monkeypatch):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "from_pretrained", interrupt)
    outcome = restore(photos, "-o", tmp_path / "out")
    assert outcome.code == 130
    assert outcome.err == "interrupted after 0 of 3; run again with --skip-existing to continue\n"


def test_ctrl_c_while_the_result_is_written(restore, photos, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    assert restore(photos, "-o", tmp_path / "out").code == 130
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("resshift_fast.backends.status", ["doctor"]),
        ("resshift_fast.measure.counting.measure_sample", ["bench", "count"]),
        ("resshift_fast.measure.end_to_end.measure", ["bench", "e2e", "--random-weights"]),
    ],
)
def test_ctrl_c_in_another_command(program, monkeypatch, function, arguments):
    def interrupt(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupt)
    outcome = program(*arguments)
    assert outcome.code == 130
    assert outcome.err.endswith("interrupted\n")
