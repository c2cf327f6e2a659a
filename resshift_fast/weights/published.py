"""What is known of a file of weights before it is read."""

from dataclasses import dataclass

OFFICIAL_LICENCE = "non-commercial (published by the ResShift authors under the S-Lab License 1.0)"


@dataclass(frozen=True)
class WeightFile:
    """A file of weights.

    Args:
        filename: name in the cache folder, or in the package's `weights` folder.
        url: where it is published; None: it is embedded in the package.
        size: bytes, once known. sha256: hash in hexadecimal, once known.
        licence: terms that the file comes under.
    """

    filename: str
    url: str | None
    size: int | None = None
    sha256: str | None = None
    licence: str = OFFICIAL_LICENCE
