"""Inpainting: known pixels stay bit for bit at any size and tiling; values under the mask do not matter."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pipelines import WHOLE, integers, oracle, photo, pointwise, tensor_of, tile_statistics, tiny, zero

from resshift_fast import images
from resshift_fast.images import Photo
from resshift_fast.models.filling import fill_photo

POINTWISE = oracle(pointwise, 1, mask=True)
H, W = 40, 90


def mask_of(height, width, seed=0):
    """Some rectangles as a bool mask; the last pixel is masked and the first is known."""
    random = np.random.default_rng(seed)
    masked = np.zeros((height, width), bool)
    for _ in range(3):
        top, left = random.integers(0, height), random.integers(0, width)
        masked[top : top + height // 3 + 1, left : left + width // 4 + 1] = True
    masked[0, 0], masked[-1, -1] = False, height * width > 1
    return masked


MASK = mask_of(H, W)


@given(
    height=st.integers(1, 140),
    width=st.integers(1, 140),
    tile=st.sampled_from([64, 128, WHOLE]),
    overlap=st.sampled_from([0, 7, 32]),
    bits=st.sampled_from([8, 16]),
    seed=st.integers(0, 9),
)
@settings(max_examples=30)
def test_known_pixels_stay_and_masked_ones_are_filled_the_same_in_every_tiling(
    height, width, tile, overlap, bits, seed
):
    image, masked = integers(height, width, 3, bits=bits, seed=seed), mask_of(height, width, seed)
    whole = POINTWISE(image, masked, tile=WHOLE, progress=False)
    tiled = POINTWISE(image, masked, tile=tile, overlap=overlap, progress=False)
    np.testing.assert_array_equal(tiled[~masked], image[~masked])
    np.testing.assert_allclose(tiled[masked].astype(int), whole[masked], atol=1)
    if masked.sum() > 4:
        assert (tiled[masked] != image[masked]).mean() > 0.9


def tensor(*shape, dtype=torch.float32):
    return torch.rand(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)


KINDS = {
    "array-RGB": lambda: integers(H, W, 3),
    "array-RGB-16bit": lambda: integers(H, W, 3, bits=16),
    "array-RGBA-16bit": lambda: integers(H, W, 4, bits=16),
    "array-gray": lambda: integers(H, W),
    "photo-alpha": lambda: Photo(integers(H, W, 3), integers(H, W)),
    "pil-RGB": lambda: Image.fromarray(integers(H, W, 3)),
    "pil-RGBA": lambda: Image.fromarray(integers(H, W, 4)),
    "pil-LA": lambda: Image.fromarray(integers(H, W, 2), "LA"),
    "pil-16bit": lambda: Image.fromarray(integers(H, W, bits=16)),
    "tensor-float32": lambda: tensor(3, H, W),
    "tensor-alpha-float64": lambda: tensor(1, 4, H, W, dtype=torch.float64),
    "tensor-gray-bfloat16": lambda: tensor(1, 1, H, W, dtype=torch.bfloat16),
    "tensor-float16": lambda: tensor(1, 3, H, W, dtype=torch.float16),
}


def values(picture):
    """[H, W, C] with alpha as the last channel, in the picture's own precision."""
    if isinstance(picture, torch.Tensor):
        return picture.double().reshape(-1, H, W).permute(1, 2, 0).numpy()
    if isinstance(picture, Photo):
        return np.dstack([picture.pixels, picture.alpha])
    return np.asarray(picture).reshape(H, W, -1)


@pytest.mark.parametrize("name", ["inpaint", "inpaint-vq"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_keeps_its_known_pixels_and_its_alpha(kind, name):
    image = KINDS[kind]()
    result = tiny(name)(image, MASK, tile=64, progress=False)
    assert type(result) is type(image)
    if isinstance(image, Image.Image):
        assert result.mode == image.mode
    ours, before = values(result), values(image)
    assert ours.dtype == before.dtype and ours.shape == before.shape
    np.testing.assert_array_equal(ours[~MASK], before[~MASK])
    assert (ours[MASK] != before[MASK])[..., 0].mean() > 0.9
    if before.shape[2] in (2, 4):
        kept = np.ones((H, W), bool)
        kept[-1, -1] = False  # a part of the mask by itself, which random neighbours may surround
        np.testing.assert_array_equal(ours[kept][..., -1], before[kept][..., -1])


ERASED = {  # [H, W, 4] to a kind
    "array": lambda planes: planes,
    "array-16-bit": lambda planes: planes.astype(np.uint16) * 257,
    "pil": Image.fromarray,
    "photo": lambda planes: Photo(planes[..., :3].copy(), planes[..., 3].copy()),
    "tensor": tensor_of,
    "tensor-float64": lambda planes: tensor_of(planes).double(),
    "tensor-bfloat16": lambda planes: tensor_of(planes).bfloat16(),
}


@pytest.mark.parametrize("kind", ERASED)
def test_a_hole_erased_to_transparent_becomes_visible(kind):
    planes = np.dstack([photo(H, W), np.full((H, W), 255, np.uint8)])
    planes[MASK] = 0
    image = ERASED[kind](planes)
    before, result = values(image), values(POINTWISE(image, MASK, tile=64, progress=False))
    assert (result[..., 3] == before[..., 3].max()).all()
    np.testing.assert_array_equal(result[~MASK], before[~MASK])
    # What was erased and hidden colours elsewhere are not seen by the networks.
    opaque = np.dstack([photo(H, W), np.full((H, W), 255, np.uint8)])
    np.testing.assert_array_equal(result, values(POINTWISE(ERASED[kind](opaque), MASK, tile=64, progress=False)))


@pytest.mark.parametrize("name", ["inpaint", "inpaint-vq"])
def test_values_under_the_mask_do_not_matter(name):
    first = photo(H, W)
    results = []
    for inside in (0, 255, integers(H, W, 3)):
        image = np.where(MASK[..., None], inside, first).astype(np.uint8)
        results.append(tiny(name)(image, MASK, tile=64, progress=False))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_surroundings_and_the_seed_do_matter():
    image = photo(H, W)
    ours = tiny("inpaint")(image, MASK, progress=False)
    for other in (
        tiny("inpaint")(255 - image, MASK, progress=False),
        tiny("inpaint")(image, MASK, seed=1, progress=False),
    ):
        assert (other[MASK] != ours[MASK]).mean() > 0.5


def test_the_network_sees_masked_pixels_as_black_and_a_mask_of_plus_and_minus_one():
    seen = []

    def watch(latent, features):
        seen.append(features)
        return pointwise(latent, features)

    masked = np.zeros((64, 64), bool)
    masked[8:24, 16:48] = True  # whole latent pixels, since the oracle averages over each
    image = photo(64, 64)
    oracle(watch, 1, mask=True)(image, masked, progress=False)
    lq, mask = seen[0][0, :3], seen[0][0, 3]
    in_mask = torch.from_numpy(masked[::4, ::4])
    assert (lq[:, in_mask] == -1).all() and (mask[in_mask] == 1).all() and (mask[~in_mask] == -1).all()
    expected = torch.nn.functional.avg_pool2d(tensor_of(image) * 2 - 1, 4)[0]
    torch.testing.assert_close(lq[:, ~in_mask], expected[:, ~in_mask])


def evaluations(pipe, image, masked, **options):
    calls = []
    result = pipe(image, masked, progress=lambda done, total: calls.append((done, total)), **options)
    assert calls == [(i + 1, len(calls)) for i in range(len(calls))]
    return result, len(calls)


def test_tiles_without_masked_pixels_are_not_evaluated():
    image, masked = photo(192, 192), np.zeros((192, 192), bool)
    masked[70:80, 130:140] = True
    masked[100, 100] = True
    steps = POINTWISE.spec.schedule.num_steps
    _, whole = evaluations(POINTWISE, image, masked, tile=WHOLE)
    result, in_tiles = evaluations(POINTWISE, image, masked, tile=64, overlap=0)  # 3 × 3 tiles, two of them masked
    assert (whole, in_tiles) == (steps, 2 * steps)
    np.testing.assert_array_equal(result[~masked], image[~masked])
    _, batched = evaluations(POINTWISE, image, masked, tile=64, overlap=0, batch_size=5)
    assert batched == steps


def test_an_empty_mask_costs_nothing_and_changes_nothing():
    image = integers(H, W, 3, bits=16)
    result, count = evaluations(POINTWISE, image, np.zeros((H, W), bool), tile=64)
    assert count == 0
    np.testing.assert_array_equal(result, image)


def test_a_mask_as_large_as_the_picture_is_filled():
    result = tiny("inpaint")(photo(H, W), np.ones((H, W), bool), tile=64, progress=False)
    assert result.shape == (H, W, 3) and result.std() > 1


@pytest.mark.parametrize("tensors", [False, True])
def test_a_hole_larger_than_a_tile_is_filled_in_from_the_whole_photo(tensors):
    image, masked = photo(200, 220), np.zeros((200, 220), bool)
    masked[10:180, 20:210] = True
    pipe = oracle(zero, 1, mask=True, kappa=1e-4, filled=True)
    given = tensor_of(image) if tensors else image
    result = pipe(given, masked, tile=64, overlap=16, progress=False)
    result = result[0].permute(1, 2, 0).numpy() * 255 if tensors else result.astype(np.float32)
    whole = fill_photo(tensor_of(image)[0], torch.from_numpy(masked)).permute(1, 2, 0).numpy() * 255
    np.testing.assert_allclose(result, whole, atol=0.6)
    assert result[60:120, 70:150].std() > 1  # a tile of unknown pixels alone would be flat


def test_pictures_of_unequal_sizes_with_their_masks_equal_one_by_one():
    pipe = tiny("inpaint")
    sizes = ((40, 90), (30, 30), (40, 90))
    pictures = [photo(*size, seed=i) for i, size in enumerate(sizes)]
    masks = [mask_of(*size, seed=i) for i, size in enumerate(sizes)]
    together = pipe(pictures, masks, tile=64, batch_size=3, progress=False)
    for picture, masked, result in zip(pictures, masks, together, strict=True):
        alone = pipe(picture, masked, tile=64, progress=False)
        np.testing.assert_allclose(result.astype(int), alone, atol=1)
        np.testing.assert_array_equal(result[~masked], picture[~masked])


def mask_kinds(folder):
    gray = MASK.astype(np.uint8) * 255
    path = folder / "mask.png"
    Image.fromarray(gray).save(path)
    return {
        "str": str(path),
        "path": path,
        "pil-L": Image.fromarray(gray),
        "pil-1": Image.fromarray(gray).convert("1"),
        "pil-RGB": Image.fromarray(gray).convert("RGB"),
        "Photo": images.read(path),
        "bool": MASK,
        "uint8-of-0-and-200": MASK.astype(np.uint8) * 200,
        "uint16": MASK.astype(np.uint16) * 65535,
        "float": MASK.astype(np.float32),
        "HW1": gray[..., None],
        "tensor": torch.from_numpy(MASK),
        "list": [MASK],
    }


def test_every_kind_of_mask_gives_the_same(tmp_path):
    image = photo(H, W)
    expected = POINTWISE(image, MASK, progress=False)
    for kind, mask in mask_kinds(tmp_path).items():
        np.testing.assert_array_equal(POINTWISE(image, mask, progress=False), expected, err_msg=kind)


@pytest.mark.parametrize("stacked", [False, True], ids=["list", "tensor"])
def test_a_batch_of_tensors_takes_its_masks(stacked):
    batch = tensor(2, 3, H, W)
    masks = [MASK, mask_of(H, W, 1)]
    given = torch.from_numpy(np.stack(masks))[:, None].float() if stacked else masks
    results = POINTWISE(batch, given, progress=False)
    for result, image, masked in zip(results, batch, masks, strict=True):
        known = torch.from_numpy(~masked)
        assert torch.equal(result[:, known], image[:, known])
        assert (result[:, ~known] != image[:, ~known]).float().mean() > 0.9


REFUSED = {
    "missing": (None, ValueError, "oracle-x1 is an inpainting model and needs a mask"),
    "wrong size": (np.zeros((W, H), bool), ValueError, "mask is 40×90, but array is 90×40; make them the same size"),
    "too many": ([MASK, MASK], ValueError, "2 masks for 1 images; give one for each"),
    "too few": ([], ValueError, "0 masks for 1 images"),
    "int64": (np.zeros((H, W), np.int64), TypeError, "bool, uint8, uint16 or floating point, got int64"),
    "number": (3, TypeError, "expected a path, image or array, got int"),
    "NaN": (np.full((H, W), np.nan), ValueError, "NaN"),
    "batch": (np.zeros((1, 1, H, W), bool), ValueError, r"\[H, W\] or \[H, W, C\]"),
    "missing file": ("no-such-mask.png", FileNotFoundError, "no-such-mask.png"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_masks_that_do_not_fit_are_refused_in_one_line(case):
    mask, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as raised:
        POINTWISE(photo(H, W), mask, progress=False)
    assert "\n" not in str(raised.value)


def test_a_mask_of_the_wrong_size_names_the_file(tmp_path):
    path = tmp_path / "beach.png"
    Image.fromarray(photo(H, W)).save(path)
    with pytest.raises(ValueError, match=r"the mask is 90×41, but \S*beach.png is 90×40"):
        POINTWISE(path, np.zeros((H + 1, W), bool), progress=False)


def test_a_model_without_a_mask_takes_no_mask():
    with pytest.raises(ValueError, match="oracle-x4 takes no mask; leave it out"):
        oracle(tile_statistics)(photo(8, 8), np.zeros((8, 8), bool), progress=False)
