"""JPEG in torch against the standard's formulas in numpy, and against libjpeg."""

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from resshift_fast.training.degradations.compression import CHROMA_TABLE, LUMA_TABLE, jpeg, tables


def picture(height, width, seed=0):
    """Smooth colours with edges and some texture, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([np.sin(rows / (5 + k) + k) * np.cos(columns / (4 + k) - k) for k in range(3)], axis=-1)
    waves[rows > columns + 3] *= -0.8
    return np.clip(128 + 90 * waves + rng.normal(0, 8, (height, width, 3)), 0, 255).astype(np.uint8)


def tensor(image):
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255


def levels(ours):
    return (ours * 255).round()[0].permute(1, 2, 0).numpy()


def coded(plane, table, quality):
    """Quantize the 8×8 blocks of a plane by the sums of the standard, then undo it."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    q = np.clip(np.floor((np.array(table).reshape(8, 8) * scale + 50) / 100), 1, 255)
    x = np.arange(8)
    c = np.where(x == 0, 1 / math.sqrt(2), 1.0)
    cosine = np.cos((2 * x[:, None] + 1) * x * math.pi / 16)  # [position, frequency]
    rows, columns = -plane.shape[0] % 8, -plane.shape[1] % 8
    padded, result = np.pad(plane, ((0, rows), (0, columns)), "edge") - 128.0, None
    result = np.empty_like(padded)
    for i in range(0, padded.shape[0], 8):
        for j in range(0, padded.shape[1], 8):
            block = padded[i : i + 8, j : j + 8]
            f = np.einsum("xy,xu,yv->uv", block, cosine, cosine) * np.outer(c, c) / 4
            f = np.sign(f) * np.floor(np.abs(f / q) + 0.5 + 1e-6) * q
            block = np.einsum("uv,xu,yv->xy", f * np.outer(c, c), cosine, cosine) / 4
            result[i : i + 8, j : j + 8] = np.clip(np.round(block + 128), 0, 255)
    return result


def formula(image, quality):
    """JPEG 4:2:0 of uint8 [H, W, 3], plane by plane."""
    height, width = image.shape[:2]
    r, g, b = (image[..., k].astype(float) for k in range(3))
    y = np.round(0.299 * r + 0.587 * g + 0.114 * b)
    cb = np.round(128 + (b - (0.299 * r + 0.587 * g + 0.114 * b)) / 1.772)
    cr = np.round(128 + (r - (0.299 * r + 0.587 * g + 0.114 * b)) / 1.402)
    luma, chroma = coded(y, LUMA_TABLE, quality)[:height, :width], []
    for plane in (cb, cr):
        plane = np.clip(np.pad(plane, ((0, height % 2), (0, -width % 16)), "edge"), 0, 255)
        total = plane[::2, ::2] + plane[1::2, ::2] + plane[::2, 1::2] + plane[1::2, 1::2]
        small = np.floor((total + np.where(np.arange(total.shape[1]) % 2, 2, 1)) / 4)
        small = coded(small, CHROMA_TABLE, quality)[: (height + 1) // 2, : (width + 1) // 2]
        near, far = np.repeat(small, 2, 0), np.repeat(np.pad(small, ((1, 1), (0, 0)), "edge"), 2, 0)
        far = np.where(np.arange(len(near))[:, None] % 2, far[4:], far[:-4])
        tall = 0.75 * near + 0.25 * far
        near, far = np.repeat(tall, 2, 1), np.repeat(np.pad(tall, ((0, 0), (1, 1)), "edge"), 2, 1)
        far = np.where(np.arange(near.shape[1]) % 2, far[:, 4:], far[:, :-4])
        bias = np.where(np.arange(near.shape[1]) % 2, 7 / 16, 8 / 16)
        chroma.append(np.floor(0.75 * near + 0.25 * far + bias)[:height, :width] - 128)
    rgb = [luma + 1.402 * chroma[1], luma - 0.344136286 * chroma[0] - 0.714136286 * chroma[1], luma + 1.772 * chroma[0]]
    return np.clip(np.round(np.stack(rgb, -1)), 0, 255)


@pytest.mark.parametrize("height, width", [(32, 48), (17, 23), (1, 3)])
@pytest.mark.parametrize("quality", [30, 62.5, 95])
def test_is_the_standards_formula(height, width, quality):
    image = picture(height, width)
    difference = np.abs(levels(jpeg(tensor(image), torch.tensor([quality]))) - formula(image, quality))
    # A colour halfway between two integers may be rounded either way, and then a coefficient of its block.
    assert (difference > 1).mean() < 0.01 and difference.mean() < 0.03


@pytest.mark.parametrize("height, width", [(64, 48), (37, 51)])
@pytest.mark.parametrize("quality", [30, 60, 95])
def test_is_close_to_libjpeg(height, width, quality):
    image, buffer = picture(height, width), io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    theirs = np.asarray(Image.open(buffer)).astype(float)
    difference = np.abs(levels(jpeg(tensor(image), torch.tensor([quality]))) - theirs)
    # libjpeg's integer transform rounds some coefficients near a half to the other side.
    assert difference.mean() < 0.6 and (difference > 2).mean() < 0.05
    assert difference.mean() < 0.2 * np.abs(theirs - image).mean()


def test_samples_have_qualities_of_their_own():
    image = torch.cat([tensor(picture(24, 24)), tensor(picture(24, 24, seed=1))])
    both = jpeg(image, torch.tensor([40.0, 90.0]))
    for sample, quality in enumerate((40.0, 90.0)):
        alone = jpeg(image[sample : sample + 1], torch.tensor([quality]))
        assert (both[sample] - alone[0]).abs().max() < 1e-6


def test_tables_of_quality_50_are_the_standards():
    assert tables(torch.tensor([50.0]), LUMA_TABLE)[0].flatten().tolist() == list(LUMA_TABLE)
    assert len(CHROMA_TABLE) == 64 and tables(torch.tensor([1.0]), CHROMA_TABLE).max() == 255
    assert tables(torch.tensor([100.0]), CHROMA_TABLE).max() == 1
