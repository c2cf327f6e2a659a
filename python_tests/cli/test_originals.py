"""`restore` never writes to a file that it reads, whatever the path by which its output reaches it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
from sample_photos import make_mask, make_photo

from resshift_fast.core.files import FileSet


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("arguments", [[], ["--format", "same"], ["--format", "jpg"]], ids=["png", "same", "jpg"])
def test_an_output_with_the_inode_of_an_input(restore, photos, tmp_path, arguments):
    out = tmp_path / "other"
    out.mkdir()
    for path in photos.iterdir():
        os.link(path, out / path.name)
    before = contents(photos)
    outcome = restore(photos, "-o", out, *arguments)
    assert outcome.code == 2 and "would replace the input" in outcome.errors[0]
    assert contents(photos) == contents(out) == before


def test_a_named_output_with_the_inode_of_the_input(restore, photos, tmp_path):
    os.link(photos / "a.png", tmp_path / "other.png")
    outcome = restore(photos / "a.png", "-o", tmp_path / "other.png")
    assert outcome.code == 2 and "would replace the input" in outcome.errors[0]


MOUNT = """
import os, subprocess, sys
photos, mounted, weights, model, kind = sys.argv[1:6]
mount = ["mount", "--bind", photos, mounted]
if kind == "overlay":  # whose device differs from that of the folder below it
    for name in ("lower", "work"):
        os.mkdir(mounted + name)
    options = f"lowerdir={mounted}lower,upperdir={photos},workdir={mounted}work"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, mounted]
try:
    subprocess.run(mount, check=True, stderr=subprocess.DEVNULL)
except (OSError, subprocess.CalledProcessError):
    sys.exit(77)
import tiny_models
from resshift_fast import cli
tiny_models.install()
sys.argv = ["resshift-fast", "restore", photos, "-o", mounted, "--model", model, "--weights", weights]
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bind", "overlay"])
def test_one_folder_under_two_mounts(weights, photos, tmp_path, kind):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    before = contents(photos)
    try:
        done = subprocess.run(
            ["unshare", "-rm", sys.executable, "-c", MOUNT]
            + [str(photos), str(mounted), str(weights[tiny_models.ENLARGE]), tiny_models.ENLARGE, kind],
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, "PYTHONPATH": str(Path(tiny_models.__file__).parent)},
        )
    except FileNotFoundError:
        pytest.skip("needs unshare")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("needs a user namespace in which folders may be mounted")
    message = "would replace the input" if kind == "bind" else "is an input, or a mask, by way of another mount"
    assert done.returncode == 2 and message in done.stderr, done.stderr
    assert contents(photos) == before


@pytest.fixture
def only_paths_tell_files_apart(monkeypatch):
    """As for two mounts of a network drive; a link to a folder stands for the other mount."""
    monkeypatch.setattr(FileSet, "_keys_of", staticmethod(lambda path: {os.path.abspath(path)}))


@pytest.mark.parametrize("arguments", [["--format", "same"], ["--format", "jpg"], []], ids=["same", "jpg", "png"])
def test_one_folder_on_two_devices(restore, photos, tmp_path, arguments, only_paths_tell_files_apart):
    (tmp_path / "other").symlink_to(photos)
    before = contents(photos)
    outcome = restore(photos, "-o", tmp_path / "other", *arguments)
    assert outcome.code == 2 and "by way of another mount" in outcome.errors[0]
    assert contents(photos) == before


def test_compare_pictures_and_fallbacks_on_two_devices(restore, tmp_path, only_paths_tell_files_apart):
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.symlink_to(folder)
    photo, picture = (make_photo(folder / name, (12, 16)) for name in ("a.jpg", "b_compare.png"))
    outcome = restore(photo, picture, "-o", other / "x", "--compare")
    assert outcome.code == 0  # a folder below it is another one
    before = picture.read_bytes()
    make_photo(folder / "b.webp", (12, 16))
    outcome = restore(folder / "b.webp", picture, "-o", other, "--format", "jpg", "--compare")
    assert picture.read_bytes() == before and outcome.code in (0, 2)


def test_other_folders_are_not_taken_for_one(restore, photos, tmp_path, only_paths_tell_files_apart):
    (tmp_path / "out").mkdir()
    assert restore(photos, "-o", tmp_path / "out", "--format", "same").code == 0
    assert not [path for path in (*photos.iterdir(), *(tmp_path / "out").iterdir()) if path.name.startswith(".")]


@pytest.mark.parametrize("where", ["file", "folder"])
def test_masks_are_never_replaced(restore, tmp_path, where):
    photo, masks = make_photo(tmp_path / "photo.png", (20, 20)), tmp_path / "masks"
    masks.mkdir()
    mask = make_mask(masks / "photo.png", (20, 20))
    before = mask.read_bytes()
    given = masks if where == "folder" else mask
    outcome = restore(photo, "-o", given, "--mask", given, model=tiny_models.INPAINT)
    assert outcome.code == 2 and "would replace the mask" in outcome.errors[0]
    assert mask.read_bytes() == before


def test_files_are_recognized_by_device_and_inode(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).touch()
    status = os.stat(tmp_path / "a")
    real = os.stat

    def two_mounts(path, *args, **options):
        return status if str(path) in (str(tmp_path / "a"), str(tmp_path / "b")) else real(path, *args, **options)

    known = FileSet([tmp_path / "a", tmp_path / "missing"])
    assert tmp_path / "b" not in known
    monkeypatch.setattr(os, "stat", two_mounts)
    assert tmp_path / "a" in known and tmp_path / "b" in known
    assert tmp_path / "c" not in known
    assert tmp_path / "x" / ".." / "missing" in known and tmp_path / "other" not in known


def test_files_without_inodes_are_recognized_by_their_path(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).touch()
    values = list(os.stat(tmp_path / "a"))
    values[1] = 0
    monkeypatch.setattr(os, "stat", lambda *args, **options: os.stat_result(values))
    known = FileSet([tmp_path / "a"])
    assert tmp_path / "a" in known and tmp_path / "b" not in known
