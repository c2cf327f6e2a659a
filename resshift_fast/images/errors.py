"""Errors of images in one line that says what was wrong, what was expected and what to do."""


class ImageError(ValueError):
    """An image that cannot be read, or a photo that cannot be stored as asked; one line says why and what to do."""


class DamagedError(ImageError):
    """An image whose data are damaged, incomplete, or of a kind that the decoder does not know."""


def damaged(name: str, reason: str) -> DamagedError:
    """The error for an image that could not be decoded."""
    return DamagedError(f"{name} is damaged or truncated ({reason}); fetch or export it again")


def too_heavy(name: str, size: int, width: int, height: int) -> ImageError:
    """The error for a file that holds many more bytes than its pixels need."""
    return ImageError(
        f"{name} is damaged, or an animation: it holds {size / 1e6:.0f} MB for {width}×{height} pixels; "
        "fetch or export it again"
    )


def one_line(error: Exception) -> str:
    """The text of an error without line breaks, or its class."""
    return " ".join(str(error).split()) or type(error).__name__
