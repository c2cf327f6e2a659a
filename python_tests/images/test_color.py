"""Colour spaces marked in other ways than by a profile, and photos whose profile a format cannot keep."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from resshift_fast.images import Photo, from_pil, read, write
from resshift_fast.images.color import _ADOBE_RGB, make_profile, profile_space
from resshift_fast.images.png import with_chunks

RAMP = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
SRGB_PRIMARIES = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)


def colors():
    values = np.random.default_rng(0).integers(30, 226, (4, 64, 3)).astype(np.uint8)
    values[0, :3] = np.eye(3) * 200 + 20
    return values


def srgb_of(pixels, icc_profile, mode="RGB"):
    """Converted by Little CMS, as every viewer does."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile)) if icc_profile else ImageCms.createProfile("sRGB")
    image, srgb = Image.fromarray(pixels, mode), ImageCms.createProfile("sRGB")
    flags = ImageCms.Flags.NOOPTIMIZE
    return np.asarray(ImageCms.profileToProfile(image, source, srgb, outputMode="RGB", flags=flags))


def srgb_encoded(light):
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055) * 255


def xyz_matrix(points):
    """RGB to XYZ under the space's own white, from the definition of primaries."""
    xy = np.reshape(points, (4, 2))
    xyz = np.column_stack([xy, 1 - xy.sum(1)]) / xy[:, 1:]
    return xyz[1:].T * np.linalg.solve(xyz[1:].T, xyz[0])


def expected_srgb(pixels, points, decode):
    """The formula for a space of white D65, which needs no adaptation: decode, matrix, encode."""
    light = decode(pixels / 255) @ (np.linalg.inv(xyz_matrix(SRGB_PRIMARIES)) @ xyz_matrix(points)).T
    return srgb_encoded(light.clip(0, 1))


def srgb_decoded(v):
    return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def png(tmp_path, pixels, chunks, name="a.png"):
    Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / name).write_bytes(with_chunks((tmp_path / name).read_bytes(), chunks))
    return tmp_path / name


def gama(gamma):
    return b"gAMA", struct.pack(">I", round(gamma * 1e5))


def chrm(points):
    return b"cHRM", struct.pack(">8I", *(round(p * 1e5) for p in points))


SPACES = {  # chunks, primaries, decoding
    "gAMA 1": ([gama(1)], SRGB_PRIMARIES, lambda v: v),
    "gAMA 1/1.8": ([gama(1 / 1.8)], SRGB_PRIMARIES, lambda v: v**1.8),
    "cHRM and gAMA 1/2.2": ([gama(0.45455), chrm(_ADOBE_RGB)], _ADOBE_RGB, srgb_decoded),
    "cHRM": ([chrm(P3)], P3, srgb_decoded),
    "cICP of Display P3": ([(b"cICP", bytes([12, 13, 0, 1]))], P3, srgb_decoded),
    "cICP of linear sRGB": ([(b"cICP", bytes([1, 8, 0, 1]))], SRGB_PRIMARIES, lambda v: v),
    "cICP before gAMA": ([(b"cICP", bytes([1, 4, 0, 1])), gama(1)], SRGB_PRIMARIES, lambda v: v**2.2),
}


@pytest.mark.parametrize("space", SPACES)
def test_marks_of_png_become_profiles_with_the_right_colours(tmp_path, space):
    chunks, points, decode = SPACES[space]
    pixels = colors()
    photo = read(png(tmp_path, pixels, chunks))
    np.testing.assert_array_equal(photo.pixels, pixels)
    expected = expected_srgb(pixels, points, decode)
    inside = (expected > 2) & (expected < 253)  # what is out of sRGB is clipped in another way
    rows = inside.all(axis=2)
    assert rows.mean() > 0.4
    assert np.abs(srgb_of(pixels, photo.icc_profile) - expected)[rows].max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_the_made_profile_is_kept_by_every_format(tmp_path, suffix):
    photo = read(png(tmp_path, colors(), [gama(1)]))
    write(tmp_path / f"b{suffix}", photo)
    assert read(tmp_path / f"b{suffix}").icc_profile == photo.icc_profile is not None


def test_bmp_gets_the_converted_colours(tmp_path):
    pixels = colors()
    photo = read(png(tmp_path, pixels, [gama(1)]))
    write(tmp_path / "b.bmp", photo)
    assert np.abs(read(tmp_path / "b.bmp").pixels - srgb_encoded(pixels / 255.0)).max() <= 3


SRGB_MARKS = {
    "gAMA": [gama(0.45455)],
    "both": [gama(0.45455), chrm(SRGB_PRIMARIES)],
    "sRGB": [(b"sRGB", b"\0"), gama(1)],
    "cICP": [(b"cICP", bytes([1, 13, 0, 1])), gama(1)],
    "zero gAMA": [gama(0)],
    "impossible cHRM": [chrm((0.3, 0, 0.3, 0, 0.3, 0, 0.3, 0))],
    "unspecified cICP": [(b"cICP", bytes([2, 2, 0, 1]))],
}


@pytest.mark.parametrize("marks", SRGB_MARKS)
def test_marks_of_srgb_and_nonsense_give_no_profile(tmp_path, marks):
    assert read(png(tmp_path, colors(), SRGB_MARKS[marks])).icc_profile is None


@pytest.mark.parametrize("cicp", [(9, 16, 0, 1), (9, 18, 0, 1), (12, 13, 0, 0), (99, 13, 0, 1)])
def test_a_colour_space_without_profile_is_warned_of(tmp_path, cicp):
    path = png(tmp_path, colors(), [(b"cICP", bytes(cicp))])
    with pytest.warns(UserWarning, match=r"a\.png: its colour space by cICP, .* convert it to sRGB first"):
        read(path)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
def test_gray_with_gamma_keeps_its_tones_in_every_format(tmp_path, alpha, bits):
    plane = RAMP if bits == 8 else RAMP.astype(np.uint16) * 257
    photo = Photo(np.repeat(plane[..., None], 3, axis=2), np.full_like(plane, 9) if alpha else None, gray=True)
    write(tmp_path / "a.png", photo)
    (tmp_path / "a.png").write_bytes(with_chunks((tmp_path / "a.png").read_bytes(), [gama(1)]))
    photo = read(tmp_path / "a.png")
    assert photo.gray and profile_space(photo.icc_profile) == b"GRAY"
    expected = srgb_encoded(RAMP / 255.0)
    suffixes = [".png", ".tif"] + [".webp"] * (bits == 8) + [".jpg", ".bmp"] * (bits == 8 and not alpha)
    for suffix in suffixes:
        write(tmp_path / f"b{suffix}", photo, quality=100)
        back = read(tmp_path / f"b{suffix}")
        gray = (back.pixels[..., 0] >> (bits - 8)).astype(np.uint8)
        shown = srgb_of(gray, back.icc_profile, "L") if back.icc_profile else back.pixels
        assert np.abs(shown[..., 0] - expected).max() <= (4 if suffix == ".jpg" else 2), suffix
        assert (back.alpha is not None) == alpha


def test_gray_with_a_profile_of_colours_is_converted_for_bmp(tmp_path):
    profile = make_profile("linear", SRGB_PRIMARIES, 1.0, False)
    write(tmp_path / "a.bmp", Photo(np.repeat(RAMP[..., None], 3, axis=2), gray=True, icc_profile=profile))
    back = read(tmp_path / "a.bmp")
    assert back.gray and np.abs(back.pixels[..., 0] - srgb_encoded(RAMP / 255.0)).max() <= 2


def test_a_damaged_gray_profile_is_left_out_with_a_word(tmp_path):
    photo = Photo(np.repeat(RAMP[..., None], 3, axis=2), gray=True, icc_profile=bytes(16) + b"GRAY" + bytes(200))
    with pytest.warns(UserWarning, match="profile is damaged and was left out"):
        write(tmp_path / "a.webp", photo)


def with_interop(index, space=0xFFFF):
    """EXIF by hand: the first directory, the Exif directory, and that of interoperability."""

    def directory(entries):
        body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
        return struct.pack("<H", len(entries)) + body + bytes(4)

    def long(value):
        return struct.pack("<I", value)

    first, second = 8 + 2 + 12 + 4, 8 + 18 + 2 + 24 + 4
    data = b"II*\0" + long(8) + directory([(0x8769, 4, 1, long(first))])
    data += directory([(0xA001, 3, 1, long(space)), (0xA005, 4, 1, long(second))])
    return b"Exif\0\0" + data + directory([(1, 2, 4, index.encode() + b"\0")])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_adobe_rgb_by_exif_gets_its_profile(tmp_path, suffix):
    pixels = colors()
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", exif=with_interop("R03"), **options)
    photo = read(tmp_path / f"a{suffix}")
    expected = expected_srgb(pixels, _ADOBE_RGB, lambda v: v ** (563 / 256))
    inside = ((expected > 2) & (expected < 253)).all(axis=2)
    assert np.abs(srgb_of(pixels, photo.icc_profile) - expected)[inside].max() <= 3
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert from_pil(image).icc_profile == photo.icc_profile


def test_other_exif_gives_no_profile(tmp_path):
    for index, space, expected in (("R98", 0xFFFF, False), ("R98", 1, False), ("THM", 2, True)):
        exif = with_interop(index, space)
        Image.fromarray(colors()).save(tmp_path / "a.jpg", exif=exif)
        assert (read(tmp_path / "a.jpg").icc_profile is not None) == expected
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(colors()).save(tmp_path / "a.jpg", exif=with_interop("R03"), icc_profile=srgb)
    assert read(tmp_path / "a.jpg").icc_profile == srgb


def test_the_profile_in_a_bmp_is_read(tmp_path):
    profile, pixels = make_profile("linear", SRGB_PRIMARIES, 1.0, False), colors()
    height, width = pixels.shape[:2]
    rows = pixels[::-1, :, ::-1].tobytes()  # 192 bytes a row, a multiple of 4
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 24, 0, len(rows), 0, 0, 0, 0).ljust(56, b"\0")
    header = (header + b"DEBM").ljust(112, b"\0") + struct.pack("<III", 124 + len(rows), len(profile), 0)
    size = 14 + 124 + len(rows)
    (tmp_path / "a.bmp").write_bytes(b"BM" + struct.pack("<IHHI", size, 0, 0, 138) + header + rows + profile)
    photo = read(tmp_path / "a.bmp")
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert photo.icc_profile == profile
