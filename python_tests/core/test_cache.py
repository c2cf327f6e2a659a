"""Where the cache folder is, on every platform."""

import os
import sys
from pathlib import Path

import pytest

from resshift_fast.core.cache import cache_dir


@pytest.mark.parametrize(
    "platform, environment, expected",
    [
        ("linux", {"RESSHIFT_FAST_CACHE": "/data/weights", "XDG_CACHE_HOME": "/xdg"}, "/data/weights"),
        ("linux", {"RESSHIFT_FAST_CACHE": "~/weights"}, "/home/me/weights"),
        ("linux", {"RESSHIFT_FAST_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/resshift_fast"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/resshift_fast"),
        ("linux", {}, "/home/me/.cache/resshift_fast"),
        ("darwin", {"XDG_CACHE_HOME": "/xdg"}, "/home/me/Library/Caches/resshift_fast"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/resshift_fast"),
        ("win32", {}, "/home/me/AppData/Local/resshift_fast"),
    ],
    ids=["variable", "variable-home", "xdg", "xdg-relative", "linux", "macos", "windows", "windows-without-variable"],
)
@pytest.mark.skipif(os.name == "nt", reason="POSIX paths")
def test_cache_dir(monkeypatch, platform, environment, expected):
    for name in ("RESSHIFT_FAST_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "/home/me", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_dir() == Path(expected)


def test_relative_cache_is_made_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", "here")
    assert cache_dir() == tmp_path / "here"


def test_unknown_home(monkeypatch):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("RESSHIFT_FAST_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(OSError, match="RESSHIFT_FAST_CACHE=FOLDER"):
        cache_dir()
