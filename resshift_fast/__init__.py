"""Fast ResShift image restoration: `sample`, `Pipeline`, `use_backend` and the operators in `ops`.

Nothing heavy is imported here; torch and the image libraries load with the first name that needs them.
"""

from importlib import import_module

__version__ = "0.1.0"
__all__ = ["Pipeline", "__version__", "ops", "sample", "use_backend"]

_HOMES = {"Pipeline": "pipeline", "sample": "pipeline", "use_backend": "backends"}


def __getattr__(name: str):
    if name == "ops":
        return import_module("resshift_fast.ops")
    if name in _HOMES:
        return getattr(import_module(f"resshift_fast.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'resshift_fast' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
