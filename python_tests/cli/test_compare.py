"""`restore --compare` without a value, with png and with html: names, content, and the page in a browser."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import browser, needs_browser
from PIL import Image
from sample_photos import make_photo, names

from resshift_fast import images
from resshift_fast.images import slider


class Page(HTMLParser):
    """What a page holds: `sources` of elements that load something, by id, and the ids of all."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.ids, self.policy = {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"]
        for name in ("src", "href", "action", "data"):
            if name in given:
                self.sources[given["id"]] = given[name]

    def picture(self, name):
        kind, content = self.sources[name].split(";base64,")
        assert kind in ("data:image/jpeg", "data:image/png")
        return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize(
    "words, expected",
    [
        (("PHOTO", "--compare"), ".png"),
        (("--compare", "PHOTO"), ".png"),
        (("--compare", "png", "PHOTO"), ".png"),
        (("--compare", "html", "PHOTO"), ".html"),
        (("PHOTO", "--compare=html"), ".html"),
    ],
)
def test_the_value_may_be_left_out(words, expected, restore, photos, tmp_path):
    arguments = [photos / "a.png" if word == "PHOTO" else word for word in words]
    assert restore(*arguments, "-o", tmp_path / "out").code == 0
    assert names(tmp_path / "out") == ["a.png", f"a_compare{expected}"]


def test_a_wrong_value_is_wrong_usage(restore, photos, tmp_path):
    outcome = restore(photos / "a.png", "-o", tmp_path / "out", "--compare=pdf")
    assert outcome.code == 2 and "'pdf' is not one of 'png', 'html'" in outcome.err


def test_the_page_holds_both_pictures_and_loads_nothing(restore, photos, tmp_path):
    assert restore(photos / "a.png", "-o", tmp_path / "out", "--compare", "html").code == 0
    text = (tmp_path / "out" / "a_compare.html").read_text(encoding="utf-8")
    page = Page(text)
    assert set(page.sources) == {"before", "after"} and {"pair", "divider", "at"} <= set(page.ids)
    assert page.policy.startswith("default-src 'none'") and not re.search(r"https?://|url\(|@import", text)
    before, after = (np.asarray(page.picture(name).convert("RGB")).astype(int) for name in ("before", "after"))
    result = images.read(tmp_path / "out" / "a.png").pixels
    both = images.side_by_side(images.read(photos / "a.png"), images.Photo(result)).pixels
    assert before.shape == after.shape == result.shape
    shown = both[:, : result.shape[1]]
    for picture, expected, other in ((before, shown, result), (after, result, shown)):
        assert 2 * np.abs(picture - expected).mean() < np.abs(picture - other).mean()


def test_names_are_no_part_of_the_page(restore, tmp_path):
    photo = make_photo(tmp_path / "<script>alert(1)</script>&.png".replace("/", "_"), (9, 8))
    assert restore(photo, "-o", tmp_path / "out", "--compare", "html").code == 0
    (path,) = (tmp_path / "out").glob("*.html")
    text = path.read_text(encoding="utf-8")
    assert text.count("<script>") == 1 and "&lt;script&gt;alert(1)" in text and "&amp;" in text


def test_transparent_16_bit_photos_are_laid_over_white():
    pixels, alpha = np.full((3, 5, 3), 1000, np.uint16), np.zeros((3, 5), np.uint16)
    before = images.Photo(pixels, alpha)
    after = images.Photo(pixels.repeat(4, 0).repeat(4, 1), alpha.repeat(4, 0).repeat(4, 1))
    page = Page(slider.slider_page(before, after, "photo").decode())
    for name in ("before", "after"):
        picture = np.asarray(page.picture(name))
        assert picture.shape == (12, 20, 3) and picture.min() == 255


def test_a_page_that_is_not_whole_is_written_again(restore, photos, tmp_path):
    arguments = (photos / "a.png", "-o", tmp_path / "out", "--compare", "html", "--skip-existing")
    assert restore(*arguments).code == 0
    page = tmp_path / "out" / "a_compare.html"
    whole = page.read_bytes()
    assert "0 restored, 0 failed, 1 skipped" in restore(*arguments).err
    page.write_bytes(whole[:-5])
    assert "1 restored, 0 failed, 0 skipped" in restore(*arguments).err
    assert page.read_bytes() == whole


def look(window, path: Path, kept: Path) -> np.ndarray:
    """The pixels of the window, also written to a file to look at."""
    kept.write_bytes(window.screenshot())
    return np.asarray(Image.open(kept).convert("RGB")).astype(int)


@needs_browser
def test_the_divider_follows_the_mouse_and_the_keys(tmp_path):
    """Before is red and after is blue, so that the screenshot shows where the divider is."""
    red, blue = (np.zeros((100 * n, 150 * n, 3), np.uint8) for n in (1, 4))
    red[..., 0], blue[..., 2] = 255, 255
    path = tmp_path / "page.html"
    path.write_bytes(slider.slider_page(images.Photo(red), images.Photo(blue), "red & blue"))

    def redness(picture, box, part):
        """Whether the column at a part of the width is of the picture before."""
        pixel = picture[int(box["y"] + 0.8 * box["height"]), int(box["x"] + part * box["width"])]
        return bool(pixel[0] > 200 and pixel[2] < 60)

    with browser(tmp_path / "profile") as window:
        window.open(path.as_uri())
        box = window.run("return document.getElementById('pair').getBoundingClientRect().toJSON()")
        assert box["width"] == 600 and box["height"] == 400
        first = look(window, path, tmp_path / "first.png")
        assert [redness(first, box, part) for part in (0.1, 0.45, 0.55, 0.9)] == [True, True, False, False]
        middle = box["y"] + box["height"] / 2
        window.drag((box["x"] + 300, middle), (box["x"] + 120, middle))
        moved = look(window, path, tmp_path / "moved.png")
        assert [redness(moved, box, part) for part in (0.1, 0.15, 0.25, 0.9)] == [True, True, False, False]
        assert float(window.run("return document.getElementById('at').value")) == pytest.approx(20, abs=0.2)
        window.type(window.find("#at")[0], "\ue010")  # the key End
        assert redness(look(window, path, tmp_path / "end.png"), box, 0.98)
        assert (
            window.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))") == []
        )
