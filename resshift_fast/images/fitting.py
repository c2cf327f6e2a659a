"""How photos and their results are made to fit what was asked for."""

from dataclasses import dataclass, replace

from resshift_fast.images import resizing, results
from resshift_fast.images.notes import Notes
from resshift_fast.images.photo import Photo, in_8_bits


@dataclass(frozen=True)
class Fitting:
    """How photos and results are made to fit the formats of the outputs.

    Args:
        scale: of the model.
        wanted_scale: to which results are reduced; None for the model's.
        background: the colour that transparent photos are laid over; None keeps the transparency.
        eight_bits: round results to 8 bits.
        quality: of JPEG and WebP. strip_metadata: leave out all but the colour profile.
    """

    scale: int
    wanted_scale: float | None = None
    background: tuple[int, int, int] | None = None
    eight_bits: bool = False
    quality: int = 95
    strip_metadata: bool = False

    def sides(self, photo: Photo) -> tuple[int, int]:
        """(height, width) of a photo's result."""
        return resizing.sides_at(photo, self.wanted_scale or self.scale)

    def fit(self, photo: Photo) -> tuple[Photo, tuple[str, ...]]:
        """A photo as it goes into the network, and what its line says about that."""
        flattened = photo.alpha is not None and self.background is not None
        rounded = photo.bits == 16 and self.eight_bits
        if self.background is not None:
            photo = results.laid_over(photo, self.background)
        return photo, ("laid over the background",) * flattened + ("rounded to 8 bits",) * rounded

    def fit_result(self, before: Photo, result: Photo) -> Photo:
        """The result of a photo as it is written."""
        result = resizing.reduced(result, self.sides(before))
        if self.strip_metadata:
            result = replace(result, exif=None, notes=Notes())
        return in_8_bits(result) if self.eight_bits and result.bits == 16 else result
