"""Collect the freely licensed photos that the embedded models are trained on.

    python scripts/training_photos.py OUT                   # apt-get download, unpack, pick, downscale
    python scripts/training_photos.py OUT --packages DIR    # the packages are already unpacked in DIR/<package>
    python scripts/training_photos.py OUT --only wallpapers # without the photos and drawings of GCompris

Writes OUT/train (every chosen photo at several scales, PNG), OUT/val (256×256 crops of photos that are not in train)
and OUT/LICENCES.md (who took each picture, under which licence, and what it was used for). Downscaling first makes the
pixels dense and sharp and removes the JPEG blocks of the originals, so that crops look like 256×256 whole scenes.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import qt_resources
from PIL import Image, ImageOps

MATE = "mate-backgrounds"
LOMIRI_16 = "lomiri-wallpapers-16.04"
LOMIRI_20 = "lomiri-wallpapers-20.04"
PLASMA = "plasma-workspace-wallpapers"
UKUI = "ukui-wallpapers"
FOLDERS = {
    MATE: "usr/share/backgrounds/mate/{}",
    LOMIRI_16: "usr/share/backgrounds/{}",
    LOMIRI_20: "usr/share/backgrounds/{}",
    PLASMA: "usr/share/wallpapers/{}",
    UKUI: "usr/share/backgrounds/{}",
}
GCOMPRIS = "gcompris-qt-data"
# Its activities that have photos; each is a Qt resource collection with a README that names the photographers.
ACTIVITIES = (
    "clickgame",
    "erase",
    "explore_farm_animals",
    "explore_monuments",
    "explore_world_animals",
    "explore_world_music",
)
GCOMPRIS_FOLDER = "usr/share/gcompris-qt/rcc"
SMALLEST = 500  # pixels of the shorter side; smaller pictures are drawings
GCOMPRIS_VAL = {
    "erase/cheetah.webp",
    "erase/goat.webp",
    "erase/heron.webp",
    "explore_farm_animals/owl.webp",
    "explore_monuments/wonders/petra.webp",
    "explore_world_animals/polar_bear.webp",
}
# Black and white, and framed.
GCOMPRIS_LEFT_OUT = {
    "explore_monuments/usa/castleClinton.webp",
    "explore_monuments/usa/georgeWashingtonBirthplace.webp",
}
CELL = 300  # pixels of a drawing
SHEET = (3, 2)  # columns and rows of drawings
SHORT_SIDES = (1080, 720, 480, 320, 256)
VAL_SHORT_SIDES = (640, 360)
CROP = 256
# A photo near its original size still shows its camera's interpolation and JPEG blocks.
MAX_SCALE = 0.8


class Photo(NamedTuple):
    """One picture of a Debian package. The licence is that of the package's debian/copyright; for the Plasma wallpapers
    and for GCompris it is the one in the wallpaper's own metadata or the folder's README, which are finer."""

    package: str
    path: str
    author: str
    licence: str
    use: str = "train"
    source: str = ""

    def row(self) -> str:
        """Its row in the table of licences; the author's name leads to the source."""
        address = self.source.replace("(", "%28").replace(")", "%29")
        author = f"[{self.author}]({address})" if address else self.author
        return f"| {self.path} | {self.package} | {author} | {self.licence} | {self.use} |"


def _mate(name: str, author: str, use: str = "train") -> Photo:
    return Photo(MATE, name, author, "GPL-2+", use)


def _plasma(name: str, author: str, licence: str = "LGPL-3 (package: GPL-2+)", use: str = "train") -> Photo:
    return Photo(PLASMA, name, author, licence, use)


WALLPAPERS = (
    Photo(LOMIRI_16, "Bridge_by_Sander_Klootwijk.jpg", "Sander Klootwijk, 2018", "CC-BY-SA-4.0"),
    Photo(LOMIRI_16, "Dragonfly_by_Bolly.jpg", '"Bolly", 2018', "CC-BY-SA-4.0"),
    Photo(LOMIRI_16, "Picture_0B_by_freespace.jpg", 'Trevor "Freespace", 2018', "CC-BY-4.0", "val"),
    Photo(LOMIRI_16, "Picture_1A_by_freespace.jpg", 'Trevor "Freespace", 2018', "CC-BY-4.0"),
    Photo(LOMIRI_16, "Wine_by_Jakkub_Mede.jpg", "Jakub Mede, 2018", "CC-BY-4.0"),
    Photo(LOMIRI_16, "aitzgorri_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", "CC-BY-4.0"),
    Photo(LOMIRI_16, "free_by_Peter_Nerlich.jpg", "Peter Nerlich, 2018", "CC-BY-SA-4.0"),
    Photo(LOMIRI_16, "friends_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", "CC-BY-4.0", "val"),
    Photo(LOMIRI_16, "greentock_by_Peter_Nerlich.jpg", "Peter Nerlich, 2018", "CC-BY-SA-4.0"),
    Photo(LOMIRI_16, "life_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", "CC-BY-4.0"),
    Photo(LOMIRI_16, "picosdeeuropa_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", "CC-BY-4.0"),
    Photo(LOMIRI_16, "seeding_by_Clements_Engelhardt.jpg", "Clemens Engelhardt, 2018", "CC0-1.0"),
    Photo(LOMIRI_16, "sunset_by_Aitzol_Berasategi.jpg", "Aitzol Berasategi, 2018", "CC-BY-4.0", "val"),
    Photo(LOMIRI_20, "Kleiber_by_Lukas_Baubkus.jpg", "Lukas Baubkus, 2021", "CC-BY-SA-3.0", "val"),
    _mate("abstract/Elephants_3840x2160.jpg", "Wyng Stancikaite, 2020 (a painting)"),
    _mate("nature/Aqua.jpg", "Charles Barbin, 2008"),
    _mate("nature/Blinds.jpg", "Lennart Poettering and Andrea Cimitan, 2008"),
    _mate("nature/Dune.jpg", "Marco Cogoni, 2007, and Hylke Bons, 2008"),
    _mate("nature/FreshFlower.jpg", "Jens Ansorg, 2005"),
    _mate("nature/Garden.jpg", "Charles Barbin, 2008"),
    _mate("nature/GreenMeadow.jpg", "Timothy Schellhase, 2005, and Lapo Calamandrei, 2008"),
    _mate("nature/LadyBird.jpg", "Charles Barbin, 2008", "val"),
    _mate("nature/RainDrops.jpg", '"blackcombwhistler07", 2008'),
    _mate("nature/Storm.jpg", "Sergey Nazarov, 2008"),
    _mate("nature/TwoWings.jpg", "Charles Barbin and Hylke Bons, 2008"),
    _mate("nature/Wood.jpg", "Jean-François Fortin Tam, 2008"),
    _mate("nature/YellowFlower.jpg", "Charles Barbin, 2008"),
    _plasma("BytheWater/contents/images/2560x1600.jpg", "Maciej Wiklo"),
    _plasma("ColdRipple/contents/images/2560x1600.jpg", "Risto Saukonpää"),
    _plasma("ColorfulCups/contents/images/2560x1600.jpg", "Dmitri Popov"),
    _plasma("EveningGlow/contents/images/2560x1600.jpg", "Ian Hex"),
    _plasma("FallenLeaf/contents/images/2560x1600.jpg", "Martin Klapetek"),
    _plasma("Grey/contents/images/2560x1600.jpg", "Sigi Sagi"),
    _plasma("Kite/contents/images/2560x1600.jpg", "Risto Saukonpää"),
    _plasma("OneStandsOut/contents/images/2560x1600.jpg", "Risto Saukonpää"),
    _plasma("Path/contents/images/2560x1600.jpg", "Risto Saukonpää"),
    _plasma("summer_1am/contents/images/2560x1600.jpg", "Risto Saukonpää"),
    _plasma("Autumn/contents/images/2560x1600.jpg", "RJ Quiralta (a painting)"),
    _plasma("SafeLanding/contents/images/5120x2880.jpg", "louisfoss (a drawing)", "CC-BY-SA-4.0"),
    Photo(UKUI, "firstgeneration.jpg", "Ubuntu Kylin community contributors, 2013-2020 (a drawing)", "CC-BY-SA-3.0"),
)


def fetch_packages(folder: Path, names: set[str]) -> None:
    """Download this release's packages with apt-get and unpack each into folder/<package>."""
    for package in sorted(names):
        subprocess.run(["apt-get", "download", package], cwd=folder, check=True)
        archive = next(iter(sorted(folder.glob(f"{package}_*.deb"))))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(folder / package)], check=True)


def wallpapers(packages: Path) -> Iterator[tuple[Photo, Image.Image]]:
    """The chosen wallpapers of desktops."""
    for photo in WALLPAPERS:
        with Image.open(packages / photo.package / FOLDERS[photo.package].format(photo.path)) as opened:
            yield photo, opened.convert("RGB")


def _resources(packages: Path, activity: str) -> dict[str, bytes]:
    """The files of an activity of GCompris, by their paths in its collection."""
    return qt_resources.read(packages / GCOMPRIS / GCOMPRIS_FOLDER / f"{activity}.rcc")


def gcompris(packages: Path) -> Iterator[tuple[Photo, Image.Image]]:
    """The photos of GCompris whose author and licence are named beside them."""
    for activity in ACTIVITIES:
        files = _resources(packages, activity)
        for readme in (name for name in files if name.endswith("/README")):
            credits = qt_resources.credits(files[readme].decode())
            for name, credit in sorted(credits.items()):
                path, whole = f"{activity}/{name}", readme.removesuffix("README") + name
                if path in GCOMPRIS_LEFT_OUT or not name.endswith(".webp") or whole not in files:
                    continue
                with Image.open(io.BytesIO(files[whole])) as opened:
                    if opened.mode != "RGB" or min(opened.size) < SMALLEST:
                        continue
                    use = "val" if path in GCOMPRIS_VAL else "train"
                    yield (
                        Photo(GCOMPRIS, path, credit.author, credit.licence, use, credit.source),
                        opened.convert("RGB"),
                    )


def drawings(packages: Path) -> Iterator[tuple[Photo, Image.Image]]:
    """Sheets of the drawings of GCompris on backgrounds of one colour, every third sheet as a negative: dark areas with
    bright lines are where JPEG is seen most."""
    files = _resources(packages, "lang")
    cut_out = []
    for name in sorted(files):
        if name.endswith(".webp"):
            with Image.open(io.BytesIO(files[name])) as opened:
                if opened.mode == "RGBA":
                    cut_out.append(opened.resize((CELL, CELL), Image.Resampling.LANCZOS))
    columns, rows = SHEET
    colours = np.random.default_rng(0).integers(0, 256, (len(cut_out), 3))
    for number, start in enumerate(range(0, len(cut_out), columns * rows)):
        sheet = Image.new("RGB", (columns * CELL, rows * CELL), tuple(colours[number].tolist()))
        for place, drawing in enumerate(cut_out[start : start + columns * rows]):
            sheet.paste(drawing, (place % columns * CELL, place // columns * CELL), drawing)
        sheet = ImageOps.invert(sheet) if number % 3 == 2 else sheet
        yield Photo(GCOMPRIS, f"lang/sheet{number:02d}", "Art4Apps (drawings)", "CC-BY-SA-3.0"), sheet


COLLECTIONS = {"wallpapers": wallpapers, "gcompris": gcompris, "drawings": drawings}
PACKAGES = {"wallpapers": {photo.package for photo in WALLPAPERS}, "gcompris": {GCOMPRIS}, "drawings": {GCOMPRIS}}


def _resized(image: Image.Image, short_side: int) -> Image.Image:
    scale = short_side / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    # reducing_gap starts from an area average, which keeps a 6000-pixel Lanczos filter short.
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)


def _usable(image: Image.Image, short_side: int) -> bool:
    return short_side <= MAX_SCALE * min(image.size)


def _best_crop(image: Image.Image) -> Image.Image:
    """The CROP × CROP window on a 32-pixel grid with the largest gradients, since smooth regions test little."""
    gray = np.asarray(image.convert("L"), dtype=np.float64)
    activity = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    total = np.pad(activity.cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def score(top: int, left: int) -> float:
        bottom, right = top + CROP - 1, left + CROP - 1
        return total[bottom, right] - total[top, right] - total[bottom, left] + total[top, left]

    corners = [
        (top, left) for top in range(0, image.height - CROP + 1, 32) for left in range(0, image.width - CROP + 1, 32)
    ]
    top, left = max(corners, key=lambda corner: score(*corner))
    return image.crop((left, top, left + CROP, top + CROP))


def prepare(packages: Path, out: Path, collections: list[str]) -> None:
    """Write OUT/train, OUT/val and OUT/LICENCES.md from the packages unpacked under `packages`.

    Args:
        packages: has a folder for each package.
        out: is made where it does not exist.
        collections: names of COLLECTIONS.

    Raises:
        ValueError: a collection of GCompris can't be read.
        OSError: a picture is missing, or `out` can't be written.
    """
    for use in ("train", "val"):
        (out / use).mkdir(parents=True, exist_ok=True)
    rows = ["| file | package | author | licence | used for |", "|---|---|---|---|---|"]
    for photo, image in chain.from_iterable(COLLECTIONS[collection](packages) for collection in collections):
        stem = photo.path.replace("/contents/images", "").replace("/", "_").rsplit(".", 1)[0]
        for short_side in SHORT_SIDES if photo.use == "train" else VAL_SHORT_SIDES:
            if not _usable(image, short_side):
                continue
            small = _resized(image, short_side)
            if photo.use == "val":
                small = _best_crop(small)
            small.save(out / photo.use / f"{stem}_{short_side}.png")
        rows.append(photo.row())
        print(f"{photo.use:5} {photo.path}", flush=True)
    (out / "LICENCES.md").write_text("\n".join(rows) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write train/, val/ and LICENCES.md to")
    parser.add_argument("--packages", type=Path, help="folder with the packages already unpacked, one folder each")
    parser.add_argument(
        "--only", choices=sorted(COLLECTIONS), help="one collection of photos alone (default: all collections)"
    )
    arguments = parser.parse_args()
    collections = list(COLLECTIONS) if arguments.only is None else [arguments.only]
    if arguments.packages is not None:
        prepare(arguments.packages, arguments.out, collections)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        fetch_packages(Path(folder), set().union(*(PACKAGES[collection] for collection in collections)))
        prepare(Path(folder), arguments.out, collections)
    return 0


if __name__ == "__main__":
    sys.exit(main())
