"""Calls of a pipeline: kinds of images, sizes, dtypes, batches, seeds, noise, threads, progress."""

import io
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comparison import assert_close, tied_pixels
from golden_data import array, arrays
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pipelines import CPU, SPECS, WHOLE, fresh, integers, oracle, photo, pointwise, tensor_of, tiny, visible, zero

from resshift_fast import Pipeline, images
from resshift_fast.images import Photo
from resshift_fast.models import catalog, cost

BICUBIC, IDENTITY = oracle(zero, 4), oracle(zero, 1)
H, W = 13, 22


def enlarged(pixels):
    """Bicubic enlargement of [H, W, C] in [0, 1] after padding by reflection to a multiple of 16."""
    x = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    x = F.pad(x, (0, -W % 16, 0, -H % 16), mode="reflect")
    large = F.interpolate(x, scale_factor=4, mode="bicubic", align_corners=False)[0, :, : 4 * H, : 4 * W]
    return large.clamp(0, 1).permute(1, 2, 0).numpy()


def gray(bits=8):
    return integers(H, W, 1, bits=bits)


KINDS = {  # (makes an image, makes its colours [H, W, 1 or 3] as integers)
    "array-uint8": (lambda: integers(H, W, 3), lambda: integers(H, W, 3)),
    "array-uint16": (lambda: integers(H, W, 3, bits=16), lambda: integers(H, W, 3, bits=16)),
    "array-alpha": (lambda: visible(integers(H, W, 4)), lambda: integers(H, W, 4)[..., :3]),
    "array-HW": (lambda: gray()[..., 0], gray),
    "array-HW1-uint16": (lambda: gray(16), lambda: gray(16)),
    "photo": (lambda: Photo(integers(H, W, 3)), lambda: integers(H, W, 3)),
    "pil-RGB": (lambda: Image.fromarray(integers(H, W, 3)), lambda: integers(H, W, 3)),
    "pil-RGBA": (lambda: Image.fromarray(visible(integers(H, W, 4))), lambda: integers(H, W, 4)[..., :3]),
    "pil-L": (lambda: Image.fromarray(gray()[..., 0]), gray),
    "pil-I16": (lambda: Image.fromarray(gray(16)[..., 0]), lambda: gray(16)),
    "tensor-BCHW": (lambda: tensor_of(integers(H, W, 3)), lambda: integers(H, W, 3)),
    "tensor-CHW": (lambda: tensor_of(integers(H, W, 3))[0], lambda: integers(H, W, 3)),
    "tensor-gray": (lambda: tensor_of(gray()), gray),
    "tensor-alpha": (lambda: tensor_of(visible(integers(H, W, 4))), lambda: integers(H, W, 4)[..., :3]),
    "tensor-float16": (lambda: tensor_of(integers(H, W, 3)).half(), lambda: integers(H, W, 3)),
    "tensor-bfloat16": (lambda: tensor_of(integers(H, W, 3)).bfloat16(), lambda: integers(H, W, 3)),
    "tensor-float64": (lambda: tensor_of(integers(H, W, 3)).double(), lambda: integers(H, W, 3)),
}


def described(picture):
    """(properties that a result keeps, (height, width), colours [H, W, C] in [0, 1])."""
    if isinstance(picture, torch.Tensor):
        assert not picture.requires_grad
        kept = (torch.Tensor, picture.dtype, picture.device, picture.shape[:-2])
        planes = picture.double().reshape(-1, *picture.shape[-2:]).permute(1, 2, 0).numpy()
        return kept, picture.shape[-2:], planes[..., :3]
    if isinstance(picture, Photo):
        kept, values = (Photo, picture.gray, picture.alpha is None, picture.pixels.dtype), picture.pixels
    elif isinstance(picture, Image.Image):
        kept, values = (Image.Image, picture.mode), np.asarray(picture)
    else:
        kept, values = (np.ndarray, picture.dtype, picture.ndim, picture.shape[2:]), picture
    planes = values.reshape(*values.shape[:2], -1)[..., :3] / np.iinfo(values.dtype).max
    return kept, values.shape[:2], planes


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_image_gives_its_own_kind_enlarged(kind):
    make, colours = KINDS[kind]
    expected = enlarged(colours() / np.iinfo(colours().dtype).max)
    image = make()
    (kept, size, values), (kept_before, _, _) = described(BICUBIC(image, progress=False)), described(image)
    assert kept == kept_before
    assert size == (4 * H, 4 * W)
    if "tensor" in kind:
        tolerance = {"bfloat16": 4e-3, "float16": 1e-3}.get(kind.removeprefix("tensor-"), 1e-6)
    else:
        tolerance = 0.51 / np.iinfo(colours().dtype).max
    np.testing.assert_allclose(values, np.broadcast_to(expected, values.shape), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_scale_1_that_changes_nothing_returns_every_kind_unchanged(kind):
    image = KINDS[kind][0]()
    (*kept, values), (*kept_before, before) = described(IDENTITY(image, progress=False)), described(image)
    assert kept == kept_before
    np.testing.assert_allclose(values, before, rtol=0, atol=1e-7 if "tensor" in kind else 0)


def test_files_give_pil_images(tmp_path):
    pixels = integers(H, W, 4)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    expected = BICUBIC(pixels, progress=False)
    for path in (tmp_path / "photo.png", str(tmp_path / "photo.png")):
        result = BICUBIC(path, progress=False)
        assert isinstance(result, Image.Image) and result.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(result), expected)
    np.testing.assert_array_equal(expected[..., 3], images.resize_alpha(pixels[..., 3], (4 * H, 4 * W)))


def test_lists_and_tuples_of_any_kinds_and_sizes_keep_their_structure():
    small, large = integers(3, 5, 3), integers(33, 9)
    result = BICUBIC([small, (tensor_of(small), [large]), Image.fromarray(small)], progress=False)
    assert [type(part) for part in result] == [np.ndarray, tuple, Image.Image]
    assert result[0].shape == (12, 20, 3) and result[2].size == (20, 12)
    assert result[1][0].shape == (1, 3, 12, 20) and result[1][1][0].shape == (132, 36)
    np.testing.assert_array_equal(result[0], BICUBIC(small, progress=False))
    assert BICUBIC([], progress=False) == [] and BICUBIC((), progress=False) == ()


def test_neither_picture_nor_random_state_of_the_caller_changes():
    pipe, image = tiny("x4"), tensor_of(photo(20, 20))
    before, state = image.clone(), torch.get_rng_state()
    for noise in ("field", "torch"):
        pipe(image, noise=noise, progress=False)
    assert torch.equal(image, before) and torch.equal(torch.get_rng_state(), state)


@settings(max_examples=12)
@given(height=st.integers(1, 70), width=st.integers(1, 40))
def test_every_size_is_padded_by_reflection(height, width):
    """The reference is numpy's reflection, also for padding that is longer than the side."""
    pipe, image = tiny("x4"), photo(height, width)
    padded = np.pad(image, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="reflect")
    result, whole = pipe(image, tile=WHOLE, progress=False), pipe(padded, tile=WHOLE, progress=False)
    assert result.shape == (4 * height, 4 * width, 3)
    np.testing.assert_array_equal(result, whole[: 4 * height, : 4 * width])


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 33), (34, 3)], ids=lambda side: str(side))
@pytest.mark.parametrize("name", [name for name in SPECS if name != "x4"])
def test_every_model_takes_odd_sizes(name, height, width):
    pipe = tiny(name)
    mask = np.ones((height, width), bool) if pipe.spec.needs_mask else None
    result = pipe(tensor_of(photo(height, width)), mask, progress=False)
    assert result.shape == (1, 3, height * pipe.spec.scale, width * pipe.spec.scale)
    assert result.min() >= 0 and result.max() <= 1


# Rounding may select another entry of the small codebook, which is far away; hence the wide limits of x4-vq.
NEAR = {"x4": {torch.bfloat16: 0.01, torch.float16: 0.002}, "x4-vq": {torch.bfloat16: 0.15, torch.float16: 0.1}}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", NEAR)
def test_16_bit_networks_are_near_float32(name, dtype):
    image = tensor_of(photo(16, 24))
    exact = tiny(name)(image, progress=False)
    result = tiny(name, dtype)(image, progress=False)
    assert result.dtype == torch.float32
    assert_close(name, result, exact, NEAR[name][dtype])
    assert not torch.equal(result, exact)


@pytest.mark.parametrize(
    ("name", "batch_size"), [("x4", 1), ("x4", 2), ("x4", 5), ("x2-vq", 5)], ids=lambda value: str(value)
)
def test_a_batch_equals_one_by_one(name, batch_size):
    pipe = tiny(name)
    sizes = [(12, 16), (12, 16), (12, 16), (9, 20), (20, 9), (12, 16)]
    pictures = [tensor_of(photo(*size, seed=i))[0] for i, size in enumerate(sizes)]
    seeds = [3, 3, 4, 5, 6, 2**62]
    together = pipe(pictures, seed=seeds, batch_size=batch_size, progress=False)
    for picture, seed, result in zip(pictures, seeds, together, strict=True):
        assert_close(name, result, pipe(picture, seed=seed, progress=False), 1e-5)
    stacked = pipe(torch.stack(pictures[:3]), seed=seeds[:3], batch_size=batch_size, progress=False)
    assert_close(name, stacked, torch.stack(together[:3]), 1e-5)


def test_order_in_the_batch_does_not_matter():
    pipe = oracle(pointwise)
    pictures, seeds = [photo(20, 20, seed=i) for i in range(4)], [5, 6, 7, 8]
    forward = pipe(pictures, seed=seeds, batch_size=3, progress=False)
    backward = pipe(pictures[::-1], seed=seeds[::-1], batch_size=3, progress=False)
    for ours, theirs in zip(forward, backward[::-1], strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("noise", ["field", "torch"])
def test_a_seed_decides_the_result(noise):
    pipe, image = tiny("x4"), photo(20, 20)
    first, again, other = (pipe(image, seed=seed, noise=noise, progress=False) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.3


@pytest.mark.parametrize("high", [2**32, 2**62], ids=["bit-32", "bit-62"])
def test_all_bits_of_a_seed_count(high):
    pipe, image = oracle(pointwise), photo(8, 8)
    assert (pipe(image, seed=high + 1, progress=False) != pipe(image, seed=1, progress=False)).mean() > 0.5


def official_chain(pipe, image, seed):
    """The chain from the formulas and the networks alone, with random draws in the official program's order."""
    spec, schedule = pipe.spec, pipe.spec.schedule
    lq = image * 2 - 1
    y = pipe.first_stage.encode(F.interpolate(lq, scale_factor=spec.scale, mode="bicubic"))
    torch.manual_seed(seed)
    x = y + schedule.kappa * schedule.etas[-1] ** 0.5 * torch.randn(y.shape)
    for t in reversed(range(schedule.num_steps)):
        eta = schedule.etas[t]
        scaled = x / (schedule.kappa**2 * eta + 1) ** 0.5
        x0 = pipe.denoiser(scaled.float(), torch.full((len(y),), t), lq)
        if spec.prediction_type == "residual":
            x0 = (y - x0).clamp(-1, 1)
        noise, eta_before = torch.randn(y.shape), schedule.etas[t - 1] if t else 0.0
        mean = eta_before / eta * x + (eta - eta_before) / eta * x0
        x = mean + schedule.kappa * (eta_before * (eta - eta_before) / eta) ** 0.5 * noise
    return (pipe.first_stage.decode(x.float()).clamp(-1, 1) + 1) / 2


@pytest.mark.parametrize("name", ["x4", "x4-vq", "x2-vq"])
def test_torch_noise_is_drawn_in_the_official_order(name):
    pipe = tiny(name)
    image = tensor_of(photo(pipe.spec.pad_multiple, 2 * pipe.spec.pad_multiple))
    with torch.random.fork_rng():
        expected = official_chain(pipe, image, 12345)
    assert_close(name, pipe(image, seed=12345, noise="torch", progress=False), expected, 1e-4)


@pytest.mark.slow
def test_the_official_sample_is_reproduced(official, monkeypatch):
    """realsr-x4-v3, 4 steps, with the deterministic weights: the whole pipeline against the official program."""
    spec = catalog.get("realsr-x4-v3")
    pipe = Pipeline(spec, official.denoiser(spec.name), official.first_stage(spec.name), CPU, torch.float32)
    y = array("sample.y", 1, 3, 64, 64).clamp(-1, 1)
    reference = arrays("sample_realsr_seed12345.npz")
    expected, final = (reference["image"].clamp(-1, 1) + 1) / 2, reference["steps"][-1]
    decode, tied = pipe.first_stage.decode, tied_pixels(final, pipe.first_stage.quantize.embedding.weight)

    def decode_with_ties_settled(latent):
        assert_close("latent", latent, final, 1e-4)
        return decode(torch.where(tied[:, None], final, latent))

    monkeypatch.setattr(pipe.first_stage, "decode", decode_with_ties_settled)
    result = pipe((y + 1) / 2, seed=12345, noise="torch", progress=False)
    assert_close("image", result, expected, 1e-4)


def test_a_cpu_gets_the_tiles_that_cost_least(monkeypatch):
    spec, usual = replace(SPECS["x4-vq"], overlap=8), tiny("x4-vq")
    pipe, shapes = Pipeline(spec, usual.denoiser, usual.first_stage, CPU, torch.float32), []
    expensive = replace(cost.of_model(spec), quadratic=1e9)  # as if attention were all
    monkeypatch.setattr(cost, "of_model", lambda model: expensive)
    restore = pipe._restore

    def noted(*arguments):
        pixels = restore(*arguments)
        shapes.append(pixels.shape[2:])
        return pixels

    monkeypatch.setattr(pipe, "_restore", noted)
    pipe(photo(70, 30), progress=False)
    assert shapes == [(128, 128)] * 3 and [axis.tile for axis in pipe.plan_tiles(70, 30)] == [32, 32]
    shapes.clear()
    pipe(photo(70, 30), tile=64, progress=False)
    assert shapes == [(192, 128)] * 2


def test_several_threads_may_share_a_pipeline():
    pipe = tiny("x4")
    cases = [(photo(16 + 8 * (i % 3), 24, seed=i), i) for i in range(8)]
    serial = [pipe(image, seed=seed, progress=False) for image, seed in cases]
    with ThreadPoolExecutor(4) as pool:
        parallel = list(pool.map(lambda case: pipe(case[0], seed=case[1], noise="field", progress=False), cases))
        torch_noise = list(pool.map(lambda _: pipe(cases[0][0], noise="torch", progress=False), range(4)))
    for ours, theirs in zip(parallel, serial, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    for result in torch_noise:
        np.testing.assert_array_equal(result, torch_noise[0])


@pytest.mark.parametrize(
    ("batch_size", "batches"), [pytest.param(1, 8, id="one by one"), pytest.param(4, 2, id="batches across pictures")]
)
def test_progress_counts_the_evaluations(batch_size, batches):
    pipe, calls = oracle(pointwise), []
    pictures = [photo(32, 48), photo(16, 32)]

    def count(done, total):
        assert len(pipe.denoiser.shapes) == done  # called after each
        calls.append((done, total))

    pipe(pictures, tile=16, overlap=0, batch_size=batch_size, progress=count)
    total = batches * pipe.spec.schedule.num_steps
    assert calls == [(done + 1, total) for done in range(total)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "progress", "shown"),
    [
        pytest.param(Terminal, True, True, id="on a terminal"),
        pytest.param(Terminal, False, False, id="switched off"),
        pytest.param(io.StringIO, True, False, id="in a log"),
    ],
)
def test_a_bar_is_shown_on_a_terminal_only(monkeypatch, stream, progress, shown):
    monkeypatch.setattr(sys, "stderr", stream())
    BICUBIC(photo(8, 8), progress=progress)
    assert ("restoring" in sys.stderr.getvalue()) == shown
    assert bool(sys.stderr.getvalue()) == shown


def test_an_error_in_the_callback_stops_the_run_and_leaves_the_pipeline_usable():
    def stop(done, total):
        raise KeyboardInterrupt

    pipe = tiny("x4")
    with pytest.raises(KeyboardInterrupt):
        pipe(photo(20, 20), progress=stop)
    assert pipe(photo(20, 20), progress=False).shape == (80, 80, 3)


def test_weights_are_prepared_on_a_gpu_before_every_call(monkeypatch):
    pipe = fresh("x4")
    order = []
    monkeypatch.setattr(pipe.restoration, "prepare", lambda: order.append("prepare"))
    pipe(np.zeros((16, 16, 3), np.uint8))
    assert order == []
    pipe.device = torch.device("cuda")
    pipe._compiled = lambda *arguments: order.append("run")
    for _ in range(2):
        pipe._run_networks((), lambda: None)
    assert order == ["prepare", "run"] * 2
