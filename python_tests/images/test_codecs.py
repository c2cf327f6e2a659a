"""Files of every kind that cameras, scanners and programs write, many assembled here byte by byte."""

import io
import struct
import zlib

import numpy as np
import pytest
from pairwise import pairwise
from PIL import ExifTags, Image
from sample_photos import camera_exif, cmyk_profile, stored_for

from resshift_fast.images import read

HEIGHT, WIDTH = 9, 14


def noise(*shape, bits=8, seed=0):
    dtype = np.uint8 if bits == 8 else np.uint16
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(dtype)


def png_bytes(planes, color_type, depth, chunks=()):
    """A PNG assembled byte by byte, for kinds that no installed library writes."""
    height, width = planes.shape[:2]
    rows = planes.astype(">u2" if depth == 16 else "u1")
    packed = [np.packbits(np.unpackbits(row.reshape(-1, 1), axis=1)[:, -depth:]) if depth < 8 else row for row in rows]
    raw = b"".join(b"\0" + row.tobytes() for row in packed)
    header = struct.pack(">IIBBBBB", width, height, depth, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )


def tiff_bytes(planes, photometric, extra=(), sample_format=1, more=()):
    """An uncompressed TIFF with any tags."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    planes = planes.reshape(*planes.shape[:2], -1)
    height, width, channels = planes.shape
    tags = ImageFileDirectory_v2(prefix=b"II")
    tags[256], tags[257], tags[258], tags[259] = width, height, (planes.itemsize * 8,) * channels, 1
    tags[262], tags[273], tags[277], tags[278] = photometric, 0, channels, height
    tags[279], tags[339] = planes.nbytes, (sample_format,) * channels
    if extra:
        tags[338] = extra
    for tag, value in more:
        tags[tag] = value
    file = io.BytesIO()
    tags.save(file)
    return file.getvalue() + planes.tobytes()


@pairwise(kind=["png", "tiff"], channels={"gray": 1, "rgb": 3, "rgba": 4}, orientation=range(1, 9))
def test_orientation_is_applied_to_16_bits(tmp_path, orientation, channels, kind):
    upright = noise(5, 7, channels, bits=16)
    planes = [np.asarray(stored_for(orientation, plane.astype(np.int32))) for plane in np.moveaxis(upright, 2, 0)]
    stored = np.stack(planes, 2).astype(np.uint16)
    path = tmp_path / f"turned.{kind}"
    if kind == "png":
        exif = camera_exif(orientation).tobytes()[6:]
        path.write_bytes(png_bytes(stored, {1: 0, 3: 2, 4: 6}[channels], 16, [(b"eXIf", exif)]))
    else:
        extra = (2,) if channels == 4 else ()
        path.write_bytes(
            tiff_bytes(stored, 1 if channels == 1 else 2, extra, more=[(274, orientation), (271, "Maker")])
        )
    photo = read(path)
    np.testing.assert_array_equal(photo.pixels, np.broadcast_to(upright[..., :3], (5, 7, 3)))
    if channels == 4:
        np.testing.assert_array_equal(photo.alpha, upright[..., 3])
    exif = Image.Exif()
    exif.load(photo.exif)
    assert (exif[0x0112], exif[0x010F]) == (1, "Maker")


def test_exif_is_kept_without_sizes_and_thumbnail(tmp_path):
    exif = camera_exif()
    exif[0x0100] = 4000
    directory = exif.tobytes()
    # The end of the first directory links to that of the thumbnail.
    link = 6 + 8 + 2 + 12 * struct.unpack(">H", directory[14:16])[0]
    thumbnail = struct.pack(">HHHII", 1, 0x0103, 3, 1, 6 << 16) + b"\0\0\0\0"
    with_thumbnail = directory[:link] + struct.pack(">I", len(directory) - 6) + directory[link + 4 :] + thumbnail
    loaded = Image.Exif()
    loaded.load(with_thumbnail)
    assert loaded.get_ifd(ExifTags.IFD.IFD1) == {0x0103: 6}
    Image.fromarray(noise(4, 4, 3)).save(tmp_path / "a.jpg", exif=with_thumbnail)
    kept = Image.Exif()
    kept.load(read(tmp_path / "a.jpg").exif)
    assert kept.get_ifd(ExifTags.IFD.IFD1) == {}
    assert 0x0100 not in kept
    assert set(kept.get_ifd(0x8769)) == {0x9003, 0x829A}


@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged data
def test_an_image_with_damaged_exif_is_read(tmp_path):
    pixels = noise(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff garbage")
    photo = read(tmp_path / "a.png")
    np.testing.assert_array_equal(photo.pixels, pixels)


@pytest.mark.parametrize("clear", [2, bytes([255, 7, 0])], ids=["one-entry", "table"])
def test_palette_with_transparency(tmp_path, clear):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "L")
    image = Image.frombytes("P", (3, 1), image.tobytes())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "p.png", transparency=clear)
    photo = read(tmp_path / "p.png")
    assert photo.pixels.tolist() == [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    assert photo.alpha.tolist() == [[255, 255, 0] if clear == 2 else [255, 7, 0]]


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif"])
def test_palette_without_transparency(tmp_path, suffix):
    image = Image.fromarray(noise(HEIGHT, WIDTH, 3)).convert("P", palette=Image.Palette.ADAPTIVE)
    image.save(tmp_path / f"p{suffix}")
    photo = read(tmp_path / f"p{suffix}")
    np.testing.assert_array_equal(photo.pixels, np.asarray(image.convert("RGB")))
    assert photo.alpha is None
    assert not photo.gray


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_gray_png_with_one_clear_value(tmp_path, depth):
    top = 2**depth - 1
    values = np.array([[0, 1, top // 2, top]])
    (tmp_path / "g.png").write_bytes(png_bytes(values, 0, depth, [(b"tRNS", struct.pack(">H", 1))]))
    photo = read(tmp_path / "g.png")
    white = 65535 if depth == 16 else 255
    assert photo.gray
    np.testing.assert_array_equal(photo.alpha, np.where(values == 1, 0, white))
    np.testing.assert_array_equal(photo.pixels[..., 0], values * white // top)


@pytest.mark.parametrize("depth", [8, 16])
def test_rgb_png_with_one_clear_color(tmp_path, depth):
    pixels = noise(HEIGHT, WIDTH, 3, bits=depth)
    clear = struct.pack(">3H", *map(int, pixels[3, 5]))
    (tmp_path / "c.png").write_bytes(png_bytes(pixels, 2, depth, [(b"tRNS", clear)]))
    photo = read(tmp_path / "c.png")
    np.testing.assert_array_equal(photo.pixels, pixels)
    assert photo.alpha[3, 5] == 0
    assert (photo.alpha == 2**depth - 1).sum() == HEIGHT * WIDTH - 1


def test_16_bit_gray_png_with_alpha_is_gray(tmp_path):
    planes = noise(HEIGHT, WIDTH, 2, bits=16)
    (tmp_path / "la.png").write_bytes(png_bytes(planes, 4, 16))
    photo = read(tmp_path / "la.png")
    assert photo.gray
    np.testing.assert_array_equal(photo.pixels, np.repeat(planes[..., :1], 3, axis=2))
    np.testing.assert_array_equal(photo.alpha, planes[..., 1])


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_with_white_at_zero(tmp_path, bits):
    plane = noise(HEIGHT, WIDTH, bits=bits)
    (tmp_path / "w.tif").write_bytes(tiff_bytes(plane, 0))
    np.testing.assert_array_equal(read(tmp_path / "w.tif").pixels[..., 1], 2**bits - 1 - plane)


def test_16_bit_tiff_multiplied_by_alpha(tmp_path):
    straight = noise(HEIGHT, WIDTH, 3, bits=16)
    alpha = noise(HEIGHT, WIDTH, bits=16, seed=1) | 0x4000
    multiplied = np.rint(straight * (alpha[..., None] / 65535)).astype(np.uint16)
    (tmp_path / "m.tif").write_bytes(tiff_bytes(np.dstack([multiplied, alpha]), 2, (1,)))
    photo = read(tmp_path / "m.tif")
    assert np.abs(photo.pixels.astype(int) - straight).max() <= 2  # rounded twice, with alpha of at least a quarter
    np.testing.assert_array_equal(photo.alpha, alpha)


@pytest.mark.parametrize("bits", [8, 16])
def test_tiff_with_a_fourth_channel_that_is_not_alpha(tmp_path, bits):
    planes = noise(HEIGHT, WIDTH, 4, bits=bits)
    (tmp_path / "x.tif").write_bytes(tiff_bytes(planes, 2, (0,)))
    photo = read(tmp_path / "x.tif")
    np.testing.assert_array_equal(photo.pixels, planes[..., :3])
    assert photo.alpha is None


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_converted_by_its_profile_which_is_dropped(tmp_path, suffix):
    cyan = np.zeros((16, 16, 4), np.uint8)
    cyan[..., 0] = 255
    image = Image.fromarray(cyan, "CMYK")
    image.save(tmp_path / f"plain{suffix}")
    image.save(tmp_path / f"profiled{suffix}", icc_profile=cmyk_profile())
    image.save(tmp_path / f"broken{suffix}", icc_profile=b"no profile at all, but long enough to have a header")
    plain, profiled, broken = (read(tmp_path / f"{name}{suffix}") for name in ("plain", "profiled", "broken"))
    assert np.abs(plain.pixels.astype(int) - [0, 255, 255]).max() <= 3
    assert np.ptp(profiled.pixels) <= 3
    assert 100 < profiled.pixels.mean() < 140
    assert (plain.pixels == broken.pixels).all()
    assert (plain.icc_profile, profiled.icc_profile, broken.icc_profile) == (None, None, None)


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_first_of_several_frames(tmp_path, suffix):
    frames = [Image.fromarray(noise(HEIGHT, WIDTH, 3, seed=seed)) for seed in range(3)]
    options = {"lossless": True} if suffix == ".webp" else {}
    frames[0].save(tmp_path / f"f{suffix}", save_all=True, append_images=frames[1:], **options)
    words = "has 3 pages" if suffix == ".tif" else "is an animation of 3 frames"
    with pytest.warns(UserWarning, match=rf"f\{suffix} {words}, of which only the first is read"):
        photo = read(tmp_path / f"f{suffix}")
    np.testing.assert_array_equal(photo.pixels, np.asarray(frames[0]))
