"""Animations: all frames, their times and repetitions, one frame in memory at a time."""

import weakref

import numpy as np
import pytest
from PIL import Image, ImageCms
from sample_photos import camera_exif

from resshift_fast.images import ImageError, Photo, animation

ROWS, COLUMNS = np.mgrid[:20, :28]
FRAMES = [
    Image.fromarray(np.stack([ROWS * 12, COLUMNS * 9, np.full_like(ROWS, 60 * k)], axis=2).astype(np.uint8))
    for k in range(4)
]
DURATIONS = [50, 100, 30, 200]
FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG", ".avif": "AVIF"}


def save(path, frames=FRAMES, **options):
    form = FORMATS[path.suffix]
    options = {"lossless": True} | options if form == "WEBP" else options
    frames[0].save(path, form, save_all=True, append_images=frames[1:], **options)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_all_frames_are_read(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", duration=DURATIONS)
    assert animation.is_animated(path)
    found = animation.open_animation(path)
    assert found.durations == DURATIONS
    for _ in range(2):  # it may be gone through again
        photos = list(found.photos())
        assert len(photos) == 4
        for photo, frame in zip(photos, FRAMES, strict=True):
            assert np.abs(photo.pixels.astype(int) - np.asarray(frame)).mean() < {".gif": 12, ".avif": 8}.get(
                suffix, 0.5
            )
            assert photo.alpha is None and not photo.gray


@pytest.mark.parametrize("suffix", [*FORMATS, ".jpg"])
def test_one_picture_is_no_animation(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    FRAMES[0].save(path)
    assert not animation.is_animated(path)
    assert suffix == ".jpg" or animation.open_animation(path) is None
    path.write_bytes(path.read_bytes()[:30])
    assert not animation.is_animated(path)
    assert not animation.is_animated(tmp_path / "none")


@pytest.mark.parametrize(
    "suffix, loop, plays",
    [
        (".gif", None, 1),
        (".gif", 0, 0),
        (".gif", 2, 3),
        (".webp", 0, 0),
        (".webp", 5, 5),
        (".png", 0, 0),
        (".png", 3, 3),
    ],
)
def test_repetitions(tmp_path, suffix, loop, plays):
    found = animation.open_animation(save(tmp_path / f"a{suffix}", **({} if loop is None else {"loop": loop})))
    assert found.loop == plays


def test_a_picture_for_other_programs_is_no_frame(tmp_path):
    path = save(tmp_path / "a.png", default_image=True, duration=DURATIONS[1:])
    found = animation.open_animation(path)
    assert found.durations == DURATIONS[1:] and len(list(found.photos())) == 3
    np.testing.assert_array_equal(next(found.photos()).pixels, np.asarray(FRAMES[1]))


def test_frames_of_a_gif_are_whole_pictures_with_transparency(tmp_path):
    """A GIF stores what changes; a frame that is cleared shows what was below."""
    colours = [(255, 0, 0), (0, 0, 255)]
    frames = []
    for k, colour in enumerate(colours):
        frame = Image.new("RGBA", (28, 20))
        frame.paste((*colour, 255), (4 * k, 4, 4 * k + 8, 12))
        frames.append(frame)
    found = animation.open_animation(save(tmp_path / "a.gif", frames, disposal=2))
    first, second = found.photos()
    assert (first.alpha[4:12, :8] == 255).all() and first.alpha[:, 8:].max() == 0
    assert (second.alpha[4:12, 4:12] == 255).all() and second.alpha[:, :4].max() == 0
    assert (second.pixels[4:12, 4:12] == (0, 0, 255)).all()


@pytest.mark.parametrize("has_alpha", [False, True])
def test_writing(tmp_path, has_alpha):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 20, 28, 3)).astype(np.uint8)
    alpha = rng.integers(1, 256, (3, 20, 28)).astype(np.uint8) if has_alpha else [None] * 3
    exif, profile = camera_exif().tobytes(), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    photos = [Photo(*pair, icc_profile=profile, exif=exif) for pair in zip(pixels, alpha, strict=True)]
    source = animation.Animation("a", [40, 80, 120], 2, lambda: iter(photos))
    animation.write_animation(tmp_path / "a.webp", source, source.photos(), 100)
    found = animation.open_animation(tmp_path / "a.webp")
    assert (found.durations, found.loop) == ([40, 80, 120], 2)
    for photo, before in zip(found.photos(), photos, strict=True):
        np.testing.assert_array_equal(photo.pixels, before.pixels)
        if has_alpha:
            np.testing.assert_array_equal(photo.alpha, before.alpha)
        assert photo.icc_profile == profile and b"Maker" in photo.exif


def test_frames_are_not_kept(tmp_path):
    alive = weakref.WeakSet()

    def photos():
        for k in range(30):
            photo = Photo(np.full((16, 16, 3), 8 * k, np.uint8))
            alive.add(photo)
            assert len(alive) <= 4
            yield photo

    source = animation.Animation("a", [10] * 30, 0, photos)
    animation.write_animation(tmp_path / "a.webp", source, photos(), 90)
    assert len(animation.open_animation(tmp_path / "a.webp").durations) == 30


def test_errors(tmp_path):
    path = save(tmp_path / "a.gif")
    path.write_bytes(path.read_bytes()[:-40])
    try:
        found = animation.open_animation(path)
        assert found is None or len(list(found.photos())) <= 4
    except ImageError as error:
        assert "a.gif is damaged" in str(error) and "\n" not in str(error)
    wide = Photo(np.zeros((1, animation.LONGEST_SIDE + 1, 3), np.uint8))
    source = animation.Animation("a", [1, 1], 0, lambda: iter([wide, wide]))
    with pytest.raises(ImageError, match="at most 16383 pixels a side and this has 16384×1"):
        animation.write_animation(tmp_path / "wide.webp", source, source.photos(), 90)
    assert not (tmp_path / "wide.webp").exists()
