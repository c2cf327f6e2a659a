"""Validation on held-out photos."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import make_config, make_trainer, read_log

from resshift_fast.training.degradations import Mixture
from resshift_fast.training.pixels import to_images, to_tensor
from resshift_fast.training.validation import Validation


def test_validation_measures_keeps_the_best_and_draws_a_sheet(photos, tmp_path):
    from safetensors import safe_open

    config = make_config(photos, tmp_path, steps=2, val=str(photos), val_every=1, val_limit=2)
    trainer = make_trainer(config)
    assert trainer.run()
    rows = read_log(tmp_path)
    assert all(float(row["val_psnr_y_clean"]) > 5 and float(row["bicubic_psnr_y_degraded"]) > 5 for row in rows)
    with Image.open(tmp_path / "val" / "0000002.png") as sheet:
        assert sheet.size == (6 * 160, 2 * 160)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata()["model"] == config.model
        assert file.get_tensor("out.2.weight").dtype == torch.float16


def test_an_untrained_residual_network_validates_close_to_bicubic(photos, tmp_path):
    # A zero prediction gives x̂_0 = y in every step, so only 8-bit rounding separates the two.
    trainer = make_trainer(make_config(photos, tmp_path))
    validation = Validation(photos, 4, Mixture(), limit=2)
    result = trainer.validate(validation)
    assert result.clean == pytest.approx(result.bicubic_clean, abs=0.02)
    assert result.degraded == pytest.approx(result.bicubic_degraded, abs=0.02)
    assert result.bicubic_degraded < result.bicubic_clean


def test_validation_photos_that_are_damaged_are_skipped_by_name(photos, tmp_path):
    first = sorted(photos.iterdir())[0]
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(first.read_bytes())
    (tmp_path / "b.png").write_bytes(first.read_bytes()[:500])
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(60))
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    with pytest.warns(UserWarning, match="skipped") as caught:
        validation = Validation(tmp_path, 4, Mixture(), limit=9)
    assert len(validation.high) == 2
    texts = [str(one.message) for one in caught]
    assert (
        len(texts) == 2
        and "b.png is damaged or truncated" in texts[0]
        and "small.png: it is below 64 pixels" in texts[1]
    )
    for name in ("a.png", "c.png"):
        (tmp_path / name).unlink()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="no usable photo"):
        Validation(tmp_path, 4, Mixture(), limit=9)


def test_validation_inputs_are_fixed(photos):
    first, second = (Validation(photos, 4, Mixture(), limit=2) for _ in range(2))
    for kind in ("clean", "degraded"):
        assert all(np.array_equal(a, b) for a, b in zip(first.low[kind], second.low[kind], strict=True))


def test_images_are_unchanged_after_conversion_to_tensors_and_back():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(image)
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(to_images(tensor), image)


def test_the_best_weights_are_chosen_anew_for_other_photos(photos, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    Image.open(photos / "0.png").transpose(Image.Transpose.ROTATE_90).save(other / "0.png")
    config = make_config(photos, tmp_path / "run", val=str(photos), val_every=2)
    trainer = make_trainer(config)
    trainer.run(stop_after=2)
    trainer.best_gain = 99.0
    trainer.save()
    same = make_trainer(config)
    same.run(stop_after=0)
    assert same.best_gain == 99.0 and "chosen anew" not in capsys.readouterr().err
    changed = make_trainer(replace(config, val=str(other)))
    changed.run(stop_after=2)
    assert changed.best_gain < 9 and "the validation photos have changed" in capsys.readouterr().err
