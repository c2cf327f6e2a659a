"""`resshift-fast export`: its file, its lines, and wrong usage before anything is exported."""

import pytest

from resshift_fast.apps import export as exporting
from resshift_fast.apps import extras


def test_operators_are_a_folder(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = program("export", "kernels", "--repository", "me/kernels")
    assert outcome.code == 0, outcome.err
    assert outcome.out.splitlines() == [
        "written: resshift-fast-kernels, with builds for torch-cpu and torch-cuda",
        "kernel = kernels.get_local_kernel(Path('resshift-fast-kernels'))",
    ]
    assert 'repo-id = "me/kernels"' in (tmp_path / "resshift-fast-kernels" / "build.toml").read_text("utf-8")
    again = program("export", "kernels")
    assert again.code == 1 and again.errors == [
        "error: resshift-fast-kernels exists already; remove it or name another folder"
    ]


@pytest.fixture
def export(program, weights, tmp_path, monkeypatch):
    """Runs `resshift-fast export ARGUMENTS` with a tiny model in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: program("export", *arguments, "--weights", weights["nano-x4"])


def test_it_says_what_was_written_and_what_it_takes(export, tmp_path, monkeypatch):
    def write(pipe, path, kind):
        path.write_bytes(bytes(1_500_000))
        return 2e-7

    monkeypatch.setattr(exporting, "export", write)
    outcome = export("torch")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "nano-x4.pt2").stat().st_size == 1_500_000
    written, *shapes = outcome.out.splitlines()
    assert written == "written: nano-x4.pt2 (1.5 MB), within 2.0e-07 of nano-x4 at three sizes"
    assert shapes[0].startswith("image [B, 3, ") and shapes[1].startswith("noise [4, B, 48, ") and len(shapes) == 2


def test_a_missing_package_is_one_line(export, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "onnxscript" else True)
    outcome = export("onnx")
    assert outcome.code == 1
    assert outcome.errors == ["error: onnx needs another package, onnxscript: pip install 'resshift-fast[onnx]'"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tensorrt",), "the format is 'tensorrt', expected one of onnx, torch, kernels"),
        (("kernels",), "leave --model, --weights and --autoencoder out"),
        (("torch", "--repository", "me/kernels"), "--repository is of kernels, not of torch"),
        (("torch", "-o", "missing/model.pt2"), "missing"),
        (("torch", "--model", "nano-x5"), "nano-x5"),
    ],
)
def test_bad_arguments_are_one_line(export, arguments, message, monkeypatch):
    monkeypatch.setattr(exporting, "export", pytest.fail)
    outcome = export(*arguments)
    assert outcome.code != 0 and len(outcome.errors) == 1 and message in outcome.errors[0]
