"""Official YAML files as trainings: every entry is mapped, without effect or refused."""

import pytest
from official_yaml import REALSR, TRAIN, of_type

from resshift_fast.training.config import TrainConfig
from resshift_fast.training.degradations.second_order import SecondOrder
from resshift_fast.training.official_config import read

pytest.importorskip("omegaconf", reason="omegaconf, which reads YAML, is not installed")


@pytest.fixture
def write(tmp_path):
    def file(text):
        (tmp_path / "photos").mkdir(exist_ok=True)
        path = tmp_path / "realsr.yaml"
        path.write_text(text.replace("PHOTOS", str(tmp_path / "photos")))
        return path

    return file


def test_every_entry_of_a_realsr_file_is_understood(write, tmp_path):
    training = read(write(REALSR))
    config = TrainConfig(**training.settings, run="run")
    assert (config.lr, config.min_lr, config.warmup, config.steps) == (5e-5, 2e-5, 5000, 500_000)
    assert config.accumulate == 2
    assert (config.batch_size, config.patch, config.ema_decay, config.seed) == (2, 32, 0.999, 123456)
    assert (config.save_every, config.val_every, config.log_every) == (10_000, 10_000, 200)
    assert (config.precision, config.compile, config.weight_decay, config.betas) == ("float32", False, 0, (0.9, 0.999))
    assert config.objective == "official" and config.objective_options == {"mse": 1.0, "lpips": 0.0}
    assert config.data == (str(tmp_path / "photos"),) and config.val is None and config.autoencoder is None
    assert config.degradation == "second_order"
    options = {name: tuple(v) if isinstance(v, list) else v for name, v in config.degradation_options.items()}
    assert SecondOrder(**options) == SecondOrder(blur_kernel_size2=15, second_order_prob=0.5)
    assert set(options) == set(SecondOrder.__dataclass_fields__) - {"gt_size"}
    assert training.spec.scale == 4 and training.spec.schedule.steps == 4
    assert "train.prefetch_factor" in training.without_effect and "train.lr" not in training.without_effect


def test_a_constant_rate_and_half_precision(write):
    text = REALSR.replace("lr_schedule: cosin", "lr_schedule: ~").replace("use_amp: False", "use_amp: True")
    settings = read(write(text.replace("warmup_iterations: 5000", ""))).settings
    assert settings["min_lr"] == settings["lr"] == 5e-5 and settings["warmup"] == 0
    assert settings["precision"] == "bfloat16"


@pytest.mark.parametrize(
    ("batch", "given", "microbatch", "accumulate"), [(64, None, 16, 4), (64, 6, 16, 1), (64, 6, 4, 2), (64, 7, 4, 7)]
)
def test_a_batch_is_divided_into_parts_of_at_most_a_microbatch(batch, given, microbatch, accumulate, write):
    text = REALSR.replace("batch: [2, 1]", f"batch: [{batch}, 1]").replace("microbatch: 1", f"microbatch: {microbatch}")
    settings = read(write(text), batch_size=given).settings
    assert (settings["batch_size"], settings["accumulate"]) == (given or batch, accumulate)


def test_files_that_exist_are_taken(write, tmp_path):
    for name in ("vq.pth", "start.pth"):
        (tmp_path / name).touch()
    text = REALSR.replace("weights/autoencoder_vq_f4.pth", str(tmp_path / "vq.pth"))
    text = text.replace("testdata/lq", str(tmp_path)).replace("ckpt_path: ~", f"ckpt_path: {tmp_path / 'start.pth'}")
    settings = read(write(text)).settings
    assert settings["autoencoder"] == str(tmp_path / "vq.pth") and settings["val"] == str(tmp_path)
    assert settings["init_from"] == str(tmp_path / "start.pth")
    assert "data" not in read(write(REALSR.replace("PHOTOS", "/nowhere"))).settings


@pytest.mark.parametrize(
    "kind, params, degradation, options",
    [
        ("bicubic", "{sf: 4, matlab_mode: True, gt_size: 64}", "bicubic", {}),
        ("face", "{downsample_range: [1, 32], jpeg_range: [30, 100]}", "face",
         {"downsample_range": [1, 32], "jpeg_range": [30, 100]}),
        ("inpainting", "{mask_kwargs: {irregular_proba: 0.5, box_proba: 0.2, segm_proba: 0.2, superres_proba: 0.1,"
         " irregular_kwargs: {max_len: 100, max_width: 50, max_times: 3}, box_kwargs: {margin: 5, max_times: 2}}}",
         "masks", {"weights": [0.5, 0.2, 0.2, 0.1], "stroke_length": [10, 110], "stroke_width": [5, 55],
                   "strokes": [1, 3], "margin": 5.0, "boxes": [1, 2]}),
    ],
)  # fmt: skip
def test_types_of_data_are_degradations(kind, params, degradation, options, write):
    settings = read(write(of_type(kind, params))).settings
    assert settings["degradation"] == degradation
    assert options.items() <= settings["degradation_options"].items()


BAD = {
    "section": (REALSR + "speed: {fast: True}\n", "unknown entries speed.fast"),
    "model": (REALSR.replace("dims: 2", "dims: 2\n    depth: 3"), "unknown entries model.params.depth"),
    "degradation": (REALSR.replace("  jpeg_range:", "  webp_range:"), "unknown entries degradation.webp_range"),
    "data": (REALSR.replace("crop_pad_size", "crop_size"), "unknown entries data.train.params.crop_size"),
    "train": (REALSR.replace("  use_amp", "  use_tpu"), "unknown entries train.use_tpu"),
    "mask": (of_type("inpaint", "{mask_kwargs: {squares_proba: 1}}"), "unknown .*mask_kwargs.squares_proba"),
    "type": (of_type("video", "{}"), "data.train.type is 'video', expected one of realesrgan"),
    "value": (REALSR.replace("sinc_prob: 0.1", "sinc_prob: 3"), "sinc is a probability"),
    "weighted": (REALSR.replace("weighted_mse: False", "weighted_mse: True"), "weighted_mse is True"),
    "schedule": (REALSR.replace("cosin", "steps"), "lr_schedule is 'steps'"),
    "loss": (REALSR.replace("loss_coef: [1.0, 0.0]", "loss_coef: 1.0"), "loss_coef is 1.0"),
    "batch": (REALSR.replace("batch: [2, 1]", "batch: 0"), "train.batch 0 and train.microbatch 1 must be at least 1"),
    "number": (REALSR.replace("lr: 5e-5", "lr: fast"), "train.lr is 'fast', expected a number"),
    "no batch": (REALSR.replace("batch: [2, 1]", "batch: []"), r"train.batch is \[\], expected a number"),
    "list": (
        REALSR.replace("resize_prob: [0.2, 0.7, 0.1]", "resize_prob: 3"),
        "resize_prob is 3, expected a list, each",
    ),
    "share": (
        REALSR.replace("gray_noise_prob: 0.4", "gray_noise_prob: high"),
        "gray_noise_prob is 'high', expected",
    ),
    "mask value": (of_type("inpaint", "{mask_kwargs: {box_proba: much}}"), "box_proba is 'much', expected a number"),
    "missing": (REALSR.replace(TRAIN, "train: {lr: 1e-4}"), "train.iterations is missing"),
}


@pytest.mark.parametrize("text, message", BAD.values(), ids=BAD)
def test_what_is_not_supported_is_refused_by_name(text, message, write):
    with pytest.raises(ValueError, match=f"realsr.yaml.*{message}"):
        read(write(text))
