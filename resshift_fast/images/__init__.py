"""Photos in and out: reading and writing, colour and metadata, kinds of input, tiles."""

from resshift_fast.images.codecs import ImageError
from resshift_fast.images.photo import (
    Photo,
    from_float,
    from_pil,
    luma,
    read,
    read_mask,
    resize_alpha,
    side_by_side,
    suffix_for,
    to_float,
    to_pil,
    write,
)

__all__ = [
    "ImageError",
    "Photo",
    "from_float",
    "from_pil",
    "luma",
    "read",
    "read_mask",
    "resize_alpha",
    "side_by_side",
    "suffix_for",
    "to_float",
    "to_pil",
    "write",
]
