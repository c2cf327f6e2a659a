"""Images: reading and writing, colour and metadata, kinds of input, tiling.

The modules of these names are imported with the first use: `files` then needs no image library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resshift_fast.images.alpha import resize_alpha as resize_alpha
    from resshift_fast.images.errors import ImageError as ImageError
    from resshift_fast.images.masks import read_mask as read_mask
    from resshift_fast.images.photo import Photo as Photo
    from resshift_fast.images.photo import check_format as check_format
    from resshift_fast.images.photo import encoded as encoded
    from resshift_fast.images.photo import from_float as from_float
    from resshift_fast.images.photo import luma as luma
    from resshift_fast.images.photo import suffix_for as suffix_for
    from resshift_fast.images.photo import to_float as to_float
    from resshift_fast.images.photo import to_pil as to_pil
    from resshift_fast.images.photo import write as write
    from resshift_fast.images.reading import File as File
    from resshift_fast.images.reading import from_pil as from_pil
    from resshift_fast.images.reading import is_file as is_file
    from resshift_fast.images.reading import read as read
    from resshift_fast.images.reading import read_bytes as read_bytes
    from resshift_fast.images.results import side_by_side as side_by_side

__all__ = [
    "File",
    "ImageError",
    "Photo",
    "check_format",
    "encoded",
    "from_float",
    "from_pil",
    "is_file",
    "luma",
    "read",
    "read_bytes",
    "read_mask",
    "resize_alpha",
    "side_by_side",
    "suffix_for",
    "to_float",
    "to_pil",
    "write",
]

_MODULES = {
    "File": "reading",
    "ImageError": "errors",
    "from_pil": "reading",
    "is_file": "reading",
    "read": "reading",
    "read_bytes": "reading",
    "read_mask": "masks",
    "resize_alpha": "alpha",
    "side_by_side": "results",
}  # the others are in photo


if not TYPE_CHECKING:  # a type checker would accept any name if it saw this function

    def __getattr__(name: str) -> Any:
        if name in __all__:
            return getattr(import_module(f"resshift_fast.images.{_MODULES.get(name, 'photo')}"), name)
        raise AttributeError(f"module 'resshift_fast.images' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
