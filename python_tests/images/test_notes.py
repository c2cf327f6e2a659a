"""What is kept of a file besides pixels and colours, what is warned of, and files whose first page is a preview."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from resshift_fast.images import ImageError, Photo, from_pil, read, write
from resshift_fast.images.notes import Notes, clean_xmp
from resshift_fast.images.png import with_chunks

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 20, 3)).astype(np.uint8)
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="6" tiff:ImageWidth="20" '
    b"exif:PixelXDimension='20' dc:source=\"beach\"><tiff:Orientation>8</tiff:Orientation>"
    b"<tiff:ImageLength>12</tiff:ImageLength></rdf:Description></rdf:RDF></x:xmpmeta>"
)
CLEAN = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="1" dc:source="beach">'
    b"<tiff:Orientation>1</tiff:Orientation></rdf:Description></rdf:RDF></x:xmpmeta>"
)
SUFFIXES = (".png", ".jpg", ".webp", ".tif", ".bmp")


@pytest.fixture
def tifffile():
    return pytest.importorskip("tifffile")


def info_of(path):
    """(dpi, XMP, comment) by Pillow."""
    with Image.open(path) as image:
        image.load()
        comment = image.info.get("comment") or image.info.get("Comment")
        dpi, xmp = image.info.get("dpi"), image.info.get("xmp")
    return dpi and tuple(round(float(value)) for value in dpi), xmp, comment


def photo_with(bits=8, **notes):
    return Photo(PIXELS if bits == 8 else PIXELS.astype(np.uint16) * 257, notes=Notes(**notes))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_resolution_is_kept(tmp_path, suffix, bits):
    if suffix == ".webp" or (bits == 16 and suffix not in (".png", ".tif")):
        return
    Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}", dpi=(300, 150))
    photo = read(tmp_path / f"a{suffix}")
    assert [round(value) for value in photo.notes.dpi] == [300, 150]
    write(tmp_path / f"b{suffix}", photo if bits == 8 else photo_with(16, dpi=photo.notes.dpi))
    assert info_of(tmp_path / f"b{suffix}")[0] == (300, 150)


@pytest.mark.parametrize("with_exif", [False, True])
def test_webp_keeps_the_resolution_in_its_exif(tmp_path, with_exif):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:02 03:04:05"
    Image.fromarray(PIXELS).save(tmp_path / "a.png", dpi=(300, 150), **({"exif": exif} if with_exif else {}))
    write(tmp_path / "a.webp", read(tmp_path / "a.png"))
    with Image.open(tmp_path / "a.webp") as image:
        found = image.getexif()
        assert (round(found[282]), round(found[283]), found[296]) == (300, 150, 2)
        assert found.get(0x010F) == ("Maker" if with_exif else None)
        assert found.get_ifd(0x8769).get(0x9003) == ("2020:01:02 03:04:05" if with_exif else None)
    write(tmp_path / "b.png", read(tmp_path / "a.webp"))
    assert [round(float(value)) for value in read(tmp_path / "b.png").notes.dpi or (0,)] == [300, 150]


def test_no_resolution_is_made_up(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    for suffix in SUFFIXES:
        Image.fromarray(PIXELS).save(tmp_path / f"a{suffix}", **({"exif": exif} if suffix == ".jpg" else {}))
        dpi = read(tmp_path / f"a{suffix}").notes.dpi
        assert dpi is None or (suffix == ".bmp" and round(dpi[0]) == 96)  # which Pillow writes


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_xmp_is_kept_without_what_is_no_longer_true(tmp_path, suffix, bits):
    if bits == 16 and suffix not in (".png", ".tif"):
        return
    xmp = XMP.replace(b'"6"', b'"1"').replace(b">8<", b">1<")  # Pillow turns a TIFF by its XMP, and edits that
    write(tmp_path / f"a{suffix}", photo_with(bits, xmp=xmp), quality=100)
    assert info_of(tmp_path / f"a{suffix}")[1] == xmp
    assert read(tmp_path / f"a{suffix}").notes.xmp == CLEAN


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_an_orientation_in_xmp_alone_is_applied(tmp_path, suffix):
    write(tmp_path / f"a{suffix}", photo_with(xmp=XMP), quality=100)
    photo = read(tmp_path / f"a{suffix}")
    assert (photo.width, photo.height, photo.notes.xmp) == (12, 20, CLEAN)


def test_clean_xmp_changes_nothing_else():
    assert clean_xmp(XMP) == CLEAN
    assert clean_xmp(CLEAN) == CLEAN


@pytest.mark.parametrize("compressed", [False, True])
def test_texts_of_png_are_kept_byte_for_byte(tmp_path, compressed):
    info = PngInfo()
    info.add_text("parameters", "steps 20", zip=compressed)
    info.add_itxt("Title", "Strand", "de", "Titel", zip=compressed)
    info.add_itxt("XML:com.adobe.xmp", XMP.decode(), zip=compressed)
    Image.fromarray(PIXELS).save(tmp_path / "a.png", pnginfo=info)
    photo = read(tmp_path / "a.png")
    write(tmp_path / "b.png", photo)
    with Image.open(tmp_path / "b.png") as image:
        image.load()
        assert image.info["parameters"] == "steps 20"
        assert (image.info["Title"], image.info["Title"].lang, image.info["Title"].tkey) == ("Strand", "de", "Titel")
        assert image.info["xmp"] == CLEAN
    with pytest.warns(UserWarning, match=r"a.png: JPEG does not keep its text chunks; PNG does"):
        write(tmp_path / "b.jpg", photo)
    assert info_of(tmp_path / "b.jpg")[1] == CLEAN


def test_a_comment_is_kept_by_jpeg_and_png(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.jpg", comment="at the sea")
    photo = read(tmp_path / "a.jpg")
    assert photo.notes.comment == b"at the sea"
    for suffix, comment in ((".jpg", b"at the sea"), (".png", "at the sea")):
        write(tmp_path / f"b{suffix}", photo)
        assert info_of(tmp_path / f"b{suffix}")[2] == comment
    with pytest.warns(UserWarning, match="TIFF does not keep its comment"):
        write(tmp_path / "b.tif", photo)


def test_xmp_too_long_for_jpeg_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="JPEG does not keep its XMP metadata"):
        write(tmp_path / "a.jpg", photo_with(xmp=b"x" * 70000))
    assert info_of(tmp_path / "a.jpg")[1] is None


def test_a_photo_without_notes_is_written_without_a_word(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for suffix in SUFFIXES:
            write(tmp_path / f"a{suffix}", Photo(PIXELS))
    assert from_pil(Image.fromarray(PIXELS)).notes == Notes()


def test_a_larger_second_page_is_named(tmp_path):
    Image.fromarray(PIXELS[:6, :10]).save(tmp_path / "a.tif", save_all=True, append_images=[Image.fromarray(PIXELS)])
    with pytest.warns(UserWarning, match="2 pages, of which only the first is read, 10×6; page 2 is larger, 20×12"):
        assert read(tmp_path / "a.tif").width == 10


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "big"])
def test_pages_of_every_kind_are_counted(tifffile, tmp_path, big, bits):
    values = PIXELS.astype(np.uint8 if bits == 8 else np.uint16)
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=big, byteorder=">") as file:
        file.write(values, photometric="rgb", metadata=None)
        file.write(values[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)  # a thumbnail does not count
        file.write(values, photometric="rgb", metadata=None)
    with pytest.warns(UserWarning, match="a.tif has 2 pages, of which only the first is read, 20×12$"):
        np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, values)


def test_a_pyramid_is_one_page(tifffile, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(PIXELS, photometric="rgb", metadata=None, subifds=1)
        file.write(PIXELS[::2, ::2], photometric="rgb", metadata=None, subfiletype=1)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, PIXELS)


def test_previews_of_raw_files_are_refused(tifffile, tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.dng") as file:
        file.write(PIXELS[::2, ::2], photometric="rgb", metadata=None, subifds=1)
        file.write(PIXELS, photometric="rgb", metadata=None)
    with pytest.raises(ImageError, match="a.dng begins with a preview, as camera raw files do; develop it"):
        read(tmp_path / "a.dng")


def test_a_canon_raw_file_is_refused(tmp_path):
    """Its first directory is at 16, after "CR", the version 2.0 and the offset of the raw data."""
    tags = [(256, 20), (257, 12), (258, 8), (259, 1), (262, 1), (273, 146), (277, 1), (278, 12), (279, 240)]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in tags) + bytes(4)
    data = b"II*\0" + struct.pack("<I", 16) + b"CR\2\0" + bytes(4) + directory
    (tmp_path / "a.cr2").write_bytes(data.ljust(146, b"\0") + bytes(240))
    with pytest.raises(ImageError, match="a.cr2 begins with a preview"):
        read(tmp_path / "a.cr2")
    (tmp_path / "a.tif").write_bytes((data[:8] + bytes(8) + data[16:]).ljust(146, b"\0") + bytes(240))
    assert read(tmp_path / "a.tif").gray


def test_directories_in_a_circle_end(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.tif")
    data = bytearray((tmp_path / "a.tif").read_bytes())
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    (tmp_path / "a.tif").write_bytes(data)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, PIXELS)


def test_compressed_text_of_a_bomb_is_no_xmp(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    content = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(80_000_000))
    (tmp_path / "a.png").write_bytes(with_chunks((tmp_path / "a.png").read_bytes(), [(b"iTXt", content)]))
    assert read(tmp_path / "a.png").notes == Notes()
