"""Pinned hashes and sizes are demanded of downloads and of files that are there."""

import logging
import subprocess

import pytest
from weights_site import NAME, Handler, Site, failure, noise, prepare, serving, sha256

from resshift_fast.weights.download import DownloadError, fetch
from resshift_fast.weights.pins import pin


@pytest.fixture
def site():
    site = Site()
    with serving(Handler, site) as site.url:
        yield site


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return prepare(monkeypatch, tmp_path / "cache")


@pytest.mark.parametrize("size", [None, 300_000])
def test_a_pinned_download_is_kept_and_another_refused(site, cache, size, caplog):
    caplog.set_level(logging.INFO, "resshift_fast")
    right = sha256(site.content)
    site.content = noise(2)
    pin(site.file(), right.upper(), size)
    failure(site.file(), right, f"{NAME}.sha256 says")
    assert not (cache / NAME).exists()
    site.content = noise(1)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    line = caplog.messages[-1]
    assert f"the sha256 in {cache / NAME}.sha256" in line and ("its size" in line) == (size is not None)
    assert subprocess.run(["sha256sum", "-c", f"{NAME}.sha256"], cwd=cache, capture_output=True).returncode == 0


def test_another_size_is_refused_before_it_is_received(site, cache):
    pin(site.file(), sha256(site.content), 299_999)
    failure(site.file(), "the server offers 300000 bytes, expected 299999")
    assert not (cache / f"{NAME}.part").exists()


def test_a_file_that_is_there_is_pinned_by_its_own_hash(site, cache):
    fetch(site.file(), progress=False)
    record = pin(site.file())
    assert (record.sha256, record.size) == (sha256(site.content), 300_000)
    assert fetch(site.file(), progress=False)
    with pytest.raises(DownloadError, match=r"not the file to pin: it has 300000 bytes and the sha256 [0-9a-f]{64}"):
        pin(site.file(), "0" * 64)
    (cache / NAME).write_bytes(noise(3))
    with pytest.raises(DownloadError, match="is damaged or another file"):
        fetch(site.file(), progress=False)


REFUSED = {
    "no hash": (("abc",), ValueError, "expected 64 hexadecimal digits"),
    "no size": (("0" * 64, 0), ValueError, "expected a positive number of bytes"),
    "nothing to take it from": ((), FileNotFoundError, "give one, weights.pth=SHA256"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_pin_that_makes_no_sense(site, cache, case):
    arguments, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        pin(site.file(), *arguments)
    assert not (cache / f"{NAME}.sha256").exists()
