"""Photos and results that are too large: what the message advises can be done."""

import numpy as np
import pytest
import torch
from PIL import Image
from sample_photos import make_photo

from resshift_fast.images import Photo
from resshift_fast.images.sources import PhotoSource, TensorSource, sources_of
from resshift_fast.pipeline import Pipeline


def test_the_limit_on_pixels_can_be_raised_as_the_message_says(restore, tmp_path, monkeypatch):
    photo, limit = make_photo(tmp_path / "a.png", (30, 20)), 250
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    outcome = restore(photo, "-o", tmp_path / "out")
    assert outcome.code == 1 and "more than 500 pixels" in outcome.errors[0]
    assert "--max-megapixels N" in outcome.errors[0]
    for value in ("0.0006", "0"):
        outcome = restore(photo, "-o", tmp_path / "out", "--max-megapixels", value)
        assert outcome.code == 0 and "warning" not in outcome.err
        assert limit == Image.MAX_IMAGE_PIXELS
    assert restore(photo, "-o", tmp_path / "out", "--max-megapixels", "0.0005").code == 1


@pytest.mark.parametrize("value", ["-1", "nan"])
def test_a_limit_that_makes_no_sense(restore, photos, tmp_path, value):
    outcome = restore(photos, "-o", tmp_path / "out", "--max-megapixels", value)
    assert outcome.code == 2 and "--max-megapixels must be at least 0" in outcome.errors[0]


@pytest.mark.parametrize("error", [MemoryError("Unable to allocate 9 GiB"), RuntimeError("can't allocate memory: 9")])
def test_no_smaller_tile_is_advised_where_the_result_is_too_large(restore, photos, tmp_path, monkeypatch, error):
    begin = PhotoSource.begin

    def fail(self, scale, mask=None):
        if self.width == 24:
            raise error
        begin(self, scale, mask)

    monkeypatch.setattr(PhotoSource, "begin", fail)
    outcome = restore(photos, "-o", tmp_path / "out")
    assert "a.png: there is not enough memory for the result of 96×80 pixels" in outcome.errors[0]
    assert "--tile" not in outcome.errors[0]
    assert outcome.err.endswith("2 restored, 1 failed, 0 skipped\n")


def test_other_errors_of_a_result_are_not_hidden(restore, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(PhotoSource, "begin", lambda self, scale, mask=None: {}["gone"])
    assert "internal error: KeyError" in restore(photos / "a.png", "-o", tmp_path / "out").errors[0]


@pytest.mark.parametrize("error", [MemoryError, RuntimeError])
def test_the_error_in_python(photos, monkeypatch, error):
    def fail(self, scale, mask=None):
        raise error("not enough memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(TensorSource, "begin", fail)
    with pytest.raises(MemoryError, match="not enough memory for the result of 32×32 pixels"):
        Pipeline.from_pretrained()(torch.zeros(1, 3, 8, 8))
    assert isinstance(sources_of(Photo(np.zeros((2, 2, 3), np.uint8)))[0][0], PhotoSource)


@pytest.mark.parametrize(
    ("dtype", "off", "fits"),
    [
        (torch.float32, 1e-6, True),
        (torch.float64, 1e-6, True),
        (torch.float32, 1e-3, False),
        (torch.float16, 1e-3, True),
        (torch.float16, 0.01, False),
        (torch.bfloat16, 0.0078125, True),
        (torch.bfloat16, 0.1, False),
    ],
)
@pytest.mark.parametrize("side", ["below", "above"])
def test_rounding_errors_of_tensors_are_clamped(dtype, off, fits, side):
    tensor = torch.rand(3, 4, 5, dtype=torch.float64)
    tensor[0, 0, 0], tensor[0, 0, 1] = (-off, 1.0) if side == "below" else (0.0, 1.0 + off)
    tensor = tensor.to(dtype)
    before = tensor.clone()
    if not fits:
        with pytest.raises(ValueError, match=r"expected \[0, 1\]; scale or clamp them"):
            sources_of(tensor)
        return
    (source,), _ = sources_of(tensor)
    source.begin(1)
    pixels = source.crop(np.arange(4), np.arange(5))
    assert torch.equal(pixels, before.clamp(0, 1).float() * 2 - 1)
    assert torch.equal(tensor, before)
