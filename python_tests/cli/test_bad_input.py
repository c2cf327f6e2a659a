"""`restore` on bad input: one clear line of error, the right exit code, and no file lost."""

import errno
import os
import stat
from dataclasses import replace

import pytest
import tiny_models
from sample_photos import make_mask, make_photo, names

from resshift_fast.models import catalog
from resshift_fast.pipeline import Pipeline


def the_error(outcome, code):
    """The only error of a run that ended with `code`."""
    assert outcome.code == code, outcome.err
    assert len(outcome.errors) == 1, outcome.err
    return outcome.errors[0]


def cut_off(folder):
    whole = make_photo(folder / "whole.jpg", (64, 64))
    path = folder / "bad.jpg"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    whole.unlink()
    return path


def text(folder):
    path = folder / "bad.png"
    path.write_text("no picture, but a note\n")
    return path


def empty(folder):
    path = folder / "bad.webp"
    path.touch()
    return path


def missing(folder):
    return folder / "bad.png"


BAD_FILES = [
    pytest.param(missing, "bad.png does not exist", id="missing"),
    pytest.param(text, "bad.png", id="text-named-png"),
    pytest.param(cut_off, "bad.jpg is damaged or truncated", id="truncated-jpeg"),
    pytest.param(empty, "bad.webp is empty", id="empty"),
]


@pytest.mark.parametrize(("make", "message"), BAD_FILES)
def test_a_bad_file_alone(restore, tmp_path, make, message):
    outcome = restore(make(tmp_path), "-o", tmp_path / "out")
    assert message in the_error(outcome, 1)
    assert outcome.err.splitlines()[-1] == "0 restored, 1 failed, 0 skipped"


@pytest.mark.parametrize(("make", "message"), BAD_FILES)
def test_a_bad_file_among_good_ones_is_left_out(restore, photos, tmp_path, make, message):
    bad = make(photos)
    out = tmp_path / "out"
    outcome = restore(photos / "a.png", bad, photos / "c.webp", "-o", out)
    assert message in the_error(outcome, 1)
    assert names(out) == ["a.png", "c.png"]
    assert outcome.err.splitlines()[-1] == "2 restored, 1 failed, 0 skipped"


def test_a_file_that_the_system_refuses_to_read(restore, photos, tmp_path, monkeypatch):
    real_open = os.open

    def refuse(path, *arguments, **options):
        if str(path) == str(photos / "a.png"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    outcome = restore(photos, "-o", tmp_path / "out")
    error = the_error(outcome, 1)
    assert "a.png" in error and "permission denied" in error
    assert names(tmp_path / "out") == ["b.png", "c.png"]


def test_an_empty_folder(restore, tmp_path):
    (tmp_path / "none").mkdir()
    outcome = restore(tmp_path / "none", "-o", tmp_path / "out")
    assert "has no images" in the_error(outcome, 1)
    assert not (tmp_path / "out").exists()


def test_a_glob_without_matches(restore, photos, tmp_path):
    assert "no image matches" in the_error(restore(photos / "*.bmp", "-o", tmp_path / "out"), 1)


def test_an_unknown_model_gives_the_nearest_name_before_anything_is_written(program, photos, tmp_path):
    error = the_error(program("restore", photos, "-o", tmp_path / "out", "--model", "realsr-x4-v33"), 2)
    assert "did you mean 'realsr-x4-v3'" in error
    assert not (tmp_path / "out").exists()


def test_a_model_without_published_weights(program, models, photos, tmp_path):
    catalog.MODELS["realsr-x2"] = replace(catalog.MODELS[tiny_models.ENLARGE], name="realsr-x2", weights=None)
    error = the_error(program("restore", photos, "-o", tmp_path / "out", "--model", "realsr-x2"), 2)
    assert "--weights" in error


@pytest.mark.parametrize(
    "arguments", [["--tile", 7], ["--tile", -1], ["--tile", 16, "--overlap", 16], ["--overlap", -1]]
)
def test_tile_and_overlap_out_of_range(restore, photos, tmp_path, arguments):
    error = the_error(restore(photos, "-o", tmp_path / "out", *arguments), 2)
    assert arguments[-2] in error and "expected" in error and str(arguments[-1]) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--seed", "-1"], "--seed", id="negative-seed"),
        pytest.param(["--device", "gpu"], "device", id="device"),
        pytest.param(["--backend", "fastest"], "fastest", id="backend"),
    ],
)
def test_an_option_with_an_invalid_value(restore, photos, tmp_path, arguments, message):
    assert message in the_error(restore(photos, "-o", tmp_path / "out", *arguments), 2)
    assert not (tmp_path / "out" / "a.png").exists()


@pytest.mark.parametrize(
    "arguments",
    [["--noise", "loud"], ["--dtype", "int8"], ["--format", "gif"], ["--batch-size", 0], ["--tile", "big"], ["--fast"]],
    ids=lambda arguments: arguments[0],
)
def test_an_option_that_does_not_parse(restore, photos, tmp_path, arguments):
    outcome = restore(photos, "-o", tmp_path / "out", *arguments)
    assert outcome.code == 2
    assert arguments[0] in outcome.err
    assert not (tmp_path / "out").exists()


def test_no_photos(program, tmp_path):
    assert "no photos were given" in the_error(program("restore", "-o", tmp_path / "out"), 2)


def test_no_output(program, photos):
    assert "-o" in the_error(program("restore", photos), 2)


def test_empty_names_do_not_stand_for_the_current_folder(program, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos)
    assert "an empty name was given" in the_error(program("restore", "", "-o", tmp_path / "out"), 2)
    assert "no output was given" in the_error(program("restore", photos, "-o", ""), 2)
    assert not (tmp_path / "out").exists()


def test_a_file_name_for_several_photos(restore, photos, tmp_path):
    assert "several inputs" in the_error(restore(photos, "-o", tmp_path / "out.png"), 2)


def test_a_format_that_is_not_written(restore, photos, tmp_path):
    assert ".gif is not supported" in the_error(restore(photos / "a.png", "-o", tmp_path / "out.gif"), 2)


def test_a_named_file_that_cannot_hold_the_result(restore, tmp_path):
    photo = make_photo(tmp_path / "clear.png", (10, 8), "RGBA")
    assert "transparency" in the_error(restore(photo, "-o", tmp_path / "out.jpg"), 1)
    assert not (tmp_path / "out.jpg").exists()


@pytest.mark.parametrize("where", ["folder", "file"])
def test_inputs_are_never_replaced(restore, photos, where):
    before = (photos / "a.png").read_bytes()
    out = photos if where == "folder" else photos / "a.png"
    assert "would replace the input" in the_error(restore(photos / "a.png", "-o", out), 2)
    assert (photos / "a.png").read_bytes() == before


def test_an_input_is_not_replaced_by_a_result_that_becomes_png(restore, tmp_path):
    clear, other = make_photo(tmp_path / "a.png", (10, 8), "RGBA"), make_photo(tmp_path / "b.png", (8, 8))
    before = clear.read_bytes()
    outcome = restore(clear, other, "-o", tmp_path, "--format", "jpg")
    assert "is an input" in the_error(outcome, 1)
    assert clear.read_bytes() == before
    assert (tmp_path / "b.jpg").exists()


@pytest.mark.parametrize("inside", [False, True], ids=["a-file", "under-a-file"])
def test_an_output_folder_that_is_a_file(restore, photos, tmp_path, monkeypatch, inside):
    (tmp_path / "out").write_text("mine")
    monkeypatch.setattr(Pipeline, "from_pretrained", lambda *a, **k: pytest.fail("loaded a model first"))
    out = tmp_path / "out" / "deep" if inside else tmp_path / "out"
    assert "output folder" in the_error(restore(photos, "-o", out), 1)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
def test_an_output_folder_that_nobody_can_write_to(restore, photos):
    assert "cannot be written" in the_error(restore(photos, "-o", "/proc/restored"), 1)


def test_no_space_left_ends_the_batch_and_keeps_what_is_written(restore, photos, tmp_path, monkeypatch):
    sync, files = os.fsync, []

    def full(handle):
        if stat.S_ISREG(os.fstat(handle).st_mode):
            files.append(handle)
            if len(files) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    outcome = restore(photos, "-o", tmp_path / "out")
    assert "no space left" in the_error(outcome, 1)
    assert outcome.err.splitlines()[-1] == "1 restored, 1 failed, 0 skipped; stopped with 1 of 3 not started"
    assert names(tmp_path / "out") == ["a.png"]


@pytest.mark.parametrize("model", [tiny_models.INPAINT, tiny_models.ENLARGE])
def test_a_mask_is_needed_by_some_models_and_refused_by_the_others(restore, tmp_path, model):
    photo, mask = make_photo(tmp_path / "photo.png", (20, 20)), make_mask(tmp_path / "mask.png", (20, 20))
    arguments = [] if model == tiny_models.INPAINT else ["--mask", mask]
    error = the_error(restore(photo, "-o", tmp_path / "out", *arguments, model=model), 2)
    assert model in error and "--mask" in error
    assert not (tmp_path / "out").exists()


def test_a_mask_of_the_wrong_size(restore, tmp_path):
    photo, mask = make_photo(tmp_path / "photo.png", (20, 24)), make_mask(tmp_path / "mask.png", (24, 20))
    error = the_error(restore(photo, "-o", tmp_path / "out", "--mask", mask, model=tiny_models.INPAINT), 1)
    assert "24×20" in error and "20×24" in error and str(photo) in error


def test_a_mask_that_is_missing(restore, tmp_path):
    photo = make_photo(tmp_path / "photo.png", (20, 20))
    arguments = ["--mask", tmp_path / "mask.png"]
    assert "does not exist" in the_error(
        restore(photo, "-o", tmp_path / "out", *arguments, model=tiny_models.INPAINT), 1
    )


def test_a_mask_that_is_missing_in_a_folder_of_masks(restore, tmp_path):
    photos, masks, out = tmp_path / "photos", tmp_path / "masks", tmp_path / "out"
    photos.mkdir()
    masks.mkdir()
    for name in ("one", "two"):
        make_photo(photos / f"{name}.png", (20, 20))
    make_mask(masks / "two.png", (20, 20))
    error = the_error(restore(photos, "-o", out, "--mask", masks, model=tiny_models.INPAINT), 1)
    assert "one.png" in error
    assert names(out) == ["two.png"]


def test_two_masks_with_one_stem(restore, tmp_path):
    photo = make_photo(tmp_path / "photo.png", (20, 20))
    masks = tmp_path / "masks"
    masks.mkdir()
    make_mask(masks / "photo.png", (20, 20))
    make_mask(masks / "photo.bmp", (20, 20))
    error = the_error(restore(photo, "-o", tmp_path / "out", "--mask", masks, model=tiny_models.INPAINT), 2)
    assert "two masks" in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(b"", "is empty", id="empty"),
        pytest.param(b"<!doctype html><p>404", "web page", id="web-page"),
    ],
)
def test_a_weights_file_without_weights(program, models, photos, tmp_path, content, message):
    path = tmp_path / "weights.pth"
    if content is not None:
        path.write_bytes(content)
    assert message in the_error(program("restore", photos, "-o", tmp_path / "out", "--weights", path), 1)
    assert names(tmp_path / "out") == []


def test_weights_of_another_model(program, weights, photos, tmp_path):
    arguments = ["--model", tiny_models.ENLARGE, "--weights", weights[tiny_models.INPAINT]]
    assert "does not fit" in the_error(program("restore", photos, "-o", tmp_path / "out", *arguments), 1)


def test_a_download_without_connection(program, models, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "cache"))
    nowhere = catalog.WeightFile("w.pth", "http://127.0.0.1:1/w.pth")
    catalog.MODELS["bicsr-x4"] = replace(catalog.MODELS[tiny_models.ENLARGE], weights=nowhere)
    error = the_error(program("restore", photos, "-o", tmp_path / "out", "--model", "bicsr-x4"), 1)
    assert "could not be downloaded" in error and "--weights FILE" in error


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(MemoryError(), id="numpy"),
        pytest.param(
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), id="torch-cpu"
        ),
        pytest.param(type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), id="torch-cuda"),
    ],
)
def test_out_of_memory(restore, photos, tmp_path, monkeypatch, error):
    call = Pipeline.__call__

    def large_photos_fail(self, image, mask=None, **options):
        if image.width == 24:
            raise error
        return call(self, image, mask, **options)

    monkeypatch.setattr(Pipeline, "__call__", large_photos_fail)
    line = the_error(restore(photos, "-o", tmp_path / "out"), 1)
    assert "a.png" in line and "a smaller --tile than 16" in line
    assert names(tmp_path / "out") == ["b.png", "c.png"]


def test_an_internal_error_is_one_line_that_says_how_to_get_the_traceback(restore, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: {}["gone"])
    line = the_error(restore(photos / "a.png", "-o", tmp_path / "out"), 1)
    assert "a.png: internal error: KeyError" in line and "RESSHIFT_FAST_DEBUG=1" in line


def test_the_traceback_is_shown_on_request(restore, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_DEBUG", "1")
    monkeypatch.setattr(Pipeline, "__call__", lambda *a, **k: {}["gone"])
    with pytest.raises(AssertionError, match="Traceback"):
        restore(photos / "a.png", "-o", tmp_path / "out")


def test_an_internal_error_in_another_command_is_one_line(program, monkeypatch):
    from resshift_fast.cli import models

    monkeypatch.setattr(models, "_parameters", lambda spec: 1 // 0)
    assert "internal error: ZeroDivisionError" in the_error(program("models"), 1)
