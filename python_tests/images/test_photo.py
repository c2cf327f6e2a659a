"""Photos: round trips through files, floats and PIL images, and one-line errors."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from sample_photos import camera_exif, stored_for

from resshift_fast import images
from resshift_fast.images import (
    ImageError,
    Photo,
    from_float,
    from_pil,
    read,
    suffix_for,
    to_float,
    to_pil,
    write,
)
from resshift_fast.images.codecs import clean_exif
from resshift_fast.images.color import make_profile

SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp")
HEIGHT, WIDTH = 9, 14


def noise(*shape, bits=8, seed=0):
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(dtype)


def srgb_profile():
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def gray_profile():
    return make_profile("gray", (), 2.2, True)


def swapped_profile():
    """sRGB with red and green exchanged, so that a conversion shows."""
    return srgb_profile().replace(b"rXYZ", b"tmp1").replace(b"gXYZ", b"rXYZ").replace(b"tmp1", b"gXYZ")


def photo_of(bits, gray, alpha, **fields):
    pixels = noise(HEIGHT, WIDTH, 3, bits=bits)
    if gray:
        pixels = np.repeat(pixels[..., :1], 3, axis=2)
    plane = noise(HEIGHT, WIDTH, bits=bits, seed=1)
    plane[1:3] = 0  # transparent: the colours there are kept too
    return Photo(pixels, plane if alpha else None, gray, **fields)


def assert_same(ours, expected, suffix=".png"):
    """Fail unless both are equal, up to the losses of JPEG."""
    assert ours.pixels.dtype == expected.pixels.dtype
    if suffix == ".jpg":
        assert np.abs(ours.pixels.astype(int) - expected.pixels).mean() < 6
    else:
        np.testing.assert_array_equal(ours.pixels, expected.pixels)
    assert (ours.alpha is None) == (expected.alpha is None)
    if expected.alpha is not None:
        np.testing.assert_array_equal(ours.alpha, expected.alpha)


ROUND_TRIPS = [
    pytest.param(
        suffix, bits, gray, alpha, id=f"{suffix[1:]}-{bits}bit-{'gray' if gray else 'rgb'}{'-alpha' if alpha else ''}"
    )
    for suffix in SUFFIXES
    for bits in (8, 16)
    for gray in (False, True)
    for alpha in (False, True)
    if suffix in (".png", ".tif") or (bits == 8 and (suffix == ".webp" or not alpha))
]


@pytest.mark.parametrize(("suffix", "bits", "gray", "alpha"), ROUND_TRIPS)
def test_round_trip_keeps_pixels_alpha_gray_and_metadata(tmp_path, suffix, bits, gray, alpha):
    has_gray = gray and suffix != ".webp"
    icc = (None if suffix == ".bmp" else gray_profile()) if has_gray else srgb_profile()
    photo = photo_of(bits, gray, alpha, icc_profile=icc, exif=clean_exif(camera_exif()))
    path = tmp_path / f"ö{suffix}"
    write(path, photo, quality=100)
    back = read(path)
    assert_same(back, photo, suffix)
    assert back.gray == has_gray
    assert back.name == str(path)
    if suffix == ".bmp":
        assert (back.icc_profile, back.exif) == (None, None)
    else:
        assert back.icc_profile == icc
        exif = Image.Exif()
        exif.load(back.exif)
        assert exif[0x010F] == "Maker"
        assert exif.get_ifd(0x8769) == {0x9003: "2020:02:02 20:20:20", 0x829A: 0.01}
        assert exif.get_ifd(0x8825) == {1: "N"}


@pytest.mark.parametrize(("suffix", "bits", "gray", "alpha"), ROUND_TRIPS)
def test_one_pixel(tmp_path, suffix, bits, gray, alpha):
    photo = photo_of(bits, gray, alpha)
    photo = Photo(photo.pixels[:1, :1].copy(), None if photo.alpha is None else photo.alpha[:1, :1].copy(), gray)
    write(tmp_path / f"one{suffix}", photo, quality=100)
    assert_same(read(tmp_path / f"one{suffix}"), photo, suffix)


# OpenCV multiplies 8-bit colours by alpha, so there is no 8-bit RGBA here.
@pytest.mark.parametrize(("bits", "alpha"), [(8, False), (16, False), (16, True)], ids=["rgb8", "rgb16", "rgba16"])
def test_tiff_of_many_strips_is_read_by_opencv(tmp_path, bits, alpha):
    photo = Photo(noise(301, 700, 3, bits=bits), noise(301, 700, bits=bits, seed=1) if alpha else None)
    write(tmp_path / "a.tif", photo)
    theirs = cv2.imread(str(tmp_path / "a.tif"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(theirs[..., 2::-1], photo.pixels)
    assert_same(read(tmp_path / "a.tif"), photo)


@pytest.mark.parametrize("quality", [0, 101])
def test_quality_out_of_range(tmp_path, quality):
    with pytest.raises(ValueError, match="quality must be 1 to 100"):
        write(tmp_path / "a.jpg", photo_of(8, False, False), quality)


def test_write_takes_photos_only(tmp_path):
    with pytest.raises(TypeError, match="expected a Photo, got ndarray"):
        write(tmp_path / "a.png", noise(4, 4, 3))


def test_quality_reaches_the_encoders(tmp_path):
    for suffix in (".jpg", ".webp"):
        sizes = []
        for quality in (20, 95):
            write(tmp_path / f"a{suffix}", photo_of(8, False, False), quality)
            sizes.append((tmp_path / f"a{suffix}").stat().st_size)
        assert sizes[0] < sizes[1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif", ".jpg"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    upright = np.kron(noise(2, 3, 3), np.ones((16, 16, 1), np.uint8))  # blocks that JPEG preserves, without symmetry
    stored = stored_for(orientation, upright)
    path = tmp_path / f"turned{suffix}"
    options = {".webp": {"lossless": True}, ".jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    stored.save(path, exif=camera_exif(orientation), **options)
    photo = read(path)
    assert np.abs(photo.pixels.astype(int) - upright).max() <= (4 if suffix == ".jpg" else 0)
    exif = Image.Exif()
    exif.load(photo.exif)
    assert exif[0x0112] == 1
    with Image.open(path) as image:
        np.testing.assert_array_equal(from_pil(image).pixels, photo.pixels)


def test_exif_too_long_for_jpeg_is_left_out(tmp_path):
    exif = camera_exif()
    exif.get_ifd(0x8769)[0x927C] = b"\1" * 70000
    photo = photo_of(8, False, False, exif=clean_exif(exif))
    write(tmp_path / "a.jpg", photo)
    assert read(tmp_path / "a.jpg").exif is None
    write(tmp_path / "a.png", photo)
    assert len(read(tmp_path / "a.png").exif) > 70000


PIL_MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I"]


@pytest.mark.parametrize("mode", PIL_MODES)
def test_from_pil_takes_every_mode(mode):
    base = Image.fromarray(noise(HEIGHT, WIDTH, 3))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(base, *profiles, outputMode="LAB")
    elif mode in ("RGBa", "La"):
        image = base.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    elif mode in ("I;16", "I"):
        image = Image.fromarray(noise(HEIGHT, WIDTH, bits=16).astype(np.uint16 if mode == "I;16" else np.int32))
    elif mode == "PA":
        image = base.convert("P").convert("PA")
    else:
        image = base.convert(mode)
    assert image.mode == mode
    photo = from_pil(image)
    assert photo.gray == (mode in ("1", "L", "LA", "La", "I;16", "I"))
    assert photo.bits == (16 if mode in ("I;16", "I") else 8)
    assert (photo.alpha is not None) == (mode in ("LA", "La", "PA", "RGBA", "RGBa"))
    if photo.bits == 16:
        np.testing.assert_array_equal(photo.pixels[..., 0], np.asarray(image))
    else:
        straight = image.convert({"La": "LA", "RGBa": "RGBA", "PA": "RGBA"}.get(mode, mode))
        expected = np.asarray(straight.convert("RGB"), int)
        # ImageCms rounds twice when it converts LAB.
        assert np.abs(photo.pixels - expected).max() <= (mode == "LAB")


def test_bmp_gets_srgb_colors(tmp_path):
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    write(tmp_path / "a.bmp", Photo(red, icc_profile=swapped_profile()))
    assert np.abs(read(tmp_path / "a.bmp").pixels.astype(int) - [0, 255, 0]).max() <= 3
    write(tmp_path / "a.png", Photo(red, icc_profile=swapped_profile()))
    assert (read(tmp_path / "a.png").pixels == red).all()


def test_gray_photo_is_written_as_luma(tmp_path):
    photo = Photo(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7]]], np.uint8), gray=True)
    write(tmp_path / "g.png", photo)
    assert read(tmp_path / "g.png").pixels[0, :, 0].tolist() == [76, 150, 29, 7]
    with Image.open(tmp_path / "g.png") as image:
        assert image.mode == "L"


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".JPG", ".gif", ""])
def test_suffix_for_agrees_with_write(tmp_path, suffix, alpha, bits):
    photo = photo_of(bits, False, alpha)
    chosen = suffix_for(photo, suffix)
    write(tmp_path / f"a{chosen}", photo)
    back = read(tmp_path / f"a{chosen}")
    assert (back.bits, back.alpha is not None) == (bits, alpha)
    if chosen != suffix:
        assert chosen == ".png"
        with pytest.raises(ImageError, match=r"a\.png|use one of") as caught:
            write(tmp_path / f"a{suffix}", photo)
        assert not (tmp_path / f"a{suffix}").exists()
        assert "\n" not in str(caught.value)


def test_opaque_alpha_is_written_without_error(tmp_path):
    photo = Photo(noise(4, 4, 3), np.full((4, 4), 255, np.uint8))
    assert suffix_for(photo, ".jpg") == ".jpg"
    write(tmp_path / "a.jpg", photo)


@pytest.mark.parametrize(("suffix", "width"), [(".jpg", 65501), (".webp", 16384)])
def test_side_too_long_for_the_format(tmp_path, suffix, width):
    photo = Photo(np.zeros((1, width, 3), np.uint8))
    assert suffix_for(photo, suffix) == ".png"
    with pytest.raises(ImageError, match=f"holds at most .* pixels a side and this is {width}×1; write it as a.png"):
        write(tmp_path / f"a{suffix}", photo)
    assert suffix_for(Photo(photo.pixels[:, :-1]), suffix) == suffix


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_integer_survives_float(dtype):
    everything = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    values = to_float(everything)
    assert values.dtype == np.float32
    assert (values.min(), values.max()) == (0, 1)
    np.testing.assert_array_equal(from_float(values, dtype), everything)


@given(st.lists(st.floats(width=32), min_size=1), st.sampled_from([np.uint8, np.uint16]))
def test_from_float_rounds_clamps_and_never_wraps(values, dtype):
    values = np.array(values, np.float32)
    top = np.iinfo(dtype).max
    exact = np.clip(np.nan_to_num(values.astype(np.float64), nan=0, posinf=1, neginf=0), 0, 1) * top
    ours = from_float(values, dtype, check=False)
    assert ours.dtype == dtype
    # The nearest integer, except where rounding of the product to float32 crosses a half.
    assert np.abs(ours - exact).max() <= 0.5 + top * 2.0**-24
    if not np.isfinite(values).all():
        with pytest.raises(ValueError, match="NaN or infinite"):
            from_float(values, dtype)


def test_float_conversions_refuse_other_dtypes():
    with pytest.raises(TypeError, match="uint8 or uint16, got int32"):
        to_float(np.zeros(3, np.int32))
    with pytest.raises(TypeError, match="floating point in \\[0, 1\\], got uint8"):
        from_float(np.zeros(3, np.uint8))
    with pytest.raises(TypeError, match="uint8 or uint16, got float32"):
        from_float(np.zeros(3, np.float32), np.float32)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("gray", [False, True], ids=["rgb", "gray"])
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
def test_to_pil_and_back(bits, gray, alpha):
    photo = photo_of(bits, gray, alpha, icc_profile=srgb_profile(), exif=clean_exif(camera_exif()))
    image = to_pil(photo)
    back = from_pil(image)
    assert (back.gray, back.icc_profile, back.exif) == (gray, photo.icc_profile, photo.exif)
    if bits == 16 and not (gray and not alpha):
        assert back.bits == 8
        np.testing.assert_array_equal(back.pixels, np.rint(photo.pixels / 257.0))
    else:
        assert_same(back, photo)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_alpha_rounds_to_nearest(dtype):
    """Against Keys' cubic convolution with a = −1/2, whose weights are normalized where they leave the image."""
    alpha = np.tile(np.array([10, 11, 13, 20], dtype), (4, 1))
    larger = images.resize_alpha(alpha, (4, 12))
    assert larger.dtype == dtype
    columns = (np.arange(12) + 0.5) / 3 - 0.5
    weights = np.array([[_cubic(x - j) for j in range(4)] for x in columns])
    expected = (weights @ alpha[0]) / weights.sum(1)
    assert any(value % 1 > 0.5 for value in expected)
    np.testing.assert_array_equal(larger, np.tile(np.rint(expected), (4, 1)))


def _cubic(x, a=-0.5):
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_resize_alpha_clamps_and_keeps_flat_areas(dtype):
    top = np.iinfo(dtype).max
    alpha = np.zeros((6, 8), dtype)
    alpha[:, 4:] = top
    larger = images.resize_alpha(alpha, (24, 33))
    assert (larger.dtype, larger.shape) == (dtype, (24, 33))
    assert (larger[:, :8] == 0).all()
    assert (larger[:, -8:] == top).all()
    assert (
        (larger[:, 1:] >= larger[:, :-1]) | (larger[:, 1:] == 0) | (larger[:, 1:] > top * 0.9)
    ).all()  # no wrap-around
    assert (images.resize_alpha(np.full((5, 5), top, dtype), (2, 9)) == top).all()
    same = images.resize_alpha(alpha, (6, 8))
    assert (same == alpha).all()
    assert same is not alpha


def test_side_by_side():
    before = Photo(np.full((4, 5, 3), 200, np.uint8), np.zeros((4, 5), np.uint8))
    after = Photo(np.full((16, 20, 3), 100 * 257, np.uint16), icc_profile=b"profile")
    both = images.side_by_side(before, after)
    assert both.pixels.shape == (16, 42, 3)
    assert both.pixels.dtype == np.uint8
    assert (both.pixels[:, :22] == 255).all()  # transparent, then the dividing line
    assert (both.pixels[:, 22:] == 100).all()
    assert both.icc_profile == b"profile"


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"pixels": np.zeros((2, 2, 3), np.float32)}, TypeError, "uint8 or uint16, got float32"),
        ({"pixels": [[1]]}, TypeError, "got list"),
        ({"pixels": np.zeros((2, 2, 4), np.uint8)}, ValueError, r"got \[2, 2, 4\]"),
        ({"pixels": np.zeros((0, 2, 3), np.uint8)}, ValueError, r"at least 1, got \[0, 2, 3\]"),
        (
            {"pixels": np.zeros((2, 2, 3), np.uint8), "alpha": np.zeros((2, 3), np.uint8)},
            ValueError,
            r"got uint8 \[2, 3\]",
        ),
        ({"pixels": np.zeros((2, 2, 3), np.uint8), "alpha": np.zeros((2, 2), np.uint16)}, ValueError, "got uint16"),
    ],
    ids=["float", "list", "rgba", "empty", "alpha-size", "alpha-dtype"],
)
def test_photo_checks_its_arrays(fields, error, message):
    with pytest.raises(error, match=message):
        Photo(**fields)
