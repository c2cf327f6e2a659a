"""scripts/qt_resources.py: files of a Qt resource collection, and credits of photos."""

import importlib
import sys
from pathlib import Path

import pytest
from qt_collection import COMPRESSED, ZSTANDARD, collection

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def resources(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    yield importlib.import_module("qt_resources")
    sys.modules.pop("qt_resources", None)


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("flags", [0, COMPRESSED])
def test_files_are_read(resources, tmp_path, version, flags):
    files = {"bärin.webp": bytes(range(256)), "README": b"none\n" * 9, "empty": b""}
    path = tmp_path / "some.rcc"
    path.write_bytes(collection(files, version, flags))
    assert resources.read(path) == {f"/art/{name}": content for name, content in files.items()}


@pytest.mark.parametrize("content", [b"", b"qres", b"PK" * 40, collection({"a": b"b"}, version=4)])
def test_other_files_are_refused(resources, tmp_path, content):
    path = tmp_path / "other.rcc"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"other\.rcc is no Qt resource collection of version 1 to 3"):
        resources.read(path)


def test_zstandard_is_refused(resources, tmp_path):
    path = tmp_path / "new.rcc"
    path.write_bytes(collection({"a": b"b"}, flags=ZSTANDARD))
    with pytest.raises(ValueError, match="rcc --reverse unpacks them"):
        resources.read(path)


def test_credits(resources):
    readme = """Copyright: © 2014 Jee & Rani
Source: https://example.org/File:Butterfly.jpg
License: CC-BY-SA-4.0
Comments: cropping, sharpening
Files: butterfly.webp

Files:
wonders/petra.webp
wonders/colosseum.webp
License: Public Domain
Copyright: Berthold Werner

Copyright: somebody
Files: unlicensed.webp
"""
    credit = resources.Credit
    assert resources.credits(readme) == {
        "butterfly.webp": credit("2014 Jee & Rani", "CC-BY-SA-4.0", "https://example.org/File:Butterfly.jpg"),
        "wonders/petra.webp": credit("Berthold Werner", "Public Domain"),
        "wonders/colosseum.webp": credit("Berthold Werner", "Public Domain"),
    }
