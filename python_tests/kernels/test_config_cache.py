"""Measured configurations on disk: merged, written atomically, ignored if damaged or from another environment."""

import json
import multiprocessing
import warnings

import pytest
import torch

from resshift_fast.core import environment
from resshift_fast.kernels import config_cache
from resshift_fast.kernels.config_cache import forget, keep, known

CPU = torch.device("cpu")
OPTIONS = {"BLOCK": 64, "HOIST": True, "num_warps": 4, "num_stages": 2}


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("RESSHIFT_FAST_AUTOTUNE_CACHE", "1")
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    forget()
    yield tmp_path / "configurations"
    forget()


def file(folder):
    (path,) = folder.glob("*.json")
    return path


def test_a_stored_choice_is_read_back(folder):
    assert known(CPU) == {}
    keep(CPU, "a", (64, 2, "kernel"), OPTIONS)
    keep(CPU, "a", (128, 2, "kernel"), OPTIONS | {"BLOCK": 32})
    for _ in range(2):
        assert known(CPU) == {
            ("a", (64, 2, "kernel")): OPTIONS,
            ("a", (128, 2, "kernel")): OPTIONS | {"BLOCK": 32},
        }
        forget()
    content = json.loads(file(folder).read_text())
    assert content["device"] == "cpu" and content["torch"] == torch.__version__
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".lock"]


def test_a_later_choice_replaces_an_earlier_one():
    keep(CPU, "a", (64,), OPTIONS)
    keep(CPU, "a", (64,), OPTIONS | {"BLOCK": 32})
    forget()
    assert known(CPU) == {("a", (64,)): OPTIONS | {"BLOCK": 32}}


def _keep_many(name, count):
    forget()
    for i in range(count):
        keep(CPU, name, (i,), OPTIONS)


def test_processes_that_write_at_once_lose_no_choice():
    context = multiprocessing.get_context("fork")
    known(CPU)  # read before the others write
    processes = [context.Process(target=_keep_many, args=(name, 20)) for name in "abc"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    keep(CPU, "d", (0,), OPTIONS)
    forget()
    assert len(known(CPU)) == 3 * 20 + 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"format": 1, "choices": [',
        "[]",
        '{"format": 2, "choices": []}',
        '{"format": 1, "choices": {}}',
        '{"format": 1, "choices": [7]}',
        '{"format": 1, "choices": [{"kernel": "a", "bucket": 64, "options": {}}]}',
        '{"format": 1, "choices": [{"kernel": "a", "bucket": [64]}]}',
        '{"format": 1, "choices": [{"kernel": "a", "bucket": [[64]], "options": {}}]}',
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_is_ignored_with_one_warning_and_replaced(text, folder):
    keep(CPU, "a", (64,), OPTIONS)
    path = file(folder)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    forget()
    with pytest.warns(RuntimeWarning, match="measured configurations are ignored: .*configurations") as caught:
        assert known(CPU) == {} == known(CPU)
        keep(CPU, "b", (64,), OPTIONS)
    assert len(caught) == 1
    forget()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert known(CPU) == {("b", (64,)): OPTIONS}


def test_an_interrupted_write_leaves_the_file_as_it_was(folder, monkeypatch):
    keep(CPU, "a", (64,), OPTIONS)
    before = file(folder).read_bytes()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(config_cache.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keep(CPU, "b", (64,), OPTIONS)
    assert file(folder).read_bytes() == before
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".lock"]


def test_choices_stay_in_memory_if_the_folder_is_not_writable(folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("in the way")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        keep(CPU, "a", (64,), OPTIONS)
    assert known(CPU) == {("a", (64,)): OPTIONS}


@pytest.mark.parametrize("changed", ["torch", "sources", "interpreter"])
def test_choices_of_another_environment_are_ignored(changed, monkeypatch, tmp_path):
    keep(CPU, "a", (64,), OPTIONS)
    if changed == "torch":
        monkeypatch.setattr(torch, "__version__", "99.0")
    elif changed == "interpreter":
        monkeypatch.setenv("TRITON_INTERPRET", "another")
    else:
        (tmp_path / "group_norm.py").write_text("another")
        monkeypatch.setattr(config_cache, "__file__", str(tmp_path / "config_cache.py"))
    forget()
    assert known(CPU) == {}


def test_a_disabled_cache_is_neither_read_nor_written(folder, monkeypatch):
    keep(CPU, "a", (64,), OPTIONS)
    monkeypatch.setenv("RESSHIFT_FAST_AUTOTUNE_CACHE", "0")
    forget()
    keep(CPU, "b", (64,), OPTIONS)
    assert known(CPU) == {} and '"b"' not in file(folder).read_text()


def test_a_device_that_is_not_available_has_no_choices(folder):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    keep(torch.device("cuda", 0), "a", (64,), OPTIONS)
    assert known(torch.device("cuda", 0)) == {} and not folder.exists()


def test_each_device_model_and_driver_has_its_own_file(monkeypatch):
    device, names = torch.device("cuda", 0), []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for model, driver in (("NVIDIA H100", "580"), ("NVIDIA H200", "580"), ("NVIDIA H200", "590")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, model=model: model)
        monkeypatch.setattr(environment, "_driver", lambda driver=driver: driver)
        forget()
        names.append(config_cache._path(device).name)
    assert len(set(names)) == 3 and names[0].startswith("nvidia-h100-") and names[1].startswith("nvidia-h200-")
