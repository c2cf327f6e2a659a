"""Searching images: unusual names, links, cycles, and entries that can't be reached."""

import errno
import os

import pytest

from resshift_fast.core.files import expand_home
from resshift_fast.images.files import HEIC_NEEDS, missing_file
from resshift_fast.images.search import find_images, search


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(*patterns):
    return [str(path) for path in find_images(patterns)]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("my [scans]/*.png", ["my [scans]/p1.png", "my [scans]/p2.png"]),
        ("my [scans]/p[1].png", ["my [scans]/p1.png"]),
        ("my [scans]/sub[*]/*.png", ["my [scans]/sub[*]/q.png"]),
        ("my [scans]/**/*.png", ["my [scans]/p1.png", "my [scans]/p2.png", "my [scans]/sub[*]/q.png"]),
        ("*[[]scans]/p1.png", ["my [scans]/p1.png"]),
        ("m?/a.png", ["ms/a.png"]),
        ("**", ["ms/a.png", "my [scans]/p1.png", "my [scans]/p2.png", "my [scans]/sub[*]/q.png"]),
    ],
)
def test_brackets_in_names_of_folders(here, pattern, expected):
    fill(here, "my [scans]/p1.png", "my [scans]/p2.png", "my [scans]/sub[*]/q.png", "ms/a.png")
    assert found(pattern) == expected


def test_hidden_files_are_found_by_globs_that_name_them(here):
    fill(here, ".a.png", "b.png", ".hidden/c.png")
    assert found("*.png") == ["b.png"]
    assert found("**/*.png") == ["b.png"]
    assert found(".*.png") == [".a.png"]
    assert found(".hidden/*.png") == [".hidden/c.png"]


def test_an_absolute_glob(here):
    fill(here, "in/a.png")
    assert found(f"{here}/*/a.png") == [str(here / "in" / "a.png")]


def test_cycles_of_links_end_and_give_each_photo_once(here):
    fill(here, "gl/a.png", "gl/sub/b.png")
    (here / "gl" / "x").symlink_to(".")
    (here / "gl" / "sub" / "y").symlink_to("..")
    (here / "gl" / "sub" / "z").symlink_to("../x/sub")
    assert found("gl/**/*.png") == ["gl/a.png", "gl/sub/b.png"]


def test_linked_folders_and_linked_photos_are_found(here):
    fill(here, "album/a.png", "elsewhere/b.png")
    (here / "album" / "more").symlink_to(here / "elsewhere")
    (here / "album" / "c.png").symlink_to("a.png")
    assert found("album/**/*.png") == ["album/a.png", "album/c.png", "album/more/b.png"]


def test_one_photo_by_two_ways_is_found_once(here):
    fill(here, "in/a.png")
    (here / "link").symlink_to("in")
    assert found("in/a.png", "link/a.png", "link", "in/*.png") == ["in/a.png"]


def test_links_that_lead_nowhere_are_found_so_that_reading_them_says_so(here):
    fill(here, "in/a.png")
    (here / "in" / "gone.png").symlink_to("deleted.png")
    (here / "in" / "loop.png").symlink_to("loop.png")
    expected = ["in/a.png", "in/gone.png", "in/loop.png"]
    assert found("in") == found("in/*.png") == found("**/*.png") == expected


def test_an_entry_that_cannot_be_reached_does_not_hide_the_others(here, monkeypatch):
    fill(here, "in/a.png", "in/b.png", "in/closed/c.png")
    real_stat, real_listdir = os.stat, os.listdir

    def stat(path, *args, **options):
        if str(path).endswith("b.png"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_stat(path, *args, **options)

    def listdir(path="."):
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real_listdir(path)

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "listdir", listdir)
    assert found("in") == ["in/a.png", "in/b.png"]
    deep = search(["in/**/*.png"])
    assert [str(path) for path in deep.files] == ["in/a.png", "in/b.png"]
    assert [str(error) for error in deep.problems] == [
        "the folder in/closed cannot be listed: permission denied; check its rights"
    ]
    both = search(["in/closed", "in/a.png"])
    assert [str(path) for path in both.files] == ["in/a.png"] and len(both.problems) == 1


def test_pictures_and_videos_that_are_not_read_are_named(here):
    fill(here, "in/a.png", "in/b.JPE", "in/d.gif", "in/e.AVIF", "in/f.mov", "in/g.CR3", "in/h.dng", "in/i.psd")
    fill(here, "in/notes.txt", "in/.hidden.png", "in/._a.png", "in/.hidden.txt")
    (here / "in" / "folder.png").mkdir()
    (here / "in" / "results").mkdir()
    for pattern in ("in", "in/*"):
        there = search([pattern], "in/results")
        assert [path.name for path in there.files] == ["a.png", "b.JPE", "d.gif", "e.AVIF"]
        named = {reason: [path.name for path in paths] for reason, paths in there.left_out.items()}
        expected = {
            "videos are not read here": ["f.mov"],
            "camera raw": ["g.CR3", "h.dng"],
            "pictures of this kind": ["i.psd"],
            "they have no suffix": ["notes.txt"],
            "folders": ["folder.png"],
        } | ({"they are hidden": [".hidden.png"]} if pattern == "in" else {})
        assert {next(key for key in expected if reason.startswith(key)): value for reason, value in named.items()} == (
            expected
        )
    assert not search(["in/*.png"]).left_out.keys() - {"folders below a folder are not searched without --recursive"}


@pytest.mark.parametrize("is_here", [True, False])
def test_videos_are_taken_where_their_package_is_installed(here, monkeypatch, is_here):
    fill(here, "in/a.png", "in/b.MP4", "in/c.webm")
    monkeypatch.setattr("resshift_fast.images.search.reads_videos", lambda: is_here)
    there = search(["in"], videos=True)
    assert [path.name for path in there.files] == (["a.png", "b.MP4", "c.webm"] if is_here else ["a.png"])
    assert [*there.left_out] == [] if is_here else ["videos need another package: pip install 'resshift-fast[video]'"]


@pytest.mark.parametrize("is_here", [True, False])
def test_heic_is_taken_where_its_package_is_installed(here, monkeypatch, is_here):
    fill(here, "in/a.png", "in/b.HEIC", "in/c.hif")
    monkeypatch.setattr("resshift_fast.images.search.reads_heic", lambda: is_here)
    there = search(["in"])
    assert len(there.files) == (3 if is_here else 1)
    named = {} if is_here else {HEIC_NEEDS: [there.files[0].with_name("b.HEIC"), there.files[0].with_name("c.hif")]}
    assert there.left_out == named


@pytest.mark.parametrize("name", ["~photo.png", "~", "~/a.png", "~root/a.png"])
def test_files_whose_names_begin_with_a_tilde(here, name):
    fill(here, name)
    assert expand_home(name) == here.__class__(name)
    if name.endswith(".png"):
        assert found(name) == [name]


@pytest.mark.parametrize("name", ["~photo.png", "~no-such-user/x/*.png"])
def test_a_user_who_does_not_exist_is_one_problem(here, name):
    fill(here, "a.png")
    there = search([name, "a.png"])
    assert [str(path) for path in there.files] == ["a.png"]
    assert f"{name}: there is no user" in str(there.problems[0]) and f"write ./{name}" in str(there.problems[0])


def test_an_unknown_home(here, monkeypatch):
    def unknown(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(type(here), "expanduser", unknown)
    with pytest.raises(ValueError, match="the home folder is unknown"):
        expand_home("~/a.png")


def test_the_message_about_a_link_names_its_goal(here):
    (here / "a.png").symlink_to("gone.png")
    assert "a.png is a link to gone.png, which does not exist" in str(missing_file("a.png"))
