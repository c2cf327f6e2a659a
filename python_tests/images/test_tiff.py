"""TIFFs of every layout, compared bit for bit with what tifffile wrote and reads."""

import io
import struct

import numpy as np
import pytest
from pairwise import pairwise
from PIL import Image
from sample_photos import cmyk_profile

from resshift_fast.images import ImageError, Photo, directories, headers, read, write
from resshift_fast.images.directories import read_tags
from resshift_fast.images.photo import in_8_bits

tifffile = pytest.importorskip("tifffile")

H, W = 33, 41
COLORS = {  # samples, photometric, extra samples
    "gray": (1, "minisblack", ()),
    "white-is-zero": (1, "miniswhite", ()),
    "gray-alpha": (2, "minisblack", (2,)),
    "rgb": (3, "rgb", ()),
    "rgba": (4, "rgb", (2,)),
    "rgb-and-another": (4, "rgb", (0,)),
    "rgb-another-alpha": (5, "rgb", (0, 2)),
}
LAYOUTS = {"strip": {}, "strips": {"rowsperstrip": 7}, "tiles": {"tile": (16, 32)}}


def noise(*shape, bits=16, seed=0):
    values = np.random.default_rng(seed).integers(0, 2**bits, shape).astype(np.uint8 if bits == 8 else np.uint16)
    values[5:9] = values[5]  # something to compress
    return values


def save(path, values, photometric, extra=(), planar="contig", **options):
    """Write [H, W, C] with tifffile, contiguous or as separate planes."""
    channels = values.shape[2]
    stored = values[..., 0] if channels == 1 else values if planar == "contig" else np.moveaxis(values, 2, 0)
    planar = {"planarconfig": planar} if channels > 1 else {}
    options = {"metadata": None, "extrasamples": extra or None} | planar | options
    tifffile.imwrite(path, stored, photometric=photometric, **options)


def assert_read(path, values, name):
    channels, _, extra = COLORS[name]
    photo = read(path)
    top = np.iinfo(values.dtype).max
    expected = top - values if name == "white-is-zero" else values
    assert photo.pixels.dtype == values.dtype and photo.gray == (channels < 3)
    pixels = expected[..., :3] if channels > 2 else np.repeat(expected[..., :1], 3, axis=2)
    np.testing.assert_array_equal(photo.pixels, pixels)
    if 2 in extra:
        np.testing.assert_array_equal(photo.alpha, values[..., -1])
    else:
        assert photo.alpha is None


@pairwise(
    bits=[8, 16],
    name=list(COLORS),
    planar=["contig", "separate"],
    compression=[None, "zlib", "lzma"],
    order=["<", ">"],
    layout=list(LAYOUTS),
    predictor=[False, True],
    big=[False, True],
)
def test_every_layout(tmp_path, bits, name, planar, compression, order, layout, predictor, big):
    channels, photometric, extra = COLORS[name]
    values = noise(H, W, channels, bits=bits)
    path = tmp_path / "a.tif"
    predictor = predictor and compression is not None and bits == 8  # tifffile needs a codec library for others
    options = {"compression": compression, "byteorder": order, "bigtiff": big, "predictor": predictor}
    save(path, values, photometric, extra, planar, **options, **LAYOUTS[layout])
    assert_read(path, values, name)


@pairwise(
    bits=[8, 16],
    name=list(COLORS),
    planar=["contig", "separate"],
    order=["<", ">"],
    layout=list(LAYOUTS),
    big=[False, True],
)
def test_the_first_page_of_a_large_file(tmp_path, monkeypatch, bits, name, planar, order, layout, big):
    """It alone is read, wherever it is."""
    channels, photometric, extra = COLORS[name]
    values = noise(H, W, channels, bits=bits)
    path = tmp_path / "a.tif"
    options = {"byteorder": order, "bigtiff": big, "description": "a beach", **LAYOUTS[layout]}
    save(path, values, photometric, extra, planar, **options)
    with tifffile.TiffWriter(path, append=True) as file:
        file.write(np.zeros((1 << 10, 1 << 10), np.uint8))
    monkeypatch.setattr(headers, "_LARGE_FILE", 0)
    with pytest.warns(UserWarning, match="has 2 pages"):
        assert_read(path, values, name)
    with open(path, "rb") as file:
        assert len(directories.first_page(file, "a")) < 1 << 16
    with pytest.warns(UserWarning, match="has 2 pages"):
        exif = read(path).exif
    assert exif and b"a beach" in exif


def compressed_by_pillow(values, codec, predictor, separate):
    """A TIFF of one strip, or one a plane, each compressed by Pillow as a gray picture."""
    height, width, channels = values.shape
    differences = values.copy()
    if predictor:
        differences[:, 1:] -= values[:, :-1]
    planes = [differences[..., i] for i in range(channels)] if separate else [differences.reshape(height, -1)]
    strips = []
    for plane in planes:
        file = io.BytesIO()
        Image.fromarray(plane).save(file, "TIFF", compression=codec, tiffinfo={278: height})
        with Image.open(file) as image:
            (offset,), (size,), code = image.tag_v2[273], image.tag_v2[279], image.tag_v2[259]
        strips.append(file.getvalue()[offset : offset + size])
    tags = {
        256: [width],
        257: [height],
        258: [values.itemsize * 8] * channels,
        259: [code],
        262: [2],
        277: [channels],
        278: [height],
        284: [2 if separate else 1],
        317: [2 if predictor else 1],
        **({338: [2]} if channels == 4 else {}),
        279: [len(strip) for strip in strips],
    }
    start = 8
    tags[273] = [start + sum(tags[279][:i]) for i in range(len(strips))]
    body = b"".join(strips)
    body += b"\0" * (len(body) % 2)
    place = start + len(body)
    entries, more, after = b"", b"", place + 2 + 12 * len(tags) + 4
    for tag, content in sorted(tags.items()):
        packed = struct.pack(f"<{len(content)}I", *content)
        where = packed if len(packed) == 4 else struct.pack("<I", after + len(more))
        more += b"" if len(packed) == 4 else packed
        entries += struct.pack("<HHI", tag, 4, len(content)) + where
    return b"II*\0" + struct.pack("<I", place) + body + struct.pack("<H", len(tags)) + entries + bytes(4) + more


@pytest.mark.parametrize("codec", ["tiff_lzw", "zstd", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("predictor", [False, True], ids=["plain", "predicted"])
@pytest.mark.parametrize("separate", [False, True], ids=["contiguous", "separate"])
@pytest.mark.parametrize("name", ["rgb", "rgba"])
def test_compressions_and_predictors_of_16_bits(tmp_path, name, separate, predictor, codec):
    predictor = predictor and codec != "packbits"  # which has none
    values = noise(H, W, COLORS[name][0])
    path = tmp_path / "a.tif"
    path.write_bytes(compressed_by_pillow(values, codec, predictor, separate))
    assert_read(path, values, name)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_cmyk_is_the_same_in_every_layout(tmp_path, planar, bits):
    values = noise(H, W, 4, bits=8)
    expected = np.asarray(Image.fromarray(values, "CMYK").convert("RGB"))
    save(tmp_path / "a.tif", values if bits == 8 else values.astype(np.uint16) * 257, "separated", (), planar)
    photo = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(in_8_bits(photo).pixels, expected)
    assert (photo.bits, photo.alpha, photo.gray) == (bits, None, False)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("alpha", [False, True], ids=["opaque", "alpha"])
def test_cmyk_of_16_bits_keeps_them(tmp_path, planar, alpha):
    values = noise(H, W, 5 if alpha else 4)
    save(tmp_path / "a.tif", values, "separated", (2,) if alpha else (), planar)
    photo = read(tmp_path / "a.tif")
    left = 1 - values.astype(np.float64) / 65535
    assert photo.bits == 16 and np.abs(photo.pixels - left[..., :3] * left[..., 3:4] * 65535).max() <= 0.501
    assert not alpha or np.array_equal(photo.alpha, values[..., 4])


def test_cmyk_of_16_bits_with_a_profile_is_converted_in_8_with_a_word(tmp_path):
    values = noise(H, W, 4, bits=8)
    save(tmp_path / "8.tif", values, "separated", iccprofile=cmyk_profile())
    save(tmp_path / "16.tif", values.astype(np.uint16) * 257, "separated", iccprofile=cmyk_profile())
    with pytest.warns(UserWarning, match="16.tif: its 16-bit CMYK is converted through its profile in 8 bits"):
        photo = read(tmp_path / "16.tif")
    np.testing.assert_array_equal(photo.pixels, read(tmp_path / "8.tif").pixels)


def test_other_inks_are_not_read_as_cmyk(tmp_path):
    names = b"orange\0green\0violet\0gray\0"
    inks = [(332, 3, 1, 2, True), (333, 2, len(names), names, True)]
    for bits in (8, 16):
        save(tmp_path / "a.tif", noise(H, W, 4, bits=bits), "separated", extratags=inks)
        with pytest.raises(ImageError, match="holds other inks than cyan"):
            read(tmp_path / "a.tif")


# XYZ of white D50 to sRGB, adapted by Bradford, as published by B. Lindbloom.
XYZ_TO_SRGB = [
    [3.1338561, -1.6168667, -0.4906146],
    [-0.9787684, 1.9161415, 0.0334540],
    [0.0719453, -0.2289914, 1.4052427],
]


def srgb_of_lab(lab):
    """[H, W, 3] of L* in 0 to 100, a* and b* as sRGB in 0 to 1; ISO/CIE 11664-4 and IEC 61966-2-1."""
    y = (lab[..., 0] + 16) / 116
    roots = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    xyz = np.where(roots > 6 / 29, roots**3, 3 * (6 / 29) ** 2 * (roots - 4 / 29)) * [0.96422, 1, 0.82521]
    light = np.clip(np.einsum("ij,hwj->hwi", XYZ_TO_SRGB, xyz), 0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.power(light, 1 / 2.4) - 0.055)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_lab_of_16_bits_keeps_them(tmp_path, planar, order):
    rng = np.random.default_rng(0)
    lab = np.stack([rng.uniform(0, 100, (H, W)), *rng.uniform(-70, 70, (2, H, W))], axis=-1)
    lab[0, :3] = [[0, 0, 0], [100, 0, 0], [50, 0, 0]]
    values = np.rint(lab * [655.35, 256, 256]).astype(np.int64) & 0xFFFF
    save(tmp_path / "a.tif", values.astype(np.uint16), "cielab", (), planar, byteorder=order)
    photo = read(tmp_path / "a.tif")
    # The published matrix has the primaries of IEC 61966-2-1 to more digits, which shows at the edge of the gamut.
    errors = np.abs(photo.pixels - srgb_of_lab(lab) * 65535)
    assert photo.bits == 16 and errors.max() < 64 and np.median(errors) < 1
    assert photo.pixels[0, 0].tolist() == [0, 0, 0] and photo.pixels[0, 1].min() > 65500
    assert len(set(photo.pixels[0, 2].tolist())) <= 3 and np.ptp(photo.pixels[0, 2].astype(int)) <= 8


def test_lab_planes_are_read_as_contiguous_lab(tmp_path):
    values = noise(H, W, 3, bits=8)
    photos = []
    for planar in ("contig", "separate"):
        save(tmp_path / f"{planar}.tif", values, "cielab", (), planar)
        photos.append(read(tmp_path / f"{planar}.tif").pixels)
    np.testing.assert_array_equal(photos[1], photos[0])
    assert np.ptp(photos[0]) > 200


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_premultiplied_alpha_is_divided_out(tmp_path, planar):
    straight, alpha = noise(H, W, 3), noise(H, W, 1, seed=1) | 0x4000
    multiplied = np.rint(straight * (alpha / 65535)).astype(np.uint16)
    save(tmp_path / "a.tif", np.dstack([multiplied, alpha]), "rgb", (1,), planar)
    photo = read(tmp_path / "a.tif")
    assert np.abs(photo.pixels.astype(int) - straight).max() <= 2
    np.testing.assert_array_equal(photo.alpha, alpha[..., 0])


def test_description_profile_and_orientation_of_separate_planes(tmp_path):
    values = noise(H, W, 3)
    profile = b"\0" * 16 + b"RGB " + b"\0" * 108
    save(
        tmp_path / "a.tif", values, "rgb", (), "separate", iccprofile=profile, description="a beach",
        extratags=[(274, 3, 1, 6, True)],
    )  # fmt: skip
    photo = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(photo.pixels, np.rot90(values, -1))
    exif = Image.Exif()
    exif.load(photo.exif)
    assert (photo.icc_profile, exif[270], exif[274]) == (profile, "a beach", 1)


def test_16_bit_gray_with_alpha_comes_back(tmp_path):
    values = noise(H, W, 2)
    photo = Photo(np.repeat(values[..., :1], 3, axis=2), values[..., 1].copy(), gray=True)
    write(tmp_path / "a.tif", photo)
    assert_read(tmp_path / "a.tif", values, "gray-alpha")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), values)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (noise(H, W, 3).astype(np.float32), {}, "32-bit float"),
        (noise(H, W, 3).astype(np.int16), {}, "16-bit signed"),
        (noise(H, W, 3).astype(np.uint32), {}, "32-bit integer"),
    ],
    ids=["float", "signed", "32-bit"],
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_unsupported_values_are_refused(tmp_path, planar, values, options, message):
    save(tmp_path / "a.tif", values, **({"photometric": "rgb"} | options), planar=planar)
    with pytest.raises(ImageError, match=f"a.tif .*({message}|not supported)") as caught:
        read(tmp_path / "a.tif")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_file_cut_anywhere_is_refused_in_one_line(tmp_path, planar):
    save(tmp_path / "a.tif", noise(H, W, 3), "rgb", (), planar, compression="zlib", rowsperstrip=8)
    data = (tmp_path / "a.tif").read_bytes()
    for size in range(8, len(data), len(data) // 40):
        (tmp_path / "cut.tif").write_bytes(data[:size])
        with pytest.raises(ImageError, match="cut.tif") as caught:
            read(tmp_path / "cut.tif")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tag", "value", "what"),
    [
        (259, 50002, "compressed with JPEG XL"),
        (259, 50001, "compressed with WebP"),
        (259, 34887, "compressed with LERC"),
        (259, 34712, "compressed with JPEG 2000"),
        (259, 60001, "compressed with method 60001"),
        (262, 9, "with ICC L"),
        (262, 32803, "with a camera's raw colours"),
        (262, 77, "with colours of kind 77"),
    ],
)
@pytest.mark.parametrize("bits", [8, 16])
def test_what_is_not_read_is_named(tmp_path, tag, value, what, bits, capfd):
    save(tmp_path / "a.tif", noise(H, W, 3, bits=bits), "rgb", compression="zlib")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into("<H", data, data.index(struct.pack("<HHI", tag, 3, 1)) + 8, value)
    (tmp_path / "a.tif").write_bytes(data)
    try:
        read(tmp_path / "a.tif")
    except ImageError as error:
        assert f"a.tif is a TIFF {what}" in str(error) and "export it as RGB" in str(error)
    else:
        assert value == 50001, "only WebP is read by some builds of Pillow"
    assert capfd.readouterr().err == ""


def test_the_limit_on_pixels_counts_pixels_not_samples(tmp_path, monkeypatch):
    save(tmp_path / "a.tif", noise(H, W, 4), "rgb", (2,))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W)
    assert read(tmp_path / "a.tif").width == W
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", H * W // 2 - 1)
    with pytest.raises(ImageError, match="more than .* pixels"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("damage", [b"", b"II*\0", b"MM\0+" + bytes(12), b"II*\0" + b"\xff" * 12])
def test_damaged_directories_have_no_tags(damage):
    assert not read_tags(io.BytesIO(damage))
