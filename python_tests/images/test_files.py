"""Output names never collide, writes are atomic, and inputs are found or reported as missing."""

import errno
import os
import stat
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resshift_fast.core.files import make_folder, write_atomically
from resshift_fast.images import ImageError, Photo, files, photo, read, write
from resshift_fast.images.files import unique_outputs
from resshift_fast.images.search import find_images

PHOTO = Photo(np.random.default_rng(0).integers(0, 256, (8, 9, 3)).astype(np.uint8))


def names(inputs, suffix=".png"):
    return [path.name for path in unique_outputs(inputs, "out", suffix)]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["in/a.png", "in/b.jpg"], ["a.png", "b.png"]),
        (["in/a.png", "in/a.jpg", "in/b.jpg"], ["a_png.png", "a_jpg.png", "b.png"]),
        (["x/a.png", "y/a.png"], ["a_x.png", "a_y.png"]),
        (["x/a.png", "x/a.jpg", "y/a.png"], ["a_x_png.png", "a_x_jpg.png", "a_y_png.png"]),
        (["p/x/a.png", "q/x/a.png"], ["a.png", "a-2.png"]),
        (["in/Photo.png", "in/photo.PNG"], ["Photo.png", "photo-2.png"]),
        (["in/A.png", "in/a.jpg"], ["A_png.png", "a_jpg.png"]),
        (["in/a.png", "in/a.jpg", "in/a_png.tif"], ["a_in_png.png", "a_in_jpg.png", "a_png.png"]),
        (["in/a", "in/a.png"], ["a.png", "a_png.png"]),
        (["in/v1.0.png"], ["v1.0.png"]),
    ],
    ids=["none", "suffix", "folder", "both", "number", "case-number", "case-suffix", "taken", "no-suffix", "dots"],
)
def test_output_names(inputs, expected):
    assert names(inputs) == expected


def test_output_suffix_policies():
    inputs = ["in/a.JPG", "in/b.heic", "in/c"]
    assert names(inputs, ".tif") == ["a.tif", "b.tif", "c.tif"]
    assert names(inputs, None) == ["a.JPG", "b.png", "c.png"]
    assert names(inputs, lambda path: f".{len(path.name)}") == ["a.5", "b.6", "c.1"]


STEMS = st.sampled_from(
    ["a", "A", "a_png", "a_jpg", "a-2", "a_x", "ä", unicodedata.normalize("NFD", "ä"), "ß", "ss", ""]
)
INPUTS = st.lists(
    st.builds(
        "{}/{}{}".format, st.sampled_from(["x", "y", "x/y", "X"]), STEMS, st.sampled_from([".png", ".PNG", ".jpg", ""])
    ),
    max_size=12,
    unique=True,
)


@given(INPUTS, st.randoms(use_true_random=False), st.sampled_from([".png", None]))
def test_outputs_are_unique_and_independent_of_order(inputs, random, suffix):
    inputs = [path for path in inputs if not path.endswith("/")]
    outputs = unique_outputs(inputs, "out", suffix)
    keys = {unicodedata.normalize("NFC", path.stem).casefold() for path in outputs}
    assert len(keys) == len(inputs)
    shuffled = random.sample(inputs, len(inputs))
    again = dict(zip(shuffled, unique_outputs(shuffled, "out", suffix), strict=True))
    assert [again[path] for path in inputs] == outputs


def test_outputs_never_replace_inputs(tmp_path):
    (tmp_path / "a.png").touch()
    with pytest.raises(ValueError, match=r"would replace the input .*a\.png; choose another output folder"):
        unique_outputs([tmp_path / "a.png"], tmp_path)
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ValueError, match="would replace the input"):
        unique_outputs([tmp_path / "a.png"], tmp_path / "link")
    assert unique_outputs([tmp_path / "a.jpg"], tmp_path) == [tmp_path / "a.png"]


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    for name in (
        "p10.png",
        "p2.JPG",
        "p1.webp",
        "notes.txt",
        ".p0.png",
        "sub/q1.tif",
        "sub/deep/r[1].bmp",
        "[odd].png",
    ):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "folder.png").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["in"], ["[odd].png", "p1.webp", "p2.JPG", "p10.png"]),
        (["in/p10.png", "in"], ["p10.png", "[odd].png", "p1.webp", "p2.JPG"]),
        (["in/p?.*"], ["p1.webp", "p2.JPG"]),
        (["in/**/*.*"], ["[odd].png", "p1.webp", "p2.JPG", "p10.png", "deep/r[1].bmp", "sub/q1.tif"]),
        (["in/notes.txt"], ["notes.txt"]),
        (["in/[odd].png", "in/sub/deep/r[1].bmp"], ["[odd].png", "deep/r[1].bmp"]),
        (["in/p1.webp", "./in/../in/p1.webp", "in/p*.webp"], ["p1.webp"]),
    ],
    ids=["folder", "file-then-folder", "glob", "deep-glob", "any-file", "brackets", "duplicates"],
)
def test_find_images(gallery, patterns, expected):
    found = find_images(patterns)
    assert len(found) == len(expected)
    assert all(str(path).endswith(name) for path, name in zip(found, expected, strict=True)), found


def test_find_images_takes_home_paths_and_a_single_path(gallery, monkeypatch):
    monkeypatch.setenv("HOME", str(gallery))
    monkeypatch.setenv("USERPROFILE", str(gallery))
    assert find_images("~/in/p*.webp") == [gallery / "in" / "p1.webp"]
    assert find_images(gallery / "in" / "p1.webp") == [gallery / "in" / "p1.webp"]


@pytest.mark.parametrize(
    ("patterns", "error", "message"),
    [
        ([], ValueError, "no input was given"),
        (["in/p11.png"], FileNotFoundError, r"in/p11\.png does not exist; did you mean in/p10\.png\?"),
        (["nowhere/a.png"], FileNotFoundError, "there is no folder nowhere"),
        (["in/*.gif"], FileNotFoundError, r"no image matches in/\*\.gif; accepted are \.png, \.jpg"),
        (["empty"], ValueError, r"the folder empty has no images; accepted are \.png, \.jpg"),
    ],
    ids=["nothing", "missing", "no-folder", "glob", "empty-folder"],
)
def test_find_images_reports_what_is_missing(gallery, patterns, error, message):
    (gallery / "empty").mkdir()
    with pytest.raises(error, match=message) as caught:
        find_images(patterns)
    assert "\n" not in str(caught.value)


def test_folder_that_cannot_be_listed(gallery, monkeypatch):
    def fail(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", fail)
    with pytest.raises(PermissionError, match="the folder in cannot be listed: permission denied"):
        find_images(["in"])


def test_write_atomically_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / ("n" * 250 + ".txt")  # near the limit: the temporary name must not be longer
    for content in (b"first", b"second"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_symbolic_link_is_followed(tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    write(tmp_path / "link.png", PHOTO)
    assert (tmp_path / "link.png").is_symlink()
    np.testing.assert_array_equal(read(tmp_path / "real.png").pixels, PHOTO.pixels)


def raising(error):
    def fail(*args, **kwargs):
        raise error

    return fail


@pytest.mark.parametrize("place", ["fsync", "replace", "fdopen", "open"])
@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "no space left to write .*a.png; free some space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), OSError, "no space left"),
        (OSError(errno.EACCES, "Permission denied"), PermissionError, "cannot be written: permission denied; check"),
        (OSError(errno.EROFS, "Read-only file system"), OSError, "read-only; choose another output folder"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), OSError, "the name is too long"),
        (OSError(errno.EIO, "Input/output error"), OSError, "a.png cannot be written: Input/output error"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (MemoryError(), MemoryError, None),
    ],
    ids=["no-space", "quota", "permission", "read-only", "long-name", "device", "ctrl-c", "memory"],
)
def test_failed_write_leaves_the_old_file_unchanged(tmp_path, monkeypatch, place, raised, error, message):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, place, raising(raised))
    with pytest.raises(error, match=message) as caught:
        write(path, PHOTO)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    if isinstance(raised, OSError):
        assert caught.value.errno == raised.errno
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp"])
@pytest.mark.parametrize("raised", [OSError("encoder error -2"), KeyboardInterrupt()], ids=["encoder", "ctrl-c"])
def test_failure_while_encoding(tmp_path, monkeypatch, suffix, raised):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")

    def save(image, file, *args, **options):
        file.write(b"half")
        raise raised

    monkeypatch.setattr(photo.Image.Image, "save", save)
    expected = KeyboardInterrupt if isinstance(raised, KeyboardInterrupt) else ImageError
    with pytest.raises(expected, match="encoder error -2|^$"):
        write(path, PHOTO)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    real_open = os.open
    monkeypatch.setattr(
        files.os,
        "open",
        lambda name, flags, mode=0o777: (
            real_open("/dev/full", os.O_WRONLY) if flags & os.O_CREAT else real_open(name, flags)
        ),
    )
    with pytest.raises(OSError, match="no space left to write"):
        write(path, PHOTO)
    assert path.read_bytes() == b"old"


def test_write_to_invalid_paths(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; give a file name"):
        write_atomically(tmp_path, b"x")
    with pytest.raises(FileNotFoundError, match=r"the folder .*no does not exist; create it first"):
        write(tmp_path / "no" / "a.png", PHOTO)
    with pytest.raises(ImageError, match="no suffix is not a supported format; use one of"):
        write(tmp_path / "a", PHOTO)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="cannot be written"):
        write(tmp_path / "file" / "a.png", PHOTO)


def test_make_folder(tmp_path, monkeypatch):
    folder = tmp_path / "a" / "b"
    assert make_folder(str(folder)) == folder
    assert make_folder(folder) == folder
    assert list(folder.iterdir()) == []
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "under"):
        with pytest.raises(NotADirectoryError, match="is, or lies under, a file; choose another name"):
            make_folder(path)
    monkeypatch.setattr(files.os, "open", raising(OSError(errno.EACCES, "Permission denied")))
    with pytest.raises(PermissionError, match="cannot be written: permission denied"):
        make_folder(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(content=st.binary(max_size=5000))
def test_any_bytes_are_written(tmp_path, content):
    write_atomically(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == content
