"""Every kind of image is restored to the same kind; an invalid one raises a one-line error."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from pipelines import integers, tensor_of, visible

from resshift_fast import images
from resshift_fast.images import Photo
from resshift_fast.images.sources import sources_of

H, W = 5, 7


def restore(image, scale=1, change=lambda pixels: pixels, mask=None, layout=None):
    """Read `image` by its sources, repeat every pixel `scale` times, apply `change`, and write it in two bands."""
    sources, gather = sources_of(image, layout)
    for source in sources:
        source.begin(scale)
        pixels = source.crop(np.arange(source.height), np.arange(source.width)).numpy()
        assert pixels.dtype == np.float32 and pixels.shape == (3, source.height, source.width)
        assert pixels.min() >= -1 and pixels.max() <= 1
        whole = change(pixels.repeat(scale, axis=1).repeat(scale, axis=2))
        cut = whole.shape[1] // 2
        source.write(0, whole[:, :cut], mask)
        source.write(cut, whole[:, cut:], mask)
    return gather([source.result() for source in sources])


def tensor(*shape, dtype=torch.float32):
    """Multiples of 1/256, which every dtype holds; in float64 with more digits than float32 holds."""
    steps = torch.randint(0, 257, shape, generator=torch.Generator().manual_seed(0))
    if shape[-3] == 4:
        steps[..., 3, :, :].clamp_(min=64)  # all pixels are visible
    return (steps / 256).to(dtype) * (1 - 2**-40)


def pil(mode):
    channels = len(Image.new(mode, (1, 1)).getbands())
    if mode == "I;16":
        return Image.fromarray(integers(H, W, bits=16))
    pixels = integers(H, W) if channels == 1 else integers(H, W, channels)
    return Image.fromarray(visible(pixels) if mode in ("LA", "RGBA") else pixels, mode)


def gray_photo(bits=8, **fields):
    return Photo(np.repeat(integers(H, W, 1, bits=bits), 3, axis=2), gray=True, **fields)


DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
KINDS = {
    "array-HW3": lambda: integers(H, W, 3),
    "array-HW3-16bit": lambda: integers(H, W, 3, bits=16),
    "array-HW": lambda: integers(H, W),
    "array-HW1-16bit": lambda: integers(H, W, 1, bits=16),
    "array-HW4": lambda: visible(integers(H, W, 4)),
    "array-HW4-16bit": lambda: visible(integers(H, W, 4, bits=16)),
    "array-1x1": lambda: integers(1, 1, 3),
    "array-strided": lambda: integers(2 * H, W, 4)[::-2, ::-1, :3],
    "array-float": lambda: tensor(H, 3, W).numpy().transpose(0, 2, 1),
    "array-float-HW4": lambda: tensor(4, H, W, dtype=torch.float64).permute(1, 2, 0).numpy(),
    "array-float-big-endian": lambda: tensor(1, H, W)[0].numpy().astype(">f4"),
    "array-read-only": lambda: np.broadcast_to(integers(H, 1, 3), (H, W, 3)),
    "photo": lambda: Photo(integers(H, W, 3), name="seaside"),
    "photo-16bit-alpha": lambda: Photo(integers(H, W, 3, bits=16), visible(integers(H, W, 1, bits=16))[..., 0]),
    "photo-gray": gray_photo,
    "pil-L": lambda: pil("L"),
    "pil-LA": lambda: pil("LA"),
    "pil-RGB": lambda: pil("RGB"),
    "pil-RGBA": lambda: pil("RGBA"),
    "pil-I16": lambda: pil("I;16"),
    "tensor-uint8": lambda: torch.from_numpy(integers(2, 3, H, W)),
    "tensor-uint8-gray": lambda: torch.from_numpy(integers(1, H, W)),
    "tensor-uint16-alpha": lambda: torch.from_numpy(visible(integers(H, W, 4, bits=16))).permute(2, 0, 1),
    "tensor-CHW": lambda: tensor(3, H, W),
    "tensor-strided": lambda: tensor(2, W, H, 3).permute(0, 3, 2, 1),
    "tensor-expanded": lambda: tensor(1, 3, 1, W).expand(2, 3, H, W),
    "tensor-with-gradient": lambda: tensor(1, 3, H, W).requires_grad_(),
} | {
    f"tensor-B{B}-C{C}-{str(dtype)[6:]}": lambda B=B, C=C, dtype=dtype: tensor(B, C, H, W, dtype=dtype)
    for B, C in ((1, 3), (2, 3), (2, 1), (1, 4))
    for dtype in DTYPES
}


def parts(image):
    """What is compared of an image: kind and mode or dtype, and the values as arrays."""
    if isinstance(image, Photo):
        alpha = np.zeros(0) if image.alpha is None else image.alpha
        return (Photo, image.gray, image.name, image.pixels.dtype, image.alpha is None), image.pixels, alpha
    if isinstance(image, torch.Tensor):
        return (torch.Tensor, image.dtype, image.device), image.detach().double().numpy()
    if isinstance(image, Image.Image):
        values = np.asarray(image)
        if image.mode == "LA":
            return (Image.Image, image.mode), values[..., 0], values[..., 1]
        return (Image.Image, image.mode), values
    return (type(image), image.dtype.newbyteorder("=")), image


def assert_same(ours, expected):
    (kind, *values), (expected_kind, *expected_values) = parts(ours), parts(expected)
    assert kind == expected_kind
    for value, expected_value in zip(values, expected_values, strict=True):
        assert value.shape == expected_value.shape
        # A gray tensor is the luma of three equal channels, up to a rounding.
        np.testing.assert_allclose(value, expected_value, rtol=0, atol=1e-7)


def colours(values, kind):
    """`values` without the fourth channel, if there is one."""
    if kind[0] is torch.Tensor:
        return values[..., :3, :, :]
    return values if values.ndim == 2 else values[..., :3]


@pytest.mark.parametrize("kind", KINDS)
def test_unchanged_pixels_are_returned_as_they_were(kind):
    image, untouched = KINDS[kind](), KINDS[kind]()
    result = restore(image)
    assert_same(result, untouched)
    assert_same(image, untouched)


@pytest.mark.parametrize("kind", KINDS)
def test_every_pixel_of_an_enlarged_image_is_written(kind):
    (ours, values, *_), (expected, before, *_) = parts(restore(KINDS[kind](), 3)), parts(KINDS[kind]())
    assert ours == expected
    rows, columns = (-2, -1) if expected[0] is torch.Tensor else (0, 1)
    large = before.repeat(3, axis=rows).repeat(3, axis=columns)
    assert values.shape == large.shape
    np.testing.assert_allclose(colours(values, ours), colours(large, ours), rtol=0, atol=1e-7)


def test_results_share_no_memory_with_inputs():
    for kind in ("array-HW", "array-HW3", "array-HW4", "photo-16bit-alpha", "tensor-CHW", "tensor-B1-C4-float32"):
        image = KINDS[kind]()
        for ours, theirs in zip(parts(restore(image))[1:], parts(image)[1:], strict=True):
            assert not np.shares_memory(ours, theirs), kind


@pytest.mark.parametrize("bits", [8, 16])
def test_alpha_is_enlarged_and_kept(bits):
    top = 2**bits - 1
    image = integers(12, 12, 4, bits=bits)
    image[..., 3] = np.where(np.arange(12) < 6, 0, top)[None]
    result = restore(image, 4)
    assert result.shape == (48, 48, 4) and result.dtype == image.dtype
    np.testing.assert_array_equal(result[..., 3], images.resize_alpha(image[..., 3], (48, 48)))
    assert (result[:, :14, 3] == 0).all() and (result[:, 34:, 3] == top).all()
    assert 0 < result[24, 24, 3] < top
    tensors = restore(tensor_of(image), 4)
    assert (tensors[:, 3, :, :14] == 0).all() and (tensors[:, 3, :, 34:] == 1).all()


def test_gray_results_are_luma():
    colours = np.array([0.5, -0.2, 0.8], np.float32)[:, None, None]
    expected = (np.array([0.299, 0.587, 0.114]) @ (colours[:, 0, 0] + 1)) / 2
    for kind in ("array-HW", "array-HW1-16bit", "photo-gray", "pil-L", "pil-I16", "tensor-B2-C1-float32"):
        (_, values, *_) = parts(restore(KINDS[kind](), change=lambda pixels: np.broadcast_to(colours, pixels.shape)))
        top = 1 if values.dtype.kind == "f" else np.iinfo(values.dtype).max
        np.testing.assert_allclose(values / top, expected, atol=0.004 if top == 255 else 2e-5)


def test_results_beyond_the_range_are_clamped():
    def stretch(pixels):
        return pixels * 3

    image = np.array([[[0, 127, 255]]], np.uint8)
    np.testing.assert_array_equal(restore(image, change=stretch), [[[0, 126, 255]]])
    np.testing.assert_allclose(restore(tensor_of(image), change=stretch)[0, :, 0, 0], [0, 0.4941, 1], atol=1e-4)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "1x1" not in kind])
def test_pixels_outside_the_mask_stay_bitwise_equal(kind):
    image = KINDS[kind]()
    masked = np.zeros((H, W), bool)
    masked[1:4, 2:6] = True
    noise = np.random.default_rng(0).uniform(-1, 1, (3, H, W)).astype(np.float32)
    (ours, values, *alpha), (_, before, *alpha_before) = parts(restore(image, 1, lambda _: noise, masked)), parts(image)
    place = np.broadcast_to(masked if ours[0] is torch.Tensor or before.ndim == 2 else masked[..., None], before.shape)
    np.testing.assert_array_equal(values[~place], before[~place])
    np.testing.assert_array_equal(alpha, alpha_before)
    changed = colours(values != before, ours)
    assert changed[colours(place, ours)].mean() > 0.9


def saved(folder, image, name="photo.png", **options):
    image.save(folder / name, **options)
    return folder / name


@pytest.mark.parametrize("give", [str, Path], ids=["str", "Path"])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_a_path_gives_a_pil_image_of_the_files_mode(tmp_path, mode, give):
    result = restore(give(saved(tmp_path, pil(mode))))
    assert_same(result, pil(mode))


@pytest.mark.parametrize("give", [bytes, bytearray, memoryview, io.BytesIO, "at its end", "a file"], ids=str)
def test_bytes_and_open_files_are_read_as_files(tmp_path, give):
    """Also 16-bit PNG and TIFF, for which the reader needs all bytes."""
    for name, mode in (("a.png", "RGBA"), ("b.tif", "I;16"), ("c.webp", "RGB")):
        path = saved(tmp_path, pil(mode), name, **({"lossless": True} if mode == "RGB" else {}))
        data = path.read_bytes()
        if give == "at its end":
            given = io.BytesIO()
            given.write(data)
        else:
            given = path.open("rb") if give == "a file" else give(data)
        assert_same(restore(given), restore(path))
        if give == "a file":
            given.close()


LAYOUTS = ("BCHW", "BHWC", "CHW", "HWC", "HW")


@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_names_the_axes(layout, kind):
    """Arrays and tensors alike; a batch of three pictures with alpha, or one picture, or gray."""
    sides = {"B": 3, "C": 4, "H": H, "W": W}
    shape = [sides[axis] for axis in layout]
    if kind.startswith("uint"):
        array = integers(*shape, bits=int(kind[4:]))
        if "C" in layout:  # every pixel is visible
            np.moveaxis(array, layout.index("C"), 0)[3] |= 64 << (8 if kind == "uint16" else 0)
    else:
        array = (integers(*shape) / 256).astype(kind)
        if "C" in layout:
            np.moveaxis(array, layout.index("C"), 0)[3] = 0.5
    rows, columns = layout.index("H"), layout.index("W")
    for image, as_array in ((array, np.asarray), (torch.from_numpy(array), lambda tensor: tensor.numpy())):
        result = restore(image, 2, layout=layout)
        assert type(result) is type(image) and result.dtype == image.dtype
        large = array.repeat(2, rows).repeat(2, columns)
        assert as_array(result).shape == large.shape and as_array(result).flags.c_contiguous
        colour = (slice(None),) * layout.find("C") + (slice(3),) if "C" in layout else ...
        np.testing.assert_allclose(as_array(result)[colour], large[colour], rtol=0, atol=1e-6)


def test_a_layout_that_does_not_fit():
    with pytest.raises(ValueError, match="layout is 'NHWC', expected None or one of BCHW, BHWC, CHW, HWC, HW"):
        sources_of(integers(H, W), "NHWC")
    with pytest.raises(ValueError, match=r"must be \[H, W\], got \[5, 7, 3\]; if that is HWC, give layout='HWC'"):
        sources_of(integers(H, W, 3), "HW")
    sources, _ = sources_of(integers(2, H, W, 3), "BHWC")
    assert [source.name for source in sources] == ["array[0]", "array[1]"]


CONVERTED = {"1": "L", "PA": "RGBA", "I": "I;16"} | dict.fromkeys(("P", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"), "RGB")


@pytest.mark.parametrize("mode", CONVERTED)
def test_other_pil_modes_become_the_nearest_supported_one(mode):
    image = pil("I;16").convert("I") if mode == "I" else (pil("L") if mode in ("1", "PA") else pil("RGB")).convert(mode)
    result = restore(image, 2)
    assert result.mode == CONVERTED[mode]
    assert result.size == (2 * W, 2 * H)


def test_16_bit_colour_files_are_restored_in_16_bits_and_given_in_8(tmp_path):
    pixels = integers(H, W, 3, bits=16)
    images.write(tmp_path / "deep.png", Photo(pixels))
    result = restore(tmp_path / "deep.png")
    assert result.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(result), np.rint(pixels / 257))
    np.testing.assert_array_equal(restore(images.read(tmp_path / "deep.png")).pixels, pixels)


def test_profile_and_exif_stay_and_the_orientation_is_applied(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    path = saved(tmp_path, pil("RGB"), exif=exif, icc_profile=profile)
    for image in (path, Image.open(path)):
        result = restore(image, 2)
        assert result.size == (2 * H, 2 * W)
        np.testing.assert_array_equal(np.asarray(result)[::2, ::2], np.rot90(np.asarray(pil("RGB")), -1))
        assert result.info["icc_profile"] == profile
        kept = Image.Exif()
        kept.load(result.info["exif"])
        assert (kept[0x010F], kept[0x0112]) == ("Maker", 1)


def test_lists_and_tuples_keep_their_nesting_and_order():
    small, large = integers(2, 3, 3), integers(9, 4, 3, seed=1)
    batch = tensor(3, 3, H, W)
    result = restore([small, (batch, [large]), [], pil("L")])
    assert [type(part) for part in result] == [np.ndarray, tuple, list, Image.Image]
    assert_same(result[0], small)
    assert_same(result[1][0], batch)
    assert_same(result[1][1][0], large)
    assert result[2] == []
    assert_same(result[3], pil("L"))


REFUSED = {
    "int-array": (lambda: np.zeros((H, W, 3), np.int64), TypeError, r"or floating point in \[0, 1\], got int64"),
    "uint32-array": (lambda: np.zeros((H, W, 3), np.uint32), TypeError, r"got uint32"),
    "long-array": (lambda: np.zeros((H, W, 3), np.longdouble), TypeError, r"got float128"),
    "bool-array": (lambda: np.zeros((H, W), bool), TypeError, "uint8, uint16, or floating point .*, got bool"),
    "array-of-255": (
        lambda: integers(H, W, 3).astype(np.float32),
        ValueError,
        r"the array's values .*, 255\], expected",
    ),
    "nan-array": (lambda: np.full((H, W, 3), np.nan), ValueError, "the array has NaN"),
    "planar-array": (
        lambda: integers(3, H, W),
        ValueError,
        r"\[H, W, C\] or .* with C .*got \[3, 5, 7\]; .*layout='CHW'",
    ),
    "two-channel-array": (lambda: integers(H, W, 2), ValueError, r"got \[5, 7, 2\]"),
    "batch-of-arrays": (lambda: integers(2, H, W, 3), ValueError, r"got \[2, 5, 7, 3\]; .* layout='BHWC'"),
    "row-array": (lambda: integers(3), ValueError, r"got \[3\]"),
    "empty-array": (lambda: integers(0, W, 3), ValueError, r"got \[0, 7, 3\]"),
    "integer-tensor": (lambda: torch.zeros(3, H, W, dtype=torch.int64), TypeError, r"int64; use x.float\(\) / 255"),
    "complex-tensor": (lambda: torch.zeros(3, H, W, dtype=torch.complex64), TypeError, "floating point"),
    "flat-tensor": (lambda: torch.zeros(H, W), ValueError, r"\[B, C, H, W\] or \[C, H, W\] .*, got \[5, 7\]"),
    "video-tensor": (lambda: torch.zeros(1, 1, 3, H, W), ValueError, r"got \[1, 1, 3, 5, 7\]"),
    "channels-last-tensor": (lambda: torch.zeros(1, H, W, 3), ValueError, r"got \[1, 5, 7, 3\]; .* layout='BHWC'"),
    "empty-tensor": (lambda: torch.zeros(0, 3, H, W), ValueError, r"got \[0, 3, 5, 7\]"),
    "nan-tensor": (lambda: torch.tensor(float("nan")).expand(3, H, W), ValueError, r"NaN .* \[0, 1\]"),
    "infinite-tensor": (lambda: torch.tensor(float("inf")).expand(3, H, W), ValueError, "infinite"),
    "negative-tensor": (lambda: tensor(3, H, W) * 2 - 1, ValueError, r"in \[-\S+, 1\], expected \[0, 1\]; scale"),
    "tensor-of-255": (lambda: tensor(1, 3, H, W) * 255, ValueError, r", 255\], expected \[0, 1\]"),
    "float-pil": (lambda: Image.new("F", (W, H)), ValueError, "float"),
    "no-bytes": (lambda: b"", ValueError, r"image is empty \(0 bytes\)"),
    "bytes-of-text": (lambda: bytearray(b"hello, world"), ValueError, "image is a text file"),
    "open-as-text": (lambda: io.StringIO("hello"), TypeError, "open as text; open it with mode 'rb'"),
    "missing-file": (lambda: "no-such-photo.png", FileNotFoundError, "no-such-photo.png"),
    "number": (lambda: 3, TypeError, "cannot restore a int; give a path, the bytes .* or a list of these"),
    "nothing": (lambda: None, TypeError, "cannot restore a NoneType"),
    "bad-one-in-a-list": (lambda: [integers(H, W), [torch.zeros(3)]], ValueError, r"got \[3\]"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_images_raise_a_one_line_error(case):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message) as raised:
        sources_of(make())
    assert "\n" not in str(raised.value)
