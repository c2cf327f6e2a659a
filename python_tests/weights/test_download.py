"""Downloads: complete, resumed, changed during the transfer, refused; never two versions in one file."""

import http.server
import logging
import socket

import pytest
from weights_site import (
    NAME,
    File,
    Handler,
    Site,
    by_hand,
    change,
    failure,
    interrupt_after,
    noise,
    prepare,
    serving,
    sha256,
)

from resshift_fast.weights import download
from resshift_fast.weights.download import fetch


@pytest.fixture
def site():
    site = Site()
    with serving(Handler, site) as site.url:
        yield site


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return prepare(monkeypatch, tmp_path / "cache")


# Without interruption


@pytest.fixture
def logged(caplog):
    """A function that returns what was logged since its last call, as (level, message)."""
    caplog.set_level(logging.INFO, "resshift_fast")

    def take():
        records = [(record.levelname, record.getMessage()) for record in caplog.records]
        caplog.clear()
        return records

    return take


def test_downloads_once_and_leaves_only_the_file_and_its_hash(site, cache, logged):
    path = fetch(site.file(size=len(site.content), sha256=sha256(site.content).upper()), progress=False)
    assert path == cache / NAME and path.read_bytes() == site.content
    assert logged() == [("INFO", f"{NAME}: 300,000 bytes; verified: its size, its published sha256")]
    assert {p.name for p in cache.iterdir()} - {f".{NAME}.lock"} == {NAME, f"{NAME}.sha256"}
    assert f"{sha256(site.content)}  {NAME}" in (cache / f"{NAME}.sha256").read_text()
    assert fetch(site.file(), progress=False) == path
    assert len(site.requests) == 1
    assert logged() == []


def test_progress_bar(site, capsys):
    fetch(site.file())
    shown = capsys.readouterr()
    assert NAME in shown.err and "293k/293k" in shown.err and shown.out == ""


def test_licence_is_stated_once_before_the_download(site, logged):
    file = site.file(licence="S-Lab License 1.0, non-commercial")
    seen = []
    site.after = [lambda: seen.append(logged())]
    fetch(file, progress=False)
    words = "its licence allows non-commercial use only: S-Lab License 1.0, non-commercial"
    assert seen == [[("WARNING", f"{NAME}: {words}")]]
    logged()
    fetch(file, progress=False)
    assert logged() == []


def test_free_licence_is_named(site, logged):
    fetch(site.file(licence="MIT"), progress=False)
    assert logged()[0] == ("INFO", f"{NAME}: licence: MIT")


def test_length_not_announced(site):
    site.says_length = False
    assert fetch(site.file(), progress=False).read_bytes() == site.content


def redirection(target):
    class Redirection(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *args):
            pass

    return Redirection


def test_resumes_through_a_redirection(site, cache):
    with serving(redirection(site.url)) as moved:
        interrupt_after(1000, site, cache, File(NAME, moved))
        assert fetch(File(NAME, moved), progress=False).read_bytes() == site.content
    assert site.requests[0]["Range"] == "bytes=1000-"


def test_part_of_another_address_is_not_continued(site, cache):
    interrupt_after(1000, site, cache)
    with serving(redirection(site.url)) as moved:
        assert fetch(File(NAME, moved), progress=False).read_bytes() == site.content
    assert "Range" not in site.requests[0]


# Broken connections


@pytest.mark.parametrize("validator", ["etag", "modified"])
def test_resumes_within_one_call(site, validator):
    if validator == "modified":
        site.etag, site.modified = None, "Wed, 21 Oct 2015 07:28:00 GMT"
    site.cut_after = [100_000, 50_000, 1, 2, 3, 4, 5, 6]
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert [request.get("Range") for request in site.requests] == [
        None,
        *(f"bytes={start}-" for start in (100_000, 150_000, 150_001, 150_003, 150_006, 150_010, 150_015, 150_021)),
    ]
    assert site.requests[1]["If-Range"] == (site.etag or site.modified)


def test_a_later_process_resumes(site, cache):
    interrupt_after(123_456, site, cache)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert [request.get("Range") for request in site.requests] == ["bytes=123456-"]
    assert not list(cache.glob("*.part*"))


def test_bar_counts_resumed_bytes(site, cache, capsys):
    interrupt_after(200_000, site, cache)
    capsys.readouterr()
    fetch(site.file())
    assert "293k/293k" in capsys.readouterr().err


def test_server_without_ranges_starts_over(site, cache):
    interrupt_after(100_000, site, cache)
    site.ranges = False
    assert fetch(site.file(), progress=False).read_bytes() == site.content


def test_without_a_validator_nothing_is_resumed(site, cache):
    site.etag = None
    site.cut_after = [100_000]
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert ["Range" in request for request in site.requests] == [False, False]


def test_weak_etag_is_no_validator(site):
    site.etag = 'W/"one"'
    site.cut_after = [100_000]
    fetch(site.file(), progress=False)
    assert ["Range" in request for request in site.requests] == [False, False]


@pytest.mark.parametrize("honours", [True, False], ids=["if-range", "if-range-ignored"])
@pytest.mark.parametrize("size", [300_000, 350_000, 90_000], ids=["same-size", "longer", "shorter-than-part"])
def test_changed_file_is_never_joined_with_the_old_part(site, cache, honours, size):
    site.cut_after, site.honours_if_range = [100_000], honours
    site.after = [change(site, size)]
    assert fetch(site.file(), progress=False).read_bytes() == noise(2, size)


def test_changed_between_processes(site, cache):
    interrupt_after(100_000, site, cache)
    change(site)()
    assert fetch(site.file(), progress=False).read_bytes() == noise(2)


@pytest.mark.parametrize("value", ["bytes 5-299999/300000", "bytes 100000-299999/300001", "nonsense"])
def test_wrong_content_range_starts_over(site, cache, value):
    interrupt_after(100_000, site, cache)
    site.content_range = value
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert ["Range" in request for request in site.requests] == [True, False]


def test_complete_part_needs_no_request(site, cache):
    interrupt_after(100_000, site, cache)
    (cache / f"{NAME}.part").write_bytes(site.content)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert site.requests == []


@pytest.mark.parametrize("state", ["", "{", "[]", '{"url": 3}', "longer"])
def test_part_with_an_unusable_state_starts_over(site, cache, state):
    interrupt_after(100_000, site, cache)
    if state == "longer":
        (cache / f"{NAME}.part").write_bytes(bytes(400_000))
    else:
        (cache / f"{NAME}.part.json").write_text(state)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert "Range" not in site.requests[0]


def test_gives_up_when_nothing_new_arrives(site, cache):
    site.cut_after = [1000] + [0] * 50
    failure(
        site.file(), "3 tries brought nothing new", "1000 of 300000", "run again to continue", *by_hand(cache, site)
    )
    assert len(site.requests) == 4
    assert not (cache / NAME).exists()


def test_a_server_that_always_cuts_off_at_the_same_byte_fails(site):
    site.ranges, site.cut_after = False, [1000] * 50
    failure(site.file(), "1000 of 300000")
    assert len(site.requests) <= 5


def test_silent_server_times_out(site, cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    site.pause = 0.5
    failure(site.file(), "timed out", *by_hand(cache, site))


def test_interrupt_leaves_the_part(site, cache, monkeypatch):
    read = download._read
    calls = []

    def interrupted(response):
        calls.append(1)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return read(response)

    monkeypatch.setattr(download, "_read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(site.file(), progress=False)
    kept = (cache / f"{NAME}.part").read_bytes()
    assert kept and site.content.startswith(kept) and not (cache / NAME).exists()
    monkeypatch.setattr(download, "_read", read)
    fetch(site.file(), progress=False)
    assert site.requests[-1].get("Range") == f"bytes={len(kept)}-"


# Refusals


@pytest.mark.parametrize("status", [204, 403, 404, 410])
def test_permanent_http_error(site, cache, status):
    site.statuses = [status] * 9
    failure(site.file(), f"HTTP {status}", *by_hand(cache, site))
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_temporary_http_error(site, cache, status):
    site.statuses = [status]
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    (cache / NAME).unlink()
    site.statuses = [status] * 9
    failure(site.file(), f"HTTP {status}", *by_hand(cache, site))


def test_web_page_instead_of_the_file(site, cache):
    interrupt_after(1000, site, cache)
    site.content_type = "text/html; charset=utf-8"
    failure(site.file(), "web page", *by_hand(cache, site))
    assert (cache / f"{NAME}.part").stat().st_size == 1000, "a log-in page must not replace the partial file"


def test_no_server_at_the_address(site, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = File(NAME, f"http://127.0.0.1:{port}/x")
    failure(file, "no connection to 127.0.0.1", str(cache / NAME))


def test_offline(site, monkeypatch):
    def unresolved(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    file = File(NAME, "http://weights.invalid/w.pth")
    failure(file, "weights.invalid", "Name or service not known", "offline", file.url, "--weights FILE")


def test_message_names_the_right_option(site):
    site.statuses = [404]
    failure(site.file(), "autoencoder=FILE", "--autoencoder FILE", option="autoencoder")


def test_other_schemes_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    failure(File(NAME, (tmp_path / "w.pth").as_uri()), "not a web address")
