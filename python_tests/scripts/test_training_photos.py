"""scripts/training_photos.py: the photos that are chosen from GCompris, their sizes, and the table of licences."""

import importlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qt_collection import collection

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

README = """Copyright: Nosferattus
License: CC0-1.0
Source: https://example.org/A_(2).jpg
Files: crab.webp

Copyright: Charles J. Sharp
License: CC-BY-SA-4.0
Files: cheetah.webp
tiny.webp
transparent.webp
lost.webp
"""


def sizes(folder):
    """(width, height) of each picture, by the file's name."""
    found = {}
    for path in folder.iterdir():
        with Image.open(path) as opened:
            found[path.name] = opened.size
    return found


@pytest.fixture
def photos(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("training_photos")
    for name in ("training_photos", "qt_resources"):
        sys.modules.pop(name, None)


def picture(width, height, mode="RGB"):
    values = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, len(mode)), np.uint8)
    written = io.BytesIO()
    Image.fromarray(values).resize((width, height)).save(written, "webp")
    return written.getvalue()


def packages(folder, photos):
    """A folder with GCompris' package, whose activity erase has five pictures, and the others none."""
    inside = folder / photos.GCOMPRIS / photos.GCOMPRIS_FOLDER
    inside.mkdir(parents=True)
    files = {
        "README": README.encode(),
        "crab.webp": picture(640, 512),
        "cheetah.webp": picture(800, 512),
        "tiny.webp": picture(320, 320),
        "transparent.webp": picture(640, 512, "RGBA"),
        "unnamed.webp": picture(640, 512),
    }
    for activity in photos.ACTIVITIES:
        (inside / f"{activity}.rcc").write_bytes(collection(files if activity == "erase" else {"README": b""}))
    return folder


def test_photos_of_gcompris(photos, tmp_path, capsys):
    out = tmp_path / "out"
    photos.prepare(packages(tmp_path / "packages", photos), out, ["gcompris"])
    # Sides of at most 0.8 of the photo's 512.
    assert sizes(out / "train") == {"erase_crab_320.png": (400, 320), "erase_crab_256.png": (320, 256)}
    assert sizes(out / "val") == {"erase_cheetah_360.png": (256, 256)}
    assert (out / "LICENCES.md").read_text(encoding="utf-8").splitlines()[2:] == [
        "| erase/cheetah.webp | gcompris-qt-data | Charles J. Sharp | CC-BY-SA-4.0 | val |",
        "| erase/crab.webp | gcompris-qt-data | [Nosferattus](https://example.org/A_%282%29.jpg) | CC0-1.0 | train |",
    ]
    assert capsys.readouterr().out.splitlines() == ["val   erase/cheetah.webp", "train erase/crab.webp"]


def test_photos_are_left_out_by_name(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "GCOMPRIS_LEFT_OUT", {"erase/crab.webp"})
    assert [photo.path for photo, _ in photos.gcompris(packages(tmp_path, photos))] == ["erase/cheetah.webp"]


def test_drawings_lie_on_sheets(photos, tmp_path):
    drawing, photo = io.BytesIO(), io.BytesIO()
    cut_out = Image.new("RGBA", (30, 30), (10, 20, 30, 255))
    cut_out.putpixel((0, 0), (10, 20, 30, 0))
    cut_out.save(drawing, "webp", lossless=True, exact=True)
    Image.new("RGB", (30, 30)).save(photo, "webp")
    files = {f"{number:02d}.webp": drawing.getvalue() for number in range(13)} | {"photo.webp": photo.getvalue()}
    inside = tmp_path / photos.GCOMPRIS / photos.GCOMPRIS_FOLDER
    inside.mkdir(parents=True)
    (inside / "lang.rcc").write_bytes(collection(files))
    sheets = [(photo.path, np.asarray(image)) for photo, image in photos.drawings(tmp_path)]
    assert [name for name, _ in sheets] == ["lang/sheet00", "lang/sheet01", "lang/sheet02"]
    full, _, negative = (pixels for _, pixels in sheets)
    assert full.shape == (600, 900, 3) and (full[150::300, 150::300] == (10, 20, 30)).all()
    assert (negative[150, 150] == (245, 235, 225)).all()
    background = negative[300:]
    assert (background == background[0, 0]).all() and (background[0, 0] == negative[0, 0]).all()


def test_each_collection_names_its_packages(photos):
    assert set(photos.PACKAGES) == set(photos.COLLECTIONS)
    assert photos.PACKAGES["wallpapers"] == set(photos.FOLDERS)
