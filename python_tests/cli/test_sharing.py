"""Two runs of `restore` on one folder share the work."""

import os
import time

import pytest
from sample_photos import names

from resshift_fast import images
from resshift_fast.core.claims import claimed
from resshift_fast.pipeline import Pipeline

pytest.importorskip("fcntl")


def test_a_photo_that_another_run_restores_is_left_to_it(restore, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with claimed(out / "b.png"):
        outcome = restore(photos, "-o", out)
    assert outcome.code == 0
    assert "[2/3] b.jpg left to another run, which restores it" in outcome.err
    assert outcome.err.endswith("2 restored, 0 failed, 1 skipped\n")
    assert names(out) == ["a.png", "c.png"]


@pytest.mark.parametrize("written", ["c.png", "b.png"])
def test_a_photo_that_another_run_has_restored_meanwhile_is_skipped(restore, photos, tmp_path, monkeypatch, written):
    out, call = tmp_path / "out", Pipeline.__call__

    def meanwhile(self, image, mask=None, **options):
        if image.name.endswith("a.png"):
            time.sleep(0.02)
            images.write(out / written, images.Photo(image.pixels))
        return call(self, image, mask, **options)

    monkeypatch.setattr(Pipeline, "__call__", meanwhile)
    outcome = restore(photos, "-o", out)
    assert "left to another run, which has restored it" in outcome.err
    assert outcome.err.endswith("2 restored, 0 failed, 1 skipped\n")
    assert images.read(out / written).width == 24  # untouched


def test_a_run_with_other_options_on_the_same_photos_is_refused(restore, photos, tmp_path, monkeypatch):
    out, call, others = tmp_path / "out", Pipeline.__call__, []

    def meanwhile(self, image, mask=None, **options):
        if not others:
            others.append(None)
            others[:] = [
                restore(photos, "-o", out, "--seed", 2, "--tile", 16),
                restore(photos / "a.png", photos / "b.jpg", "-o", out, "--format", "jpg"),
                restore(photos, "-o", out, "--batch-size", 2),
                restore(photos, "-o", tmp_path / "elsewhere", "--seed", 2),
            ]
        return call(self, image, mask, **options)

    monkeypatch.setattr(Pipeline, "__call__", meanwhile)
    restore(photos, "-o", out)
    seeds, formats, shared, elsewhere = others
    assert seeds.code == formats.code == 2 and shared.code == elsewhere.code == 0
    assert "with seed 0 instead of 2, tile None instead of 16; wait for it" in seeds.errors[0]
    assert "with format .png instead of .jpg" in formats.errors[0]
    assert "2 restored, 0 failed, 1 skipped" in shared.err and "3 restored" in elsewhere.err
    assert sorted(path.name for path in out.iterdir()) == ["a.png", "b.png", "c.png"]


def test_results_of_earlier_runs_are_restored_again(restore, photos, tmp_path):
    out = tmp_path / "out"
    restore(photos, "-o", out)
    before = {path.name: os.stat(path).st_ino for path in out.iterdir()}
    assert restore(photos, "-o", out).err.endswith("3 restored, 0 failed, 0 skipped\n")
    assert all(before[path.name] != os.stat(path).st_ino for path in out.iterdir())
