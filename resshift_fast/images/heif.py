"""HEIC and HEIF by pillow-heif, which is optional: `pip install 'resshift-fast[heic]'`."""

import io

import numpy as np
from PIL import Image

from resshift_fast.images.errors import ImageError
from resshift_fast.images.files import HEIC_NEEDS


def opened(data: bytes, name: str) -> Image.Image:
    """The main picture of a HEIC file, of which only the header has been read; Pillow need not know the format.

    Raises:
        ImageError: if pillow-heif is not installed.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        raise ImageError(f"{name} cannot be read: {HEIC_NEEDS}; or export it as PNG") from None
    image: Image.Image = HeifImageFile(io.BytesIO(data))
    colours = image.info.get("nclx_profile")
    if colours and not image.info.get("icc_profile"):
        image.info["cicp"] = bytes([colours["color_primaries"], colours["transfer_characteristics"], 0, 1])
    return image


def deep_planes(data: bytes) -> np.ndarray | None:
    """The main picture of more than 8 bits as uint16 [H, W] or [H, W, C], scaled to 16 bits; None for 8 bits.

    Its alpha, the fourth channel, may be premultiplied, which is left to Pillow: None then too.
    """
    from pillow_heif import open_heif

    image = open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    bits = int(image.info["bit_depth"])
    if bits <= 8 or image.premultiplied_alpha:
        return None
    values = np.asarray(image) >> (16 - bits)  # pillow-heif shifts them to the left
    top = 2**bits - 1
    scaled: np.ndarray = ((values.astype(np.uint32) * 65535 + top // 2) // top).astype(np.uint16)
    return scaled
