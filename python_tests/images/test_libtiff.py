"""What libtiff says of damaged TIFFs becomes part of our messages; nothing else reaches stderr."""

import io
import threading

import numpy as np
import pytest
from PIL import Image

from resshift_fast.images import ImageError, libtiff, read

PIXELS = np.random.default_rng(0).integers(0, 256, (64, 80, 3)).astype(np.uint8)

with libtiff.errors():
    pytestmark = pytest.mark.skipif(not libtiff._handlers, reason="Pillow's libtiff is no library of its own")


def damaged(compression, mode="RGB"):
    """A TIFF whose compressed pixels have changed here and there."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).convert(mode).save(file, "TIFF", compression=compression)
    data = bytearray(file.getvalue())
    with Image.open(io.BytesIO(data)) as image:
        start, size = image.tag_v2[273][0], image.tag_v2[279][0]
    for place in range(start + size // 4, start + size, 5):
        data[place] ^= 0x55
    return bytes(data)


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate"])
def test_the_reason_is_in_the_error(tmp_path, compression, capfd):
    (tmp_path / "a.tif").write_bytes(damaged(compression))
    with pytest.raises(ImageError, match=r"a.tif is damaged or truncated \((Using code|Decoding error)") as error:
        read(tmp_path / "a.tif")
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


def test_a_picture_that_is_decoded_in_spite_of_damage_is_warned_of(tmp_path, capfd):
    (tmp_path / "a.tif").write_bytes(damaged("group4", "1"))
    with pytest.warns(UserWarning, match=r"a.tif is damaged, and parts of the picture may be wrong \(") as found:
        assert read(tmp_path / "a.tif").width == 80
    assert len(found) == 1 and found[0].filename == __file__
    assert capfd.readouterr().err == ""


def test_lines_of_other_threads_are_not_kept(capfd):
    data = damaged("tiff_lzw")

    def decode():
        with pytest.raises(OSError, match="decoder error"):
            Image.open(io.BytesIO(data)).load()

    with libtiff.errors() as lines:
        thread = threading.Thread(target=decode)
        thread.start()
        thread.join()
        assert lines == []
        assert "Using code not yet in table" in capfd.readouterr().err
        decode()
        assert len(lines) >= 1 and "Using code not yet in table" in lines[0]
    assert capfd.readouterr().err == ""
    decode()
    assert "Using code not yet in table" in capfd.readouterr().err
