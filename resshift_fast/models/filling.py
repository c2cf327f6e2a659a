r"""Fills unknown pixels in smoothly from the known ones, for inpainting models that then add what is missing.

Pull and push (Gortler et al., The Lumigraph, SIGGRAPH 1996, section 3.4): images x with weights w are halved,

.. math::
    W = \sum_{2 \times 2} w, \quad w' = \min(1, W), \quad x' = \frac{1}{W} \sum_{2 \times 2} w\,x,

down to one pixel, and from there on blended with the enlarged coarser image,
:math:`z = w\,x + (1 - w)\,\mathrm{up}(x')`.
Each z is then relaxed towards the solution of Laplace's equation in the hole, by some steps
:math:`z \leftarrow w\,x + (1 - w)\,\bar z` with the mean of the four neighbours; at borders the normal derivative is 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

RELAXATIONS = 8  # steps on each level
SURROUNDINGS = 64  # pixels around a hole of a photo that are looked at
LEVELS = 12  # halvings, whatever the size, so that a program of any size is the same: enough for 4096 pixels


def fill(image: Tensor, unknown: Tensor, *, levels: int = LEVELS, relaxations: int = RELAXATIONS) -> Tensor:
    """Replace unknown pixels by a smooth continuation of the known ones, which stay bit for bit.

    Args:
        image: [B, C, H, W] of a floating-point dtype; unknown pixels may have any finite value.
        unknown: bool [B, 1, H, W].
        levels: halvings; 2^levels pixels is the largest side that they bring down to one.
        relaxations: steps towards the solution of Laplace's equation on each level.

    Returns:
        Like image; within the range of the known pixels, and 0 where an image has none.
    """
    weight = (~unknown).to(image.dtype)
    pyramid = [(image * weight, weight)]  # weighted images, and their weights
    for _ in range(levels):
        # The zeros beyond the border are of no weight; of even sides they are left out.
        total, weight = (4 * F.avg_pool2d(F.pad(each, (0, 1, 0, 1)), 2) for each in pyramid[-1])
        capped = weight.clamp_max(1)
        pyramid.append((total * (capped / weight.clamp_min(1e-6)), capped))
    filled = pyramid[-1][0]
    for weighted, weight in reversed(pyramid[:-1]):
        height, width = weighted.shape[2:]
        coarser = F.interpolate(filled, scale_factor=2, mode="bilinear", align_corners=False)
        coarser = coarser.narrow(2, 0, height).narrow(3, 0, width)
        filled = weighted + (1 - weight) * coarser
        for _ in range(relaxations):
            filled = weighted + (1 - weight) * _neighbours(filled)
    return torch.where(unknown, filled, image)


def fill_photo(photo: Tensor, unknown: Tensor) -> Tensor:
    """`fill` of a whole photo, which looks only at its unknown pixels and their surroundings, so that memory is saved.

    Args:
        photo: float32 [3, H, W]; unknown pixels may have any finite value.
        unknown: bool [H, W].

    Returns:
        Like photo, which it may be itself.
    """
    places = [torch.nonzero(unknown.any(axis))[:, 0].tolist() for axis in (1, 0)]
    if not places[0]:
        return photo
    rows, columns = (slice(max(0, each[0] - SURROUNDINGS), each[-1] + 1 + SURROUNDINGS) for each in places)
    filled = photo.clone()
    filled[:, rows, columns] = fill(photo[None, :, rows, columns], unknown[None, None, rows, columns])[0]
    return filled


def _neighbours(image: Tensor) -> Tensor:
    """The mean of the four neighbours of each pixel; beyond the border a pixel is its own neighbour."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    vertical = padded[:, :, :-2, 1:-1] + padded[:, :, 2:, 1:-1]
    return (vertical + padded[:, :, 1:-1, :-2] + padded[:, :, 1:-1, 2:]) / 4
