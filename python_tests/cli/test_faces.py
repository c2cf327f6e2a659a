"""`restore --faces`: what is said and written, and what is refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny_models
import torch
from pipelines import integers, oracle, zero
from sample_photos import make_photo, names
from videos import make_video

from resshift_fast import images
from resshift_fast.apps.faces import Detector, Face, FaceRestorer, mtcnn
from resshift_fast.apps.faces.alignment import TEMPLATE
from resshift_fast.cli import faces
from resshift_fast.cli.faces import FaceOptions
from resshift_fast.images import Photo
from resshift_fast.models import catalog
from resshift_fast.weights.download import DownloadError


@pytest.fixture
def one_face(monkeypatch):
    """A face in every photo that is wider than high, and a model that makes it black."""
    found = Face(1.0, np.array([2.0, 2, 22, 18]), TEMPLATE / 12 - [9, 12])

    def detector(image):
        return [found] if image.shape[2] > image.shape[1] else []

    class Black:
        spec = oracle(zero, 1).spec

        def __call__(self, crops, **options):
            return torch.zeros_like(crops)

    monkeypatch.setattr(Detector, "from_files", lambda path=None: detector)
    monkeypatch.setattr(faces, "load", lambda asked, pipe, loading: FaceRestorer(pipe, Black(), detector))


def test_photos_with_and_without_faces(restore, photos, tmp_path, one_face):
    images.write(photos / "d.tiff", Photo(integers(20, 24, 3, bits=16)))
    plain = restore(photos, "-o", tmp_path / "plain")
    outcome = restore(photos, "-o", tmp_path / "out", "--faces", "--json", "--compare")
    assert plain.code == outcome.code == 0, outcome.err
    told = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(one["faces"], one["notes"][-1]) for one in told] == [
        *((1, "1 face"), (0, "no face"), (1, "1 face"), (1, "1 face"))
    ]
    assert "[1/4] a.png 24×20 → 96×80 " in outcome.err and ", 1 face\n" in outcome.err
    for name, count in (("a.png", 1), ("b.png", 0), ("d.png", 1)):
        before, after = (images.read(tmp_path / folder / name) for folder in ("plain", "out"))
        assert before.bits == after.bits == (16 if name == "d.png" else 8)
        changed = (before.pixels != after.pixels).any(2)
        assert changed.any() == count
        assert not count or (after.pixels == 0).all(2).any()
    assert names(tmp_path / "out") == sorted(f"{x}{end}.png" for x in "abcd" for end in ("", "_compare"))
    assert (
        "0 restored, 0 failed, 4 skipped" in restore(photos, "-o", tmp_path / "out", "--faces", "--skip-existing").err
    )


def test_scale_and_animations(restore, tmp_path, one_face):
    make_photo(tmp_path / "a.png", (24, 20))
    assert restore(tmp_path / "a.png", "-o", tmp_path / "b.png", "--faces", "--scale", 2).code == 0
    after = images.read(tmp_path / "b.png")
    assert (after.width, after.height) == (48, 40) and (after.pixels == 0).all(2).any()
    frames = [images.to_pil(images.read(tmp_path / "a.png"))] * 2
    frames[0].save(tmp_path / "c.webp", save_all=True, append_images=[frames[1].rotate(180)], duration=50)
    outcome = restore(tmp_path / "c.webp", "-o", tmp_path / "d.webp", "--faces", "--json")
    assert outcome.code == 0, outcome.err
    told = json.loads(outcome.out)
    assert (told["frames"], told["faces"], told["notes"]) == (2, 1, ["at most 1 face a frame"])


def test_videos_are_refused(restore, tmp_path, one_face):
    make_video(tmp_path / "a.mp4", 1)
    make_photo(tmp_path / "b.png", (24, 20))
    outcome = restore(tmp_path / "a.mp4", tmp_path / "b.png", "-o", tmp_path / "out", "--faces")
    assert outcome.code == 1 and names(tmp_path / "out") == ["b.png"]
    assert outcome.errors == [
        f"error: {tmp_path}/a.mp4 is a video, and faces are restored in photos; leave --faces out for it"
    ]


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["--face-model", "faceir"], 2, "--face-model is of --faces; give that too, or leave it out"),
        (["--faces", "--face-model", "nano-x4"], 2, "--face-model: nano-x4 enlarges 4 times; aligned faces are"),
        (["--faces", "--face-model", "facer"], 2, "--face-model: unknown model 'facer'; did you mean 'faceir'?"),
        (["--faces", "--face-detector", "a.png"], 1, "a.png is no wheel; give the .whl file"),
        (["--faces"], 1, "faces are found with the weights of MTCNN: pip install --no-deps facenet-pytorch, or give"),
    ],
)
def test_what_is_refused_before_anything_is_written(restore, tmp_path, monkeypatch, options, code, message):
    monkeypatch.setattr(mtcnn, "PACKAGE", "resshift_fast_has_no_such_package")
    make_photo(tmp_path / "a.png", (8, 8))
    outcome = restore(tmp_path / "a.png", "-o", tmp_path / "out", *options)
    assert outcome.code == code and len(outcome.errors) == 1 and message in outcome.errors[0]
    assert not (tmp_path / "out").exists()


def test_a_model_that_fills_in_is_refused(restore, tmp_path, one_face):
    make_photo(tmp_path / "a.png", (8, 8))
    mask = ["--mask", tmp_path / "a.png"]
    outcome = restore(tmp_path / "a.png", "-o", tmp_path / "out", "--faces", *mask, model=tiny_models.INPAINT)
    assert outcome.code == 2 and "--faces: inpaint-imagenet is an inpainting model; fill photos in" in outcome.errors[0]


def test_weights_of_the_model_of_faces(restore, tmp_path, monkeypatch):
    """They are loaded, or the advice names the options of that model."""
    monkeypatch.setattr(Detector, "from_files", lambda path=None: None)
    tiny = catalog.MODELS[tiny_models.INPAINT]
    plain = replace(tiny.denoiser, cond_mask=False)
    catalog.MODELS["faceir"] = replace(tiny, name="faceir", needs_mask=False, denoiser=plain)  # of the fixture's copy
    asked = FaceOptions(None, tiny_models.save_weights("faceir", tmp_path), None, None)
    loaded = faces.load(asked, oracle(zero), {"device": "cpu", "dtype": "float32"})
    assert loaded.face_pipe.spec.name == "faceir" and asked.given == {"face-weights": "faceir.safetensors"}
    make_photo(tmp_path / "a.png", (8, 8))
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    outcome = restore(tmp_path / "a.png", "-o", tmp_path / "out", "--faces", "--face-weights", tmp_path / "bad.pth")
    assert outcome.code == 1 and "bad.pth is a text file; expected weights" in outcome.errors[0]
    error = faces._for_faces(DownloadError("no connection; or pass a copy as weights=FILE (--weights FILE)"))
    assert isinstance(error, DownloadError) and str(error).endswith("pass a copy as --face-weights FILE")


def test_without_other_weights_the_embedded_model_restores_faces(monkeypatch, tmp_path):
    monkeypatch.setattr(Detector, "from_files", lambda path=None: None)
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path))
    loaded = faces.load(FaceOptions(None, None, None, None), oracle(zero), {"device": "cpu", "dtype": "float32"})
    assert loaded.face_pipe.spec.name == "photo-x1"
