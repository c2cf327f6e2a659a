"""What is checked before a download is kept, and files beside it that hold junk or are links."""

import logging
import os

import pytest
from weights_site import NAME, Handler, Site, change, failure, interrupt_after, noise, prepare, serving, sha256

from resshift_fast.weights.download import fetch


@pytest.fixture
def site():
    site = Site()
    with serving(Handler, site) as site.url:
        yield site


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return prepare(monkeypatch, tmp_path / "cache")


def whole(path):
    """Stands for the check of an archive's end: accepts the file of the site."""
    if path.read_bytes() != noise(1):
        raise ValueError(f"{path} is truncated or damaged")


def test_a_file_without_a_length_that_is_cut_is_not_kept(site, cache):
    site.says_length, site.cut_after = False, [200_000]
    text = failure(site.file(), "what was received is truncated", check=whole)
    assert f"{NAME}.part" not in text
    assert not (cache / NAME).exists() and not (cache / f"{NAME}.sha256").exists()
    assert fetch(site.file(), progress=False, check=whole).read_bytes() == site.content


@pytest.mark.parametrize("size", [None, 300_000])
@pytest.mark.parametrize("sha", ["published", "pinned", "unknown"])
@pytest.mark.parametrize("length", [True, False])
@pytest.mark.parametrize("words", ["its keys", None])
def test_one_line_says_what_was_verified(site, cache, caplog, size, sha, length, words):
    caplog.set_level(logging.INFO, "resshift_fast")
    digest, site.says_length = sha256(site.content), length
    if sha == "pinned":
        cache.mkdir()
        (cache / f"{NAME}.sha256").write_text(f"{digest}  {NAME}\n")
    fetch(site.file(size=size, sha256=digest if sha == "published" else None), progress=False, check=lambda _: words)
    (record,) = caplog.records
    verified, _, unverified = record.getMessage().removeprefix(f"{NAME}: 300,000 bytes; ").partition("; not verified: ")
    assert ("its size" in verified) == (size is not None)
    assert ("the length that the server announced" in verified) == (size is None and length)
    assert ("its length" in unverified) == (size is None and not length)
    assert ("its keys" in verified) == (words is not None)
    assert ("its published sha256" in verified) == (sha == "published")
    assert (f"the sha256 in {cache / NAME}.sha256" in verified) == (sha == "pinned")
    assert (f"its sha256 {digest}, since none is" in unverified) == (sha == "unknown")
    assert record.levelname == ("WARNING" if unverified else "INFO")


@pytest.mark.parametrize("lengths", [["-5"], ["3e5"], ["+300000"], ["²"], ["10" * 20], ["300000", "5"], [""]])
def test_a_length_that_makes_no_sense(site, cache, lengths, monkeypatch):
    real = Handler.send_header

    def send_header(self, name, value):
        for one in lengths if name == "Content-Length" else [value]:
            real(self, name, one if name != "Content-Length" else one.encode().decode("latin-1"))

    monkeypatch.setattr(Handler, "send_header", send_header)
    failure(site.file(), "announces a length of")
    assert not (cache / NAME).exists()


def test_a_compressed_answer_is_not_kept(site, cache, monkeypatch):
    real = Handler.end_headers
    monkeypatch.setattr(Handler, "end_headers", lambda self: self.send_header("Content-Encoding", "gzip") or real(self))
    failure(site.file(), "compressed (gzip)")
    assert not (cache / NAME).exists()


def test_a_part_of_zeros_is_received_again(site, cache):
    interrupt_after(100_000, site, cache)
    (cache / f"{NAME}.part").write_bytes(bytes(100_000))
    assert fetch(site.file(), progress=False, check=whole).read_bytes() == site.content
    assert len(site.requests) == 2 and "Range" not in site.requests[1]


def test_a_file_of_another_network_is_refused_each_time(site, cache):
    change(site)()
    for _ in range(2):
        failure(site.file(), "truncated or damaged", check=whole)
    assert len(site.requests) == 2


def test_files_put_there_by_hand_are_checked_when_they_are_read(site, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(b"mine")
    assert fetch(site.file(), progress=False, check=whole).read_bytes() == b"mine"


@pytest.mark.parametrize("form", ["{hash}  {name}\n", "{HASH} *{name}\n", "\\{hash}  {name}\n", "{hash}"])
@pytest.mark.parametrize("right", [True, False])
def test_a_hash_that_the_user_pins(site, cache, form, right):
    cache.mkdir()
    digest = sha256(site.content if right else b"another")
    (cache / f"{NAME}.sha256").write_text(form.format(hash=digest, HASH=digest.upper(), name=NAME))
    if right:
        assert fetch(site.file(), progress=False).read_bytes() == site.content
        assert fetch(site.file(), progress=False) and len(site.requests) == 1
    else:
        failure(site.file(), digest, f"{NAME}.sha256 says")
        assert not (cache / NAME).exists()


def test_a_pinned_hash_counts_for_files_put_there_by_hand(site, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(b"mine")
    (cache / f"{NAME}.sha256").write_text(f"{'0' * 64}  {NAME}\n")
    failure(site.file(), "damaged or another file", "0" * 64)


STATES = {
    "deep": b"[" * 100_000,
    "binary": bytes(range(256)),
    "list": b"[1, 2]",
    "negative": b'{"url": URL, "validator": "x", "total": -1}',
    "boolean": b'{"url": URL, "validator": "x", "total": true}',
    "header": b'{"url": URL, "validator": "x\\r\\nCookie: y", "total": 300000}',
    "accent": b'{"url": URL, "validator": "\\u00e9\\u4e00", "total": 300000}',
}


@pytest.mark.parametrize("state", STATES)
def test_a_state_of_junk_is_not_believed(site, cache, state):
    interrupt_after(100_000, site, cache)
    (cache / f"{NAME}.part.json").write_bytes(STATES[state].replace(b"URL", f'"{site.url}"'.encode()))
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert "Range" not in site.requests[0] and "Cookie" not in site.requests[0]


NAMES = [f"{NAME}.part", f"{NAME}.part.json", f"{NAME}.sha256", f".{NAME}.lock"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["link", "dangling", "hard-link", "pipe"])
def test_nothing_is_written_through_a_link(site, cache, tmp_path, name, how):
    if how == "pipe" and not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    cache.mkdir()
    mine = tmp_path / "mine"
    if how != "dangling":
        mine.write_bytes(b"precious")
    if how == "pipe":
        os.mkfifo(cache / name)
    elif how == "hard-link":
        os.link(mine, cache / name)
    else:
        (cache / name).symlink_to(mine)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert not mine.exists() if how == "dangling" else mine.read_bytes() == b"precious"
    assert sha256(site.content) in (cache / f"{NAME}.sha256").read_text()
