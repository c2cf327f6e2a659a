"""Validation on held-out photos."""

import csv
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import TINY, make_config, make_spec, make_trainer, read_log

from resshift_fast.models.autoencoder import SpaceToDepth, SpaceToDepthConfig
from resshift_fast.models.swin_unet import SwinUNet
from resshift_fast.training import networks
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.degradations import Mixture
from resshift_fast.training.degradations.second_order import SecondOrder
from resshift_fast.training.interfaces import Batch
from resshift_fast.training.metrics import from_config, psnr_y
from resshift_fast.training.pixels import to_images, to_tensor
from resshift_fast.training.trainer import Trainer
from resshift_fast.training.validation import Pair, Validation, from_pairs, from_photos


def test_validation_measures_keeps_the_best_and_draws_a_sheet(photos, tmp_path):
    from safetensors import safe_open

    config = make_config(photos, tmp_path, steps=2, val=str(photos), val_every=1, val_limit=2)
    trainer = make_trainer(config)
    assert trainer.run()
    rows = read_log(tmp_path)
    assert all(float(row["val_psnr_y_clean"]) > 5 and float(row["bicubic_psnr_y_degraded"]) > 5 for row in rows)
    assert all(0 < float(row["val_ssim_y_degraded"]) < 1 for row in rows)
    with Image.open(tmp_path / "val" / "0000002.png") as sheet:
        assert sheet.size == (6 * 160, 2 * 160)
    with safe_open(tmp_path / "best.safetensors", "pt") as file:
        assert file.metadata()["model"] == config.model and float(file.metadata()["psnr_y_clean_gain"]) < 9
        assert file.get_tensor("out.2.weight").dtype == torch.float16


def test_an_untrained_residual_network_validates_close_to_bicubic(photos, tmp_path):
    # A zero prediction gives x̂_0 = y in every step, so only 8-bit rounding separates the two.
    trainer = make_trainer(make_config(photos, tmp_path))
    result = trainer.validate(Validation(from_photos(photos, 4, Mixture(), limit=2), 4))
    assert result.gains() == pytest.approx({"clean": 0.0, "degraded": 0.0}, abs=0.02)
    assert result.bicubic["degraded"]["psnr_y"] < result.bicubic["clean"]["psnr_y"]


def test_a_degradation_that_cuts_patches_is_validated_on_whole_squares(photos):
    (pair,) = from_photos(photos, 4, SecondOrder(gt_size=32), limit=1, side=64)
    assert pair.high.shape == (64, 64, 3) and {low.shape for low in pair.low.values()} == {(16, 16, 3)}


def test_without_enlarging_only_degraded_photos_are_validated(photos):
    """A clean input would be the photo itself, whose infinite PSNR no result can gain on."""
    (pair,) = from_photos(photos, 1, Mixture(clean=1.0, marks=1.0), limit=1, side=64)
    assert list(pair.low) == ["degraded"] and pair.low["degraded"].shape == (64, 64, 3)
    validation = Validation([pair], 1)
    gain = validation.run(lambda low, _: low).gain
    assert gain == 0.0 and np.isfinite(validation.run(lambda low, _: low * 0.9).gain)


def test_at_scale_1_every_photo_is_degraded(photos):
    rare = {"blur": 0.2, "noise": 0.1, "jpeg": 0.1, "second_order": 0.0}
    for pair in from_photos(photos, 1, Mixture(**rare, resize_kinds=("bicubic",), resize_weights=(1.0,)), limit=6):
        assert not np.array_equal(pair.high, pair.low["degraded"])
    nothing = Mixture(blur=0.0, noise=0.0, jpeg=0.0, second_order=0.0)
    with pytest.raises(ValueError, match="the degradation changes nothing at scale 1"):
        from_photos(photos, 1, nothing, limit=1)


def test_photos_of_any_size_are_validated(tmp_path):
    """200 pixels are 50 latent ones, which a network with windows of 8 takes padded to 64 only."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 203, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    trainer = make_trainer(make_config(tmp_path, tmp_path / "run"), make_spec(pad_multiple=16))
    validation = Validation(from_photos(tmp_path, 4, Mixture(), limit=1, side=None), 4)
    assert validation.high[0].shape == (200, 200, 3)
    assert abs(trainer.validate(validation).gains()["clean"]) < 0.02


def test_validation_photos_that_are_damaged_are_skipped_by_name(photos, tmp_path):
    first = sorted(photos.iterdir())[0]
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes(first.read_bytes())
    (tmp_path / "b.png").write_bytes(first.read_bytes()[:500])
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7" + bytes(60))
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    with pytest.warns(UserWarning, match="skipped") as caught:
        assert len(from_photos(tmp_path, 4, Mixture(), limit=9)) == 2
    texts = [str(one.message) for one in caught]
    assert len(texts) == 2
    assert "b.png is damaged or truncated" in texts[0] and "small.png: it is below 64 pixels" in texts[1]
    for name in ("a.png", "c.png"):
        (tmp_path / name).unlink()
    with pytest.warns(UserWarning, match="skipped"), pytest.raises(ValueError, match="no usable validation photo"):
        from_photos(tmp_path, 4, Mixture(), limit=9)


def test_validation_inputs_are_fixed(photos, tmp_path):
    first, second = (Validation(from_photos(photos, 4, Mixture(), limit=2), 4) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    for kind in ("clean", "degraded"):
        assert all(np.array_equal(a, b) for a, b in zip(first.low[kind], second.low[kind], strict=True))
    fewer = Validation(from_photos(photos, 4, Mixture(), limit=1), 4)
    assert fewer.fingerprint != first.fingerprint


def _pair(folder, name, low_name, height, width, scale=4):
    """A low-quality image, and a high-quality one of which it is every fourth pixel."""
    low = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for part, pixels in (("high", low.repeat(scale, 0).repeat(scale, 1)), ("low", low)):
        (folder / part).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / part / (low_name if part == "low" else name))


def test_given_pairs_belong_together_by_name_and_are_cut_at_one_place(tmp_path):
    _pair(tmp_path, "0001.png", "0001x4.png", 41, 52)
    _pair(tmp_path, "b.png", "b.bmp", 33, 70)
    for side, sizes in ((100, [25, 25]), (None, [41, 33])):
        pairs = from_pairs(tmp_path / "high", tmp_path / "low", 4, limit=9, side=side)
        assert [pair.low["paired"].shape[0] for pair in pairs] == sizes
        for pair in pairs:
            assert np.array_equal(pair.high[::4, ::4], pair.low["paired"])


def test_pairs_that_do_not_fit_are_errors_before_the_first_step(tmp_path):
    _pair(tmp_path, "a.png", "a.png", 30, 40)
    config = make_config(tmp_path / "high", tmp_path / "run", val=str(tmp_path / "high"), val_lq=str(tmp_path / "low"))
    Image.new("RGB", (41, 30)).save(tmp_path / "low" / "a.png")
    with pytest.raises(ValueError, match=r"high/a.png is 160×120, but .*low/a.png is 41×30 .* ×4; expected 164×120"):
        make_trainer(config).run()
    (tmp_path / "low" / "a.png").rename(tmp_path / "low" / "c.png")
    with pytest.raises(FileNotFoundError, match="low has no low-quality version of .*a.png; .* called a or ax4"):
        make_trainer(config).run()
    assert not (tmp_path / "run" / "log.csv").exists()
    with pytest.raises(ValueError, match="val_lq needs val"):
        replace(config, val=None)


def test_given_pairs_are_validated(tmp_path):
    _pair(tmp_path, "a.png", "a.png", 30, 40)
    config = make_config(tmp_path / "high", tmp_path / "run", val=str(tmp_path / "high"), val_lq=str(tmp_path / "low"))
    assert make_trainer(replace(config, steps=1)).run()
    (row,) = read_log(tmp_path / "run")
    assert float(row["val_psnr_y_paired"]) > 5 and "val_psnr_y_clean" not in row
    with Image.open(tmp_path / "run" / "val" / "0000001.png") as sheet:
        assert sheet.size == (3 * 120, 120)


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


def test_known_pixels_are_kept_in_inpainting(tmp_path):
    denoiser = SwinUNet(replace(TINY, lq_size=64, cond_mask=True))
    torch.nn.init.normal_(denoiser.out[2].weight, std=0.1)  # it is zero in a new network
    low, mask = torch.rand(1, 3, 70, 60) * 2 - 1, torch.full((1, 1, 70, 60), -1.0)
    mask[..., 10:20, 30:40] = 1.0
    spec = make_spec(scale=1, pad_multiple=32)
    restored = networks.restore(spec, denoiser, SpaceToDepth(SpaceToDepthConfig()), low, mask)
    known = (mask < 0).expand_as(low)
    assert restored.shape == low.shape and torch.equal(restored[known], low[known])
    assert not torch.equal(restored[~known], low[~known])


class _Masked:
    """A degradation that hides the left half."""

    def degrade_batch(self, high, scale, draws):
        mask = torch.full_like(high[:, :1], -1.0)
        mask[..., : high.shape[3] // 2] = 1.0
        return Batch(high, torch.where(mask > 0, -1.0, high), mask)


def test_inpainting_is_validated_in_the_hole_and_as_a_whole(photos, tmp_path):
    spec = make_spec(prediction_type="x0", scale=1, pad_multiple=32, needs_mask=True)
    config = make_config(photos, tmp_path, steps=1, patch=64, val=str(photos), val_limit=2, val_side=64)
    config = replace(config, objective="official", objective_options={"lpips": 0.0}, degradation="masks")
    denoiser = SwinUNet(replace(TINY, lq_size=64, cond_mask=True))
    trainer = Trainer(config, spec, denoiser=denoiser, first_stage=SpaceToDepth(SpaceToDepthConfig()))
    held_out, again = trainer.held_out(), trainer.held_out()
    assert held_out.fingerprint == again.fingerprint
    pairs = [
        Pair(high, {"masked": low}, -mask)
        for high, low, mask in zip(again.high, again.low["masked"], again.masks, strict=True)
    ]
    assert Validation(pairs, 1).fingerprint != again.fingerprint
    assert trainer.run()
    row = read_log(tmp_path)[-1]
    share = np.mean([(mask > 0).mean() for mask in again.masks])
    whole, unknown = (float(row[f"val_{name}_masked"]) for name in ("psnr_y", "psnr_y_unknown"))
    # Known pixels are equal, so that the error of the whole is that of the hole times its share.
    assert unknown < whole and whole - unknown == pytest.approx(-10 * np.log10(share), abs=1.5)
    with Image.open(tmp_path / "val" / "0000001.png") as sheet:
        assert sheet.size == (4 * 64, 2 * 64)
        cells = np.split(np.asarray(sheet)[:64], 4, axis=1)
    known = again.masks[0] < 0
    assert np.array_equal(cells[1][..., 0] > 0, ~known)
    assert np.array_equal(cells[2][known], cells[3][known]) and not np.array_equal(cells[2], cells[3])


def test_the_error_of_the_hole_alone():
    rng = np.random.default_rng(0)
    high, filled = (rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in range(2))
    mask = np.where(rng.random((9, 7)) < 0.3, 1.0, -1.0).astype(np.float32)
    low = np.where(mask[..., None] > 0, np.uint8(0), high)
    result = Validation([Pair(high, {"masked": low}, mask)], 1).run(lambda low, mask: to_tensor(filled[None]))
    y = (high.astype(float) - filled) @ np.array([65.481, 128.553, 24.966]) / 255
    expected = 10 * np.log10(255**2 / np.mean(y[mask > 0] ** 2))
    assert result.restored["masked"]["psnr_y_unknown"] == pytest.approx(expected, abs=1e-9)


def test_gray_images_are_validated(tmp_path):
    rng = np.random.default_rng(0)
    high, low = (rng.integers(0, 256, (size, size, 1), dtype=np.uint8) for size in (16, 8))
    validation = Validation([Pair(high, {"given": low})], 2)
    result = validation.run(lambda low, _: to_tensor(high[None]), tmp_path / "sheet.png")
    assert result.restored["given"]["psnr_y"] == np.inf
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (48, 16)
    with pytest.raises(ValueError, match="validation images have 1 or 3 channels, got 2"):
        Validation([Pair(high.repeat(2, 2), {"given": low.repeat(2, 2)})], 2)


def test_masks_reach_the_network_of_a_validation(photos):
    seen = []

    def restore(low, mask):
        seen.append(mask)
        return low

    validation = Validation(from_photos(photos, 1, _Masked(), limit=2), 1)
    result = validation.run(restore)
    assert list(result.restored) == ["masked"] and result.gain == 0.0
    assert seen[0].shape == (2, 1, 160, 160) and seen[0][..., :80].min() == 1 and seen[0][..., 80:].max() == -1


def test_losses_are_logged_by_timestep(photos, tmp_path):
    config = make_config(photos, tmp_path, steps=4, log_every=2)
    make_trainer(config).run(stop_after=2)
    make_trainer(config).run()
    with open(tmp_path / "timesteps.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["step"] for row in rows} == {"2", "4"} and {row["t"] for row in rows} <= {"0", "1", "2"}
    for row in read_log(tmp_path):
        mine = [one for one in rows if one["step"] == row["step"]]
        counts = [int(one["samples"]) for one in mine]
        assert sum(counts) == 4
        mean = sum(float(one["loss"]) * count for one, count in zip(mine, counts, strict=True)) / 4
        assert mean == pytest.approx(float(row["loss"]), abs=2e-6)


def _module(monkeypatch, name, **attributes):
    module = ModuleType(name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)


def test_metrics_of_pyiqa_and_own_ones_are_logged(photos, tmp_path, monkeypatch):
    created = {
        "brightness": SimpleNamespace(metric_mode="NR", function=lambda image: image.mean()),
        "distance": SimpleNamespace(
            metric_mode="FR", function=lambda image, reference: (image - reference).abs().mean()
        ),
    }

    class Metric(torch.nn.Module):
        def __init__(self, name):
            super().__init__()
            self.metric_mode, self._function = created[name].metric_mode, created[name].function

        def forward(self, *images):
            return self._function(*images)

    _module(monkeypatch, "pyiqa", create_metric=lambda name, device: Metric(name))
    config = make_config(photos, tmp_path, steps=1, val=str(photos), val_metrics=("brightness", "distance"))
    trainer = make_trainer(config, metrics={"half": lambda image, reference: 0.5})
    assert trainer.run()
    (row,) = read_log(tmp_path)
    high = [pair.high for pair in from_photos(photos, 4, Mixture(), limit=2)]
    assert float(row["val_brightness_clean"]) == pytest.approx(np.mean([one.mean() for one in high]) / 255, abs=0.02)
    assert 0 < float(row["val_distance_degraded"]) < 0.1 and row["val_half_clean"] == "0.5000"


def test_metrics_that_are_not_installed_or_unknown_are_one_clear_error(monkeypatch):
    config = TrainConfig(data="", run="", val_metrics=("niqe",))
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ValueError, match="the metric niqe needs pyiqa, which is not installed; pip install pyiqa"):
        from_config(config, torch.device("cpu"))
    _module(monkeypatch, "pyiqa", create_metric=lambda name, device: {}[name])
    with pytest.raises(ValueError, match="pyiqa has no metric 'niqe'"):
        from_config(config, torch.device("cpu"))


def test_lpips_gets_images_in_its_range(monkeypatch):
    class Distance:
        @classmethod
        def from_files(cls, vgg):
            assert vgg == "vgg16.pth"
            return cls()

        def to(self, device):
            return self

        def __call__(self, image, reference):
            assert image.shape == (1, 3, 5, 4) and image.min() == -1 and reference.max() == 1
            return (image - reference).abs().mean()

    _module(monkeypatch, "resshift_fast.training.lpips", LPIPS=Distance)
    measure = from_config(TrainConfig(data="", run="", val_lpips="vgg16.pth"), torch.device("cpu"))["lpips"]
    black, white = np.zeros((5, 4, 3), np.uint8), np.full((5, 4, 3), 255, np.uint8)
    assert measure(black, white) == pytest.approx(2.0)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_log_goes_to_tensorboard_where_it_is_installed(photos, tmp_path, monkeypatch, wanted):
    written, images = [], []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append(("start", folder, purge_step))

        def add_scalar(self, name, value, step):
            written.append((name, value, step))

        def add_image(self, name, image, step, dataformats):
            images.append((image.shape, step))

        def flush(self):
            pass

        def close(self):
            written.append("closed")

    _module(monkeypatch, "torch.utils.tensorboard", SummaryWriter=SummaryWriter)
    config = make_config(photos, tmp_path, steps=2, val=str(photos), val_every=2, val_limit=1, tensorboard=wanted)
    make_trainer(config).run(stop_after=1)
    make_trainer(config).run()
    if not wanted:
        assert not written
        return
    folder = str(tmp_path / "tensorboard")
    assert [one for one in written if one[0] == "start"] == [("start", folder, None), ("start", folder, 2)]
    rows = read_log(tmp_path)
    for step, row in enumerate(rows, start=1):
        assert ("loss", float(row["loss"]), step) in written and any(one[0].startswith("loss_by_t") for one in written)
    assert ("val_psnr_y_clean", float(rows[1]["val_psnr_y_clean"]), 2) in written
    assert images == [((160, 6 * 160, 3), 2)] and written[-1] == "closed"


def test_images_are_unchanged_after_conversion_to_tensors_and_back():
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    tensor = to_tensor(image)
    assert tensor.min() == -1 and tensor.max() == 1
    assert np.array_equal(to_images(tensor), image)


def test_the_sheet_holds_photos_of_several_sizes(tmp_path):
    pairs = [
        Pair(
            np.full((8 * side, 8 * side, 3), side, np.uint8),
            {"clean": np.full((2 * side, 2 * side, 3), side, np.uint8)},
        )
        for side in (2, 3)
    ]
    validation = Validation(pairs, 4, metrics={"psnr_y": psnr_y, "width": lambda image, _: image.shape[1]})
    result = validation.run(lambda low, _mask: low.repeat_interleave(4, 2).repeat_interleave(4, 3), tmp_path / "x.png")
    assert result.restored["clean"]["width"] == 20.0
    with Image.open(tmp_path / "x.png") as sheet:
        assert sheet.size == (3 * 24, 16 + 24)
