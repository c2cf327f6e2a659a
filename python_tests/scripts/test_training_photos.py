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
Source: https://example.org/Crab_(2).jpg
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
        "| erase/crab.webp | gcompris-qt-data | [Nosferattus](https://example.org/Crab_%282%29.jpg) | CC0-1.0 | train |",
    ]
    assert capsys.readouterr().out.splitlines() == ["val   erase/cheetah.webp", "train erase/crab.webp"]


def test_each_collection_names_its_packages(photos):
    assert set(photos.PACKAGES) == set(photos.COLLECTIONS)
    assert photos.PACKAGES["wallpapers"] == set(photos.FOLDERS)
