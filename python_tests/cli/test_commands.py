"""The commands besides `restore`, the help, and what all commands share."""

import inspect
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resshift_fast import __version__, backends, cli, ops
from resshift_fast.backends import Decision, dispatch, native, registry
from resshift_fast.cli import app, console
from resshift_fast.cli.export import export as export_command
from resshift_fast.cli.restore import restore as restore_command
from resshift_fast.cli.serve import serve as serve_command
from resshift_fast.models import catalog

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("restore", "models", "doctor", "train", "train-autoencoder", "profile", "compile")


def test_no_arguments_print_the_help(program):
    outcome = program()
    assert outcome.code == 0
    assert all(re.search(rf"^  {name} ", outcome.out, re.MULTILINE) for name in COMMANDS)


def test_version(program):
    assert program("--version").out == f"resshift-fast {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_explained(program, command):
    outcome = program(command, "--help")
    assert outcome.code == 0
    options = [line for line in outcome.out.splitlines() if re.match(r"  -", line)]
    assert options
    explained = re.split(r"\n(?=  -)", outcome.out[outcome.out.index("Options:") :])[1:]
    assert all(len(text.split()) > 3 for text in explained), explained


def test_restore_options_say_their_defaults(program):
    text = program("restore", "--help").out
    required_or_off = {
        "--in",
        "--out",
        "--weights",
        "--autoencoder",
        "--mask",
        "--compare",
        "--skip-existing",
        "--help",
    }
    for option in re.split(r"\n(?=  -)", text[text.index("Options:") :])[1:]:
        if not required_or_off & set(re.findall(r"--[a-z-]+", option)):
            assert "Default:" in option, option


def test_default_models_are_the_catalogues_and_embedded(program):
    for command in (restore_command, export_command, serve_command):
        assert inspect.signature(command).parameters["model"].default is None
    for command in ("restore", "export", "serve"):
        assert f"else {catalog.DEFAULT_MODEL}" in " ".join(program(command, "--help").out.split())
    for masked in (False, True):
        spec = catalog.get(catalog.default_model(masked))
        assert spec.needs_mask == masked and spec.weights.url is None


def test_unknown_command(program):
    outcome = program("restor")
    assert outcome.code == 2
    assert "restor" in outcome.err


def test_help_needs_neither_torch_nor_image_libraries():
    script = (
        "import sys; sys.argv = ['resshift-fast', 'restore', '--help']\n"
        "from resshift_fast import cli\n"
        "try:\n    cli.main()\n"
        "finally:\n    print({'torch', 'cv2', 'PIL', 'numpy'} & set(sys.modules), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert done.stderr == "set()\n"


def test_models_lists_every_model(program, monkeypatch, tmp_path):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    (tmp_path / "resshift_realsrx4_s4_v3.pth").write_bytes(bytes(2_500_000))
    outcome = program("models")
    assert outcome.code == 0
    for spec in catalog.MODELS.values():
        assert spec.name in outcome.out and spec.summary in outcome.out and spec.licence in outcome.out
    assert "resshift_realsrx4_s4_v3.pth (2.5 MB, downloaded)" in outcome.out
    assert "resshift_realsrx4_s15_v1.pth (not downloaded, about 474 MB)" in outcome.out
    assert re.search(r"realsr-x2 +×2 +4 +174\.0 M +none published", outcome.out)
    assert str(tmp_path) in outcome.out


def test_models_as_json(program, monkeypatch, tmp_path):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    (tmp_path / "resshift_realsrx4_s4_v3.pth").write_bytes(bytes(2_500_000))
    listed = {entry["name"]: entry for entry in json.loads(program("models", "--json").out)}
    assert list(listed) == list(catalog.MODELS)
    weights, autoencoder = listed["realsr-x4-v3"]["weights"]
    assert (weights["bytes"], weights["state"]) == (2_500_000, "downloaded")
    assert (autoencoder["bytes"], autoencoder["state"]) == (55_322_782 * 4, "not downloaded")
    assert listed["realsr-x2"]["weights"] == []
    assert [name for name, entry in listed.items() if entry["default"]] == ["photo-x4"]


def test_models_of_other_sizes_have_an_unknown_number_of_parameters(program, models):
    assert re.search(r"nano-x4 +×4 +4 +unknown ", program("models").out)


def test_models_loads_no_torch():
    code = "import sys; from resshift_fast.cli.models import models; models(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_doctor_says_what_can_run(program, monkeypatch, tmp_path):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    outcome = program("doctor")
    assert outcome.code == 0
    for label in (
        "Python",
        "torch",
        "Triton",
        "CUDA driver",
        "GPU",
        "nvcc",
        "C++ compiler",
        "CPU library",
        "CUDA library",
        "OpenCV",
        "Pillow",
        "cache",
    ):
        assert re.search(rf"^{re.escape(label)} +\S", outcome.out, re.MULTILINE), label
    assert torch.__version__ in outcome.out and str(tmp_path) in outcome.out
    assert "could not be checked" not in outcome.out
    assert "Kernels of each operator on cpu (" in outcome.out
    for operator in ops.__all__:
        assert re.search(rf"^  {operator} +\w+: \S", outcome.out, re.MULTILINE), operator


def test_doctor_says_why_a_library_is_not_there(program, monkeypatch):
    monkeypatch.setattr(native, "missing", lambda name: f"was not built: {name} has no compiler")
    out = program("doctor").out
    assert re.search(r"^CPU library +was not built: cpu has no compiler$", out, re.MULTILINE)
    assert re.search(r"^CUDA library +was not built: cuda has no compiler$", out, re.MULTILINE)


def test_doctor_prints_the_same_as_json(program):
    found = json.loads(program("doctor", "--json").out)
    assert torch.__version__ in found["torch"] and "CUDA library" in found
    rows = found["operators"]["cpu"]
    assert [row["operator"] for row in rows] == sorted(ops.__all__)
    assert rows[0].keys() == {"operator", "backend", "reason", "dtypes"}


def test_doctor_says_that_the_chosen_backend_cannot_run(program, monkeypatch):
    monkeypatch.setattr(dispatch, "_preferred", "cuda")  # as RESSHIFT_FAST_BACKEND sets it on import
    monkeypatch.setattr(registry, "unavailable", lambda backend: "no GPU")
    outcome = program("doctor")
    assert outcome.code == 0
    assert "RESSHIFT_FAST_BACKEND is wrong, so nothing runs: backend 'cuda' no GPU" in outcome.out


def test_doctor_continues_after_a_check_that_fails(program, monkeypatch):
    monkeypatch.setattr(backends, "status", lambda device: 1 // 0)
    monkeypatch.setenv("CXX", sys.executable)
    outcome = program("doctor")
    assert outcome.code == 0
    assert "could not be checked: ZeroDivisionError" in outcome.out
    assert f"({sys.executable})" in outcome.out


def test_train_is_a_command_and_its_errors_are_one_line(program, tmp_path):
    outcome = program("train", tmp_path / "nothing", "--run", tmp_path / "run")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1 and outcome.err.startswith("error: ")


@pytest.mark.filterwarnings("default")
def test_warnings_are_one_line(program, monkeypatch):
    import warnings

    monkeypatch.setattr(
        backends, "status", lambda device: warnings.warn("look\nout", stacklevel=1) or [Decision("op", "reference", "")]
    )
    assert "warning: look out\n" in program("doctor").err


@pytest.mark.slow
def test_an_ascii_terminal_gets_plain_text():
    done = subprocess.run(
        [sys.executable, "-m", "resshift_fast", "restore", "×.png", "-o", "out"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: x.png does not exist")


def test_an_ascii_file_gets_plain_text(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii", write_through=True))
    monkeypatch.setattr("sys.argv", ["resshift-fast", "models"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert re.search(rb"photo-x4\* +x4 ", written.getvalue())


def test_a_closed_pipe_is_no_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "resshift_fast"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("256×192 → 4 …", "ascii", "256x192 -> 4 ..."),
        ("é\udcff", "ascii", "??"),
        ("é\udcff", "utf-8", "é?"),
        ("2×", "latin-1", "2×"),
    ],
)
def test_characters_that_a_terminal_lacks(text, encoding, expected):
    console.prepare_streams()
    assert text.encode(encoding, errors=console._HANDLER).decode(encoding) == expected


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file or directory", "x.png"), "x.png: No such file or directory"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("x.png is a folder"), "x.png is a folder"),
    ],
    ids=["with-file", "without-file", "own"],
)
def test_errors_of_the_system_have_no_errno(error, text):
    assert console.explain(error) == text


def test_a_message_is_one_line_and_names_the_file_once():
    assert console.explain(ValueError("too\nbad"), "a.png") == "a.png: too bad"
    assert console.explain(ValueError("a.png is bad"), "a.png") == "a.png is bad"
    assert console.explain(ValueError(), "a.png") == "a.png: ValueError"


def test_program_is_called_by_its_name():
    assert app.app.info.name == "resshift-fast"
