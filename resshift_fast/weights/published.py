"""Name, address, size, hash and licence of a weights file."""

from dataclasses import dataclass

OFFICIAL_LICENCE = "non-commercial (published by the ResShift authors under the S-Lab License 1.0)"


@dataclass(frozen=True)
class WeightFile:
    """A weights file.

    Args:
        filename: name in the cache folder, or in the package's `weights` folder.
        url: where it is published; None if it is embedded in the package.
        size: bytes, if known. sha256: hash in hexadecimal, if known.
        licence: its terms.
    """

    filename: str
    url: str | None
    size: int | None = None
    sha256: str | None = None
    licence: str = OFFICIAL_LICENCE
