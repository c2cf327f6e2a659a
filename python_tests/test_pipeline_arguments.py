"""Invalid arguments are refused in one line; weights are found, checked and cached."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pipelines import CPU, SPECS, integers, oracle, photo, pointwise, tensor_of, tiny, zero

from resshift_fast import Pipeline, pipeline, sample
from resshift_fast.models import catalog
from resshift_fast.training.metrics import psnr_y
from resshift_fast.weights import download
from resshift_fast.weights.checkpoints import CheckpointError, save_safetensors

PIPE = oracle(pointwise)  # ×4, pads to 16, tiles start at even pixels
IMAGE = photo(40, 40)
NAN = torch.tensor(float("nan"))


CALLS = {
    "tile below the window": ({"tile": 15}, ValueError, "tile is 15, expected at least 16 input pixels"),
    "tile of zero": ({"tile": 0}, ValueError, "tile is 0, expected at least 16"),
    "negative tile": ({"tile": -64}, ValueError, "tile is -64"),
    "fractional tile": ({"tile": 64.5}, TypeError, "tile is 64.5, expected an integer or None"),
    "tile as text": ({"tile": "64"}, TypeError, "tile is '64', expected an integer"),
    "negative overlap": ({"overlap": -1}, ValueError, "overlap is -1, expected 0 to tile − 1 = 63"),
    "overlap of a tile": ({"tile": 32, "overlap": 32}, ValueError, "overlap is 32, expected 0 to tile − 1 = 31"),
    "overlap without a step": ({"tile": 32, "overlap": 31}, ValueError, "overlap is 31, expected at most 30"),
    "fractional overlap": ({"overlap": 0.5}, TypeError, "overlap is 0.5, expected an integer"),
    "empty batch": ({"batch_size": 0}, ValueError, "batch_size is 0, expected at least 1"),
    "negative batch": ({"batch_size": -2}, ValueError, "batch_size is -2"),
    "fractional batch": ({"batch_size": 1.5}, TypeError, "batch_size is 1.5, expected an integer"),
    "boolean batch": ({"batch_size": True}, TypeError, "batch_size is True"),
    "unknown layout": ({"layout": "HCW"}, ValueError, "layout is 'HCW', expected None or one of BCHW"),
    "unknown noise": ({"noise": "white"}, ValueError, "noise is 'white', expected 'field' or 'torch'"),
    "negative seed": ({"seed": -1}, ValueError, r"seed is -1, expected 0 to 2\*\*63 - 1"),
    "seed beyond 63 bits": ({"seed": 2**63}, ValueError, "expected 0 to"),
    "fractional seed": ({"seed": 1.0}, TypeError, "seed is 1.0, expected an integer"),
    "boolean seed of numpy": ({"seed": np.True_}, TypeError, "seed is np.True_|seed is True"),
    "floats of numpy as seeds": ({"seed": np.array([1.5])}, TypeError, "seed is 1.5"),
    "matrix of seeds": ({"seed": np.ones((2, 2), int)}, TypeError, "expected an integer"),
    "boolean seed": ({"seed": True}, TypeError, "seed is True"),
    "too many seeds": ({"seed": [1, 2]}, ValueError, "2 seeds for 1 images; give one for all, or one for each"),
    "bad seed in a list": ({"seed": [-5]}, ValueError, "seed is -5"),
}


@pytest.mark.parametrize("case", CALLS)
def test_refused_in_one_line_before_any_work(case):
    options, error, message = CALLS[case]
    pipe = oracle(pointwise)
    with pytest.raises(error, match=message) as raised:
        pipe(IMAGE, progress=False, **options)
    assert "\n" not in str(raised.value)
    assert not pipe.denoiser.shapes


IMAGES = {
    "NaN": (NAN.expand(1, 3, 8, 8), ValueError, "NaN"),
    "out of range": (tensor_of(IMAGE) * 255, ValueError, r"expected \[0, 1\]; scale or clamp"),
    "integer tensor": (torch.zeros(3, 8, 8, dtype=torch.int32), TypeError, "floating point"),
    "sparse tensor": (torch.zeros(3, 8, 8).to_sparse(), TypeError, "sparse or meta tensor"),
    "tensor without data": (torch.zeros(3, 8, 8, device="meta"), TypeError, "sparse or meta tensor"),
    "wrong rank": (torch.zeros(8, 8), ValueError, r"got \[8, 8\]"),
    "signed array": (np.zeros((8, 8, 3), int), TypeError, "uint8, uint16, or floating point .*, got int64"),
    "unsupported": ({"image": 1}, TypeError, "cannot restore a dict"),
    "second of a list": ([IMAGE, None], TypeError, "cannot restore a NoneType"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_pictures_that_do_not_fit_are_refused_before_any_work(case):
    image, error, message = IMAGES[case]
    pipe = oracle(pointwise)
    with pytest.raises(error, match=message) as raised:
        pipe(image, progress=False)
    assert "\n" not in str(raised.value)
    assert not pipe.denoiser.shapes


def test_torch_noise_takes_one_seed():
    images = [photo(8, 8), photo(8, 8)]
    with pytest.raises(ValueError, match="noise='torch' draws in order from one seed"):
        PIPE(images, seed=[1, 2], noise="torch", progress=False)
    first, second = PIPE(images, seed=3, noise="torch", progress=False)
    assert (first != second).any()  # the same picture, but the next draws


def test_integers_of_numpy_are_accepted():
    expected = PIPE(IMAGE, seed=3, tile=32, overlap=8, batch_size=2, progress=False)
    options = {"seed": np.int64(3), "tile": np.uint8(32), "overlap": np.int16(8), "batch_size": np.int32(2)}
    np.testing.assert_array_equal(PIPE(IMAGE, progress=False, **options), expected)


SEEDS = [(4, 5), range(4, 6), np.array([4, 5]), torch.tensor([4, 5])]


@pytest.mark.parametrize("seeds", SEEDS, ids=lambda seeds: type(seeds).__name__)
def test_seeds_may_be_any_sequence(seeds):
    images = [photo(8, 8), photo(8, 9)]
    expected = PIPE(images, seed=[4, 5], progress=False)
    for image, wanted in zip(PIPE(images, seed=seeds, progress=False), expected, strict=True):
        np.testing.assert_array_equal(image, wanted)


@pytest.mark.parametrize("spec", ["x4", "x4-vq"])
def test_an_overflow_is_an_error(spec):
    """Also with a codebook, whose nearest entry would otherwise hide the NaN."""
    shared = tiny(spec)
    denoiser = catalog.build_denoiser(shared.spec)
    denoiser.load_state_dict(shared.denoiser.state_dict())
    with torch.no_grad():
        denoiser.out[2].weight *= 1e6
    pipe = Pipeline(shared.spec, denoiser, catalog.build_first_stage(shared.spec), CPU, torch.float16)
    with pytest.raises(ValueError, match="overflowed in float16; use float32 or bfloat16"):
        pipe(photo(8, 8), progress=False)


def test_nan_in_float32_asks_for_other_weights():
    pipe = oracle(lambda latent, features: latent * NAN)
    with pytest.raises(ValueError, match="overflowed in float32; use other weights"):
        pipe(tensor_of(photo(8, 8)), progress=False)


BUILDS = {
    "unknown model": ({"name": "realsr-v3"}, ValueError, "unknown model 'realsr-v3'; did you mean 'realsr-x4-v3'?"),
    "no name": ({"name": ""}, ValueError, "unknown model ''"),
    "unknown dtype": ({"dtype": "float8"}, ValueError, "dtype is 'float8', expected one of float32, bfloat16, float16"),
    "unsupported dtype": ({"dtype": torch.float64}, ValueError, "dtype is torch.float64"),
    "unknown device": ({"device": "pocket"}, ValueError, "device 'pocket' cannot be used here: .*; use device='cpu'"),
    "absent device": ({"device": "xpu:7"}, ValueError, "device 'xpu:7' cannot be used here"),
    "meta device": ({"device": "meta"}, ValueError, "device 'meta' cannot be used here"),
    "device as a number": ({"device": 1.5}, ValueError, "device '1.5' cannot be used here"),
    "missing weights": ({"weights": "none.safetensors"}, FileNotFoundError, "none.safetensors"),
}


@pytest.mark.parametrize("case", BUILDS)
def test_pipelines_that_cannot_be_built_say_why(case):
    options, error, message = BUILDS[case]
    with pytest.raises(error, match=message) as raised:
        Pipeline.from_pretrained(**options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, "float16"], ids=["torch.bfloat16", "float16"])
def test_dtypes_may_be_given_by_name(dtype):
    pipe = Pipeline.from_pretrained("nano-x4", random_weights=True, dtype=dtype, device="cpu")
    assert pipe.dtype == next(pipe.denoiser.parameters()).dtype
    assert str(pipe.dtype).endswith(str(dtype).removeprefix("torch."))
    assert (pipe.spec.name, pipe.device) == ("nano-x4", CPU)


@pytest.fixture
def catalogue(monkeypatch):
    """The catalogue with three entries replaced by small models."""
    for name, spec in (("nano-x4", SPECS["x4"]), ("realsr-x4-v3", SPECS["x4-vq"]), ("realsr-x2", SPECS["x2-vq"])):
        monkeypatch.setitem(catalog.MODELS, name, spec)


@pytest.fixture
def files(tmp_path, catalogue):
    """Weights files of the small "nano-x4", of a scaled copy of it, of "realsr-x4-v3" and of its autoencoder."""
    save_safetensors(tiny("x4").denoiser, tmp_path / "nano.safetensors", {"model": "nano-x4"})
    other = {key: value * 1.25 for key, value in tiny("x4").denoiser.state_dict().items() if value.is_floating_point()}
    save_safetensors(other, tmp_path / "other.safetensors", {"model": "nano-x4"})
    save_safetensors(tiny("x4-vq").denoiser, tmp_path / "realsr.safetensors", {})
    save_safetensors(tiny("x4-vq").first_stage, tmp_path / "autoencoder.safetensors", {})
    return tmp_path


def test_given_files_are_loaded(files):
    for name, spec, options in (
        ("nano-x4", "x4", {"weights": files / "nano.safetensors"}),
        (
            "realsr-x4-v3",
            "x4-vq",
            {"weights": str(files / "realsr.safetensors"), "autoencoder": files / "autoencoder.safetensors"},
        ),
    ):
        pipe = Pipeline.from_pretrained(name, device="cpu", **options)
        np.testing.assert_array_equal(pipe(IMAGE, progress=False), tiny(spec)(IMAGE, progress=False))


def test_weights_of_another_model_are_refused_with_the_first_keys(files):
    with pytest.raises(CheckpointError, match=r"realsr.safetensors does not fit SwinUNet: .*input_blocks\.0\.0"):
        Pipeline.from_pretrained("nano-x4", weights=files / "realsr.safetensors")
    with pytest.raises(CheckpointError, match=r"nano.safetensors does not fit VQAutoencoder: .*encoder\.conv_in"):
        Pipeline.from_pretrained(
            "realsr-x4-v3", weights=files / "realsr.safetensors", autoencoder=files / "nano.safetensors"
        )


def test_a_model_without_published_weights_says_what_to_do(catalogue):
    with pytest.raises(ValueError, match=r"no weights are published for realsr-x2; .* weights=FILE \(--weights FILE\)"):
        Pipeline.from_pretrained("realsr-x2")


def test_an_autoencoder_for_a_model_without_one_is_refused(files):
    with pytest.raises(ValueError, match=r"nano-x4 has no autoencoder to load .*autoencoder.safetensors into; leave"):
        Pipeline.from_pretrained(
            weights=files / "nano.safetensors", autoencoder=files / "autoencoder.safetensors", device="cpu"
        )


@pytest.fixture
def loads(monkeypatch):
    """Names of the models that `sample` loads, starting with an empty cache."""
    loaded, build = [], Pipeline.from_pretrained

    def recorded(name, **options):
        loaded.append(name)
        return build(name, **options)

    monkeypatch.setattr(pipeline, "_cached", {})
    monkeypatch.setattr(Pipeline, "from_pretrained", recorded)
    return loaded


def test_sample_is_a_pipeline_in_one_call(files, loads):
    weights = files / "nano.safetensors"
    expected = tiny("x4")(IMAGE, seed=5, tile=32, overlap=4, progress=False)
    result = sample(IMAGE, weights=weights, device="cpu", seed=5, tile=32, overlap=4, progress=False)
    np.testing.assert_array_equal(result, expected)
    with pytest.raises(TypeError, match="strength"):
        sample(IMAGE, weights=weights, strength=1)


def test_the_embedded_models_stay_close_to_the_picture_and_one_is_the_default(loads):
    image = photo(24, 32)
    plain = oracle(zero)(image, progress=False)
    for model in (None, "nano-x4"):
        result = sample(image, model, device="cpu", progress=False)
        assert result.shape == (96, 128, 3) and 0 < np.abs(result / 255 - plain / 255).mean() < 0.05
    assert loads == ["photo-x4", "nano-x4"]


def test_weights_that_name_their_model_need_no_name(files):
    assert Pipeline.from_pretrained(weights=files / "nano.safetensors", device="cpu").spec.name == "nano-x4"
    assert catalog.default_model(weights=files / "nano.safetensors") == "nano-x4"
    # Without a name, unreadable, of a name that is unknown or for other inputs: an embedded model.
    save_safetensors(tiny("x4").denoiser, files / "unknown.safetensors", {"model": "mine"})
    for name in ("realsr.safetensors", "missing.safetensors", "unknown.safetensors"):
        assert catalog.default_model(weights=files / name) == "photo-x4"
    assert catalog.default_model(masked=True, weights=files / "nano.safetensors") == "photo-inpaint"
    with pytest.raises(CheckpointError, match="are of a U-Net, and the denoiser of photo-x4 is none; name their model"):
        Pipeline.from_pretrained(weights=files / "realsr.safetensors", device="cpu")


def test_the_embedded_model_of_scale_1_takes_noise_away_and_leaves_a_clean_photo():
    path = Path(__file__).parents[1] / "examples" / "nuthatch.jpg"
    clean = np.asarray(Image.open(path))
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 20, clean.shape), 0, 255).round().astype(np.uint8)
    pipe = Pipeline.from_pretrained("photo-x1", device="cpu")
    kept, restored = (psnr_y(pipe(each, progress=False), clean) for each in (clean, noisy))
    assert kept > 40 and restored > psnr_y(noisy, clean) + 1


def test_with_a_mask_the_embedded_inpainting_model_is_the_default(loads):
    image, masked = photo(40, 56), np.zeros((40, 56), bool)
    masked[12:20, 8:40] = True
    result = sample(np.where(masked[..., None], np.uint8(0), image), mask=masked, device="cpu", progress=False)
    assert loads == ["photo-inpaint"]
    np.testing.assert_array_equal(result[~masked], image[~masked])
    assert psnr_y(result[masked][None], image[masked][None]) > 15
    with pytest.raises(ValueError, match="nano-x4 takes no mask"):
        sample(image, "nano-x4", mask=masked, device="cpu")


def test_sample_keeps_one_pipeline_and_reloads_on_change(files, loads):
    def run(**options):
        options = {"weights": files / "nano.safetensors", "device": "cpu"} | options
        return sample(integers(8, 8, 3), progress=False, **options)

    first = run()
    run(seed=3, tile=32)
    run(weights=str(files / "nano.safetensors"), dtype="float32")
    assert len(loads) == 1
    run(dtype="bfloat16")
    assert len(loads) == 2
    assert (run(weights=files / "other.safetensors") != first).any()
    assert len(loads) == 3 and len(pipeline._cached) == 1
    np.testing.assert_array_equal(run(), first)
    assert len(loads) == 4


def test_sample_notices_a_file_that_was_written_again(files, loads):
    weights = files / "nano.safetensors"
    first = sample(IMAGE, weights=weights, device="cpu", progress=False)
    os.replace(files / "other.safetensors", weights)
    os.utime(weights, ns=(1, 1))
    second = sample(IMAGE, weights=weights, device="cpu", progress=False)
    assert (first != second).any() and len(loads) == 2


def test_sample_keeps_its_pipeline_when_another_model_fails(files, loads):
    options = {"weights": files / "nano.safetensors", "device": "cpu", "progress": False}
    sample(IMAGE, **options)
    with pytest.raises(CheckpointError):
        sample(IMAGE, **options | {"weights": files / "realsr.safetensors"})
    with pytest.raises(ValueError, match="unknown model 'nano-x8'; did you mean 'nano-x4'"):
        sample(IMAGE, "nano-x8", **options)
    count = len(loads)
    sample(IMAGE, **options)
    assert len(loads) == count


def test_sample_in_several_threads_loads_once(files, loads):
    with ThreadPoolExecutor(4) as pool:
        options = {"weights": files / "nano.safetensors", "device": "cpu", "progress": False}
        results = list(pool.map(lambda _: sample(IMAGE, **options), range(4)))
    assert len(loads) == 1
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_damaged_weights_of_the_package_ask_for_a_new_installation(tmp_path, monkeypatch):
    path = tmp_path / "nano-x4.safetensors"
    path.write_bytes(b"\x40\0\0\0\0\0\0\0{")
    monkeypatch.setattr(download, "local_path", lambda file: path)
    with pytest.raises(CheckpointError, match="nano-x4.safetensors of the installed package is damaged; install"):
        Pipeline.from_pretrained("nano-x4", device="cpu")
    with pytest.raises(CheckpointError, match="truncated or damaged .*; download it again"):
        Pipeline.from_pretrained("nano-x4", weights=path, device="cpu")
