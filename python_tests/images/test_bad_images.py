"""Files that are no image, truncated or damaged raise a one-line error that names the file and what to do."""

import io
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from resshift_fast.images import ImageError, Photo, from_pil, read, write

PIXELS = np.random.default_rng(0).integers(0, 256, (19, 23, 3)).astype(np.uint8)


def one_line(error):
    assert "\n" not in str(error.value)
    assert not str(error.value).startswith("[Errno")
    return str(error.value)


@pytest.fixture(scope="module")
def whole_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    files = {}
    for name, pixels in (("8", PIXELS), ("16", PIXELS.astype(np.uint16) * 257)):
        for suffix in (".png", ".tif") if name == "16" else (".png", ".jpg", ".webp", ".tif", ".bmp"):
            path = folder / f"{name}{suffix}"
            write(path, Photo(pixels))
            files[path.name] = path.read_bytes()
    progressive = io.BytesIO()
    Image.fromarray(PIXELS).save(progressive, "JPEG", progressive=True)
    files["progressive.jpg"] = progressive.getvalue()
    return files


KINDS = ["8.png", "16.png", "8.jpg", "progressive.jpg", "8.webp", "8.tif", "16.tif", "8.bmp"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_refused(tmp_path, whole_files, kind):
    data = whole_files[kind]
    (tmp_path / kind).write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError) as error:
        read(tmp_path / kind)
    assert kind in one_line(error)
    assert "again" in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged data
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_shortened_file_is_refused_or_complete(tmp_path, whole_files, kind, data):
    whole = whole_files[kind]
    (tmp_path / f"whole{kind}").write_bytes(whole)
    (tmp_path / kind).write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    try:
        shortened = read(tmp_path / kind)
    except ImageError:
        return
    np.testing.assert_array_equal(shortened.pixels, read(tmp_path / f"whole{kind}").pixels)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # Pillow warns about damaged data
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_raises_no_other_error(tmp_path, whole_files, kind, data):
    damaged = bytearray(whole_files[kind])
    for _ in range(3):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / kind).write_bytes(damaged)
    try:
        read(tmp_path / kind)
    except ImageError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty \(0 bytes\)"),
        (b"just some words\n", "is a text file; give a PNG"),
        (b"<html>not found</html>", "is a text file"),
        (b"GIF89a" + bytes(20), "is a damaged GIF"),
        (b"\0\0\0\x14ftypavif" + bytes(20), "is a damaged AVIF"),
        (b"\0\0\0\x14ftypisom" + bytes(20), "is a film or a camera raw file; give a PNG"),
        (b"%PDF-1.7", "is a PDF"),
        (bytes(range(256)), "is not an image that is known here"),
        (b"\x89PNG\r\n\x1a\n", "is a damaged PNG"),
        (b"\xff\xd8\xff", "is a damaged JPEG"),
    ],
    ids=["empty", "text", "html", "gif", "avif", "film", "pdf", "noise", "png-signature", "jpeg-signature"],
)
def test_a_file_that_is_no_image(tmp_path, content, message):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        read(tmp_path / "photo.png")
    assert "photo.png" in one_line(error)


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "holiday.png").touch()
    with pytest.raises(
        FileNotFoundError, match=r"holliday\.png does not exist; did you mean .*holiday\.png\?"
    ) as error:
        read(tmp_path / "holliday.png")
    one_line(error)
    with pytest.raises(FileNotFoundError, match="has no such file"):
        read(tmp_path / "zzzz.tif")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        read(tmp_path / "no" / "a.png")


def test_folder_as_an_image(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder, not an image"):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="not a regular file"):
        read(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (
            PermissionError(13, "Permission denied"),
            PermissionError,
            "cannot be read: permission denied; check its rights",
        ),
        (OSError(5, "Input/output error"), OSError, "cannot be read: Input/output error"),
    ],
    ids=["permission", "device"],
)
def test_unreadable_file(tmp_path, monkeypatch, raised, error, message):
    (tmp_path / "a.png").touch()

    def fail(*arguments, **options):
        raise raised

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(error, match=message) as caught:
        read(tmp_path / "a.png")
    one_line(caught)


def test_decompression_bomb(tmp_path, monkeypatch):
    Image.fromarray(PIXELS).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PIXELS.size // 3 // 2 - 1)
    with pytest.raises(ImageError, match="has more than 434 pixels, the limit against decompression bombs") as error:
        read(tmp_path / "a.png")
    one_line(error)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (PIXELS[..., 0].astype(np.float32), "holds 32-bit float pixels; convert it to 8 or 16 bit first"),
        (PIXELS[..., 0].astype(np.int32), "holds 32-bit signed pixels"),
    ],
    ids=["float", "signed"],
)
def test_tiff_without_a_known_white_level(tmp_path, array, message):
    Image.fromarray(array).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=message):
        read(tmp_path / "a.tif")


def test_tiff_that_begins_with_a_preview(tmp_path):
    Image.fromarray(PIXELS).save(tmp_path / "raw.tif", tiffinfo={254: 1})
    with pytest.raises(ImageError, match="begins with a reduced preview, as camera raw files do"):
        read(tmp_path / "raw.tif")


def test_pil_images_without_integers_or_pixels():
    with pytest.raises(ImageError, match="^upload holds float pixels"):
        from_pil(Image.new("F", (2, 2)), name="upload")
    with pytest.raises(ImageError, match="beyond 0 to 65535"):
        from_pil(Image.new("I", (2, 2), -1))
    with pytest.raises(ImageError, match="no pixels"):
        from_pil(Image.new("RGB", (0, 2)))
    with pytest.raises(TypeError, match="expected a PIL.Image.Image, got str"):
        from_pil("a.png")


def test_pil_image_of_a_truncated_file(tmp_path, whole_files):
    image = Image.open(io.BytesIO(whole_files["8.jpg"][:-200]))
    with pytest.raises(ImageError, match="^image is damaged or truncated"):
        from_pil(image)
