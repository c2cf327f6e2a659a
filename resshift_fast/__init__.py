"""Fast ResShift image restoration: `sample`, `Pipeline`, `use_backend` and the operators in `ops`.

Importing the package is cheap: torch and the image libraries are imported with the first name that needs them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resshift_fast import ops as ops
    from resshift_fast.backends import use_backend as use_backend
    from resshift_fast.images import ImageError as ImageError
    from resshift_fast.images import Photo as Photo
    from resshift_fast.pipeline import Pipeline as Pipeline
    from resshift_fast.pipeline import sample as sample
    from resshift_fast.weights.checkpoints import CheckpointError as CheckpointError
    from resshift_fast.weights.download import DownloadError as DownloadError

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "DownloadError",
    "ImageError",
    "Photo",
    "Pipeline",
    "__version__",
    "ops",
    "sample",
    "use_backend",
]

_HOMES = {
    "CheckpointError": "weights.checkpoints",
    "DownloadError": "weights.download",
    "ImageError": "images",
    "Photo": "images",
    "Pipeline": "pipeline",
    "sample": "pipeline",
    "use_backend": "backends",
}


if not TYPE_CHECKING:  # a type checker would accept any name if it saw this function

    def __getattr__(name: str) -> Any:
        if name == "ops":
            return import_module("resshift_fast.ops")
        if name in _HOMES:
            if name == "use_backend":  # operators register themselves when `ops` is imported
                import_module("resshift_fast.ops")
            return getattr(import_module(f"resshift_fast.{_HOMES[name]}"), name)
        raise AttributeError(f"module 'resshift_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
