"""Pictures restored with their faces: kinds of images, what is left alone, seeds and progress."""

import numpy as np
import pipelines
import pytest
import torch
from PIL import Image
from pipelines import integers, oracle, pointwise, zero

from resshift_fast import images
from resshift_fast.apps.faces import Face, FaceRestorer, restoring
from resshift_fast.apps.faces.alignment import TEMPLATE, Similarity
from resshift_fast.images import Photo
from resshift_fast.models import catalog, loading


def face(x, y, eyes=12.0):
    """A face with its middle and the distance of its eyes."""
    scale = eyes / np.linalg.norm(TEMPLATE[1] - TEMPLATE[0])
    points = Similarity(scale, complex(x, y) - scale * complex(*TEMPLATE.mean(0)))(TEMPLATE)
    return Face(1.0, np.array([x - eyes, y - eyes, x + eyes, y + eyes]), points)


class Brown:
    """A model of faces that makes them red, and counts its calls."""

    def __init__(self):
        self.spec, self.calls = catalog.get("faceir"), []

    def __call__(self, faces, *, progress=False, **options):
        self.calls.append((tuple(faces.shape), options))
        if callable(progress):
            progress(2, 4)
            progress(4, 4)
        return faces * torch.tensor([1.0, 0.5, 0.5])[:, None, None]


@pytest.fixture(scope="module")
def bicubic():
    return oracle(zero)


def restorer(pipe, faces, face_pipe=None, **limits):
    return FaceRestorer(pipe, face_pipe or Brown(), lambda image: list(faces), **limits)


def test_faces_are_restored_together_and_pasted(bicubic):
    pixels, brown, found = integers(60, 90, 3), Brown(), []
    both = restorer(bicubic, [face(60, 30), face(25, 32, 11)], brown)
    result, plain = both(pixels, on_found=found.append, progress=False, seed=3), bicubic(pixels, progress=False)
    assert brown.calls == [((2, 3, 512, 512), {"seed": 3})] and found[0].text == "2 faces"
    assert result.dtype == np.uint8 and result.shape == plain.shape == (240, 360, 3)
    changed = (result != plain).any(2)
    for x, y in ((60, 30), (25, 32)):
        middle = np.s_[4 * y - 8 : 4 * y + 8, 4 * x - 8 : 4 * x + 8]
        assert changed[middle].all()
        assert result[middle][..., 1].mean() < 0.6 * plain[middle][..., 1].mean()
        assert abs(result[middle][..., 0].mean() - plain[middle][..., 0].mean()) < 15
    assert not changed[:, -20:].any() and not changed[:6].any() and 0.1 < changed.mean() < 0.7


def test_a_model_that_changes_nothing_changes_nothing(bicubic):
    """The picture is smooth, so resampling it twice is exact but for a few levels."""
    pixels = np.asarray(Image.fromarray(integers(6, 8, 3)).resize((80, 60), Image.Resampling.BICUBIC))
    same = oracle(zero, 1, tile=512)
    result = restorer(bicubic, [face(40, 30)], same)(pixels, progress=False)
    assert np.abs(result.astype(int) - bicubic(pixels, progress=False)).max() <= 6


@pytest.mark.parametrize("kind", ["photo", "gray", "tensor", "floats", "pil", "path", "list"])
def test_kinds_of_images(bicubic, kind, tmp_path):
    """The result is of the kind of the input; 16 bits and alpha stay, gray stays gray."""
    pixels = integers(48, 52, 3, bits=16)
    alpha = np.maximum(integers(48, 52, bits=16, seed=1), 20000)
    inputs = {
        "photo": Photo(pixels, alpha, name="x"),
        "gray": Photo(np.repeat(pixels[..., :1], 3, 2), gray=True),
        "tensor": torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1)[None].repeat(2, 1, 1, 1),
        "floats": pixels.astype(np.float64) / 65535,
        "pil": Image.fromarray((pixels >> 8).astype(np.uint8)),
        "path": tmp_path / "a.png",
        "list": [(pixels >> 8).astype(np.uint8), (pixels >> 8).astype(np.uint8)[:40]],
    }
    images.write(tmp_path / "a.png", Photo((pixels >> 8).astype(np.uint8)))
    with_faces = restorer(bicubic, [face(26, 24)])
    found = []
    results = with_faces(inputs[kind], on_found=found.append, progress=False)
    plain = bicubic(inputs[kind], progress=False)
    assert type(results) is type(plain) and len(found) == (2 if kind in ("tensor", "list") else 1)
    pairs = zip(results, plain, strict=True) if kind in ("tensor", "list") else [(results, plain)]
    for result, expected in pairs:
        if kind in ("photo", "gray"):
            assert result.bits == 16 and result.gray == expected.gray and result.name == expected.name
            assert (result.alpha is None) == (expected.alpha is None)
            assert expected.alpha is None or (result.alpha == expected.alpha).all()
            result, expected = result.pixels, expected.pixels
            assert kind == "photo" or (result[..., 0] == result[..., 2]).all()
        result, expected = np.asarray(result), np.asarray(expected)
        assert result.dtype == expected.dtype and result.shape == expected.shape
        changed = result != expected
        assert 0.02 < changed.mean() < 0.95 and not changed.reshape(-1)[:3].any()


def test_what_is_left_alone(bicubic):
    pixels, brown, found = integers(40, 60, 3), Brown(), []
    plain = bicubic(pixels, progress=False)
    faces = [face(30, 20, eyes) for eyes in (14, 13, 12, 9.4, 6)]
    several = restorer(bicubic, faces, brown, most=2)
    several(pixels, on_found=found.append, progress=False)
    assert [len(kind) for kind in (found[0].restored, found[0].tiny, found[0].others)] == [2, 2, 1]
    assert found[0].text == (
        "2 faces, 2 faces left alone (eyes are at most 9 pixels apart, at least 10 are needed), "
        "1 face left alone beyond the 2 largest"
    )
    assert brown.calls[0][0][0] == 2
    for nothing in ([], faces[4:]):
        none = restorer(bicubic, nothing, brown)
        assert (none(pixels, on_found=found.append, progress=False) == plain).all() and len(brown.calls) == 1
    assert [one.text for one in found[1:]] == [
        "no face",
        "1 face left alone (eyes are 6 pixels apart, at least 10 are needed)",
    ]


def test_seeds_make_results_and_each_picture_has_its_own(bicubic):
    noisy = oracle(pointwise, 1, tile=512)
    pixels = integers(40, 40, 3)
    one = restorer(bicubic, [face(20, 20)], noisy)
    first, other = one([pixels, pixels], seed=[1, 2], progress=False)
    assert (first != other).any()
    batch = one(np.stack([pixels, pixels]), seed=[1, 2], layout="BHWC", progress=False)
    assert (batch[0] == first).all() and (batch[1] == other).all()
    with pytest.raises(ValueError, match="1 seeds for 2 images"):
        one([pixels, pixels], seed=[1])


def test_options_are_of_the_picture_or_of_both(bicubic):
    brown = Brown()
    restorer(bicubic, [face(20, 20)], brown)(
        integers(40, 40, 3), tile=32, overlap=4, batch_size=3, noise="torch", progress=False
    )
    assert brown.calls[0][1] == {"seed": 0, "batch_size": 3, "noise": "torch"}


def test_progress_rises_to_its_end(bicubic):
    calls = []
    restorer(bicubic, [face(20, 20), face(25, 20)])(integers(40, 40, 3), progress=lambda *call: calls.append(call))
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert len({total for _, total in calls}) == 1 and calls[-1] == (4, 4)


def test_large_pictures_are_reduced_for_the_detector(bicubic, monkeypatch):
    monkeypatch.setattr(restoring, "DETECTED_SIDE", 32)
    pixels = np.zeros((61, 70, 3), np.uint8)
    pixels[30:33, 30:33] = 255
    seen, found = [], []

    def detector(image):
        seen.append(image)
        return [face(12, 11, 5)]

    FaceRestorer(bicubic, Brown(), detector)(pixels, on_found=found.append, progress=False)
    assert seen[0].shape == (3, 21, 24) and seen[0][:, 10, 10].tolist() == [1, 1, 1] and seen[0].sum() == 3
    assert np.allclose(found[0].restored[0].points, face(36, 33, 15).points)


def test_models_that_do_not_fit(bicubic, monkeypatch):
    with pytest.raises(ValueError, match=r"nano-x4 enlarges 4 times; aligned faces are restored by a model of scale 1"):
        restoring.face_model("nano-x4")
    with pytest.raises(ValueError, match=r"inpaint-face is an inpainting model"):
        restoring.face_model("inpaint-face")
    with pytest.raises(ValueError, match=r"oracle-x4 enlarges 4 times"):
        restorer(bicubic, [], bicubic)
    with pytest.raises(ValueError, match=r"fill the picture in first"):
        restorer(pipelines.tiny("inpaint"), [])
    with pytest.raises(ValueError, match=r"least_eyes and most are -1 and 100, expected at least 0"):
        restorer(bicubic, [], least_eyes=-1)
    monkeypatch.setattr(restoring, "FACE_MODELS", ("inpaint-face", "faceir"))
    monkeypatch.setattr(loading, "is_here", lambda spec: spec.name == "faceir")
    assert restoring.face_model().name == "faceir"
    monkeypatch.setattr(loading, "is_here", lambda spec: False)
    assert restoring.face_model().name == "inpaint-face"
    monkeypatch.undo()
    monkeypatch.setattr(loading, "is_here", lambda spec: spec.weights is not None and spec.weights.url is None)
    assert restoring.face_model().name == "photo-x1" and restoring.face_model(own_weights=True).name == "faceir"
