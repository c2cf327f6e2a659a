"""Downloads against a server on this computer that resumes, refuses, breaks off, changes its mind and lies."""

import errno
import hashlib
import http.server
import multiprocessing
import os
import random
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from resshift_fast import download
from resshift_fast.download import DownloadError, cache_dir, fetch, local_path

NAME = "weights.pth"


@dataclass(frozen=True)
class File:
    """What fetch reads of the catalog's WeightFile."""

    filename: str
    url: str | None
    size: int | None = None
    sha256: str | None = None
    licence: str = ""


def noise(seed: int, size: int = 300_000) -> bytes:
    return random.Random(seed).randbytes(size)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass
class Site:
    """What the server does; tests change it between and during requests."""

    content: bytes = field(default_factory=lambda: noise(1))
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    honours_if_range: bool = True
    cut_after: list[int | None] = field(default_factory=list)  # bytes of the body before the end, by request
    statuses: list[int] = field(default_factory=list)  # instead of the file, by request
    content_type: str = "application/octet-stream"
    announced_extra: int = 0
    says_length: bool = True
    content_range: str | None = None
    pause: float = 0.0
    after: list = field(default_factory=list)  # callables, one run after each request
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def file(self, **known) -> File:
        return File(NAME, self.url, **known)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        site = self.server.site
        site.requests.append(dict(self.headers))
        if site.statuses and (status := site.statuses.pop(0)):
            self.send_error(status)
            return
        body, start = site.content, self.start(site)
        if start is not None and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
            return
        self.send_response(206 if start is not None else 200)
        if start is not None:
            value = site.content_range or f"bytes {start}-{len(body) - 1}/{len(body)}"
            self.send_header("Content-Range", value)
            body = body[start:]
        if site.etag:
            self.send_header("ETag", site.etag)
        if site.modified:
            self.send_header("Last-Modified", site.modified)
        if site.says_length:
            self.send_header("Content-Length", str(len(body) + site.announced_extra))
        self.send_header("Content-Type", site.content_type)
        self.end_headers()
        cut = site.cut_after.pop(0) if site.cut_after else None
        time.sleep(site.pause)
        self.wfile.write(body if cut is None else body[:cut])
        if site.after:
            site.after.pop(0)()

    def start(self, site):
        wanted = self.headers.get("Range")
        if not wanted or not site.ranges:
            return None
        named = self.headers.get("If-Range")
        if site.honours_if_range and named not in (None, site.etag, site.modified):
            return None
        return int(wanted.removeprefix("bytes=").rstrip("-"))

    def log_message(self, *args):
        pass


@pytest.fixture
def site():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.site = Site(url=f"http://127.0.0.1:{server.server_port}/release/{NAME}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server.site
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "RETRY_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 5.0)
    monkeypatch.setattr(download, "_POLL_SECONDS", 0.01)
    return tmp_path / "cache"


def failure(file, *words, **options):
    """The one line that fetch fails with; it always says how to do without the download."""
    with pytest.raises(DownloadError) as error:
        fetch(file, progress=False, **options)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def by_hand(cache, site):
    return site.url, str(cache / NAME), "weights=FILE", "--weights FILE"


def interrupt_after(count, site, cache):
    """Leave a part of `count` bytes behind, as a process does whose connection ended for good."""
    site.cut_after, site.statuses = [count], [0, 403]
    failure(site.file(), "HTTP 403", "run again to go on", str(cache / f"{NAME}.part"))
    assert (cache / f"{NAME}.part").stat().st_size == count
    site.requests.clear()


# The cache


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
    ids=["moved", "moved-below-home", "xdg", "xdg-relative", "linux", "macos", "windows", "windows-without-variable"],
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

    monkeypatch.delenv("RESSHIFT_FAST_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("LOCALAPPDATA", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(DownloadError, match="RESSHIFT_FAST_CACHE=FOLDER"):
        cache_dir()


def test_embedded_file_needs_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "__file__", str(tmp_path / "package" / "download.py"))
    file = File("nano.safetensors", None)
    with pytest.raises(FileNotFoundError, match=r"nano\.safetensors is missing"):
        fetch(file)
    (tmp_path / "package" / "weights").mkdir(parents=True)
    local_path(file).write_bytes(b"x")
    assert fetch(file) == tmp_path / "package" / "weights" / "nano.safetensors"


@pytest.mark.parametrize("name", ["../up.pth", "a/b.pth", "a\\b.pth", "..", ""])
def test_a_file_name_cannot_leave_the_cache(name):
    with pytest.raises(ValueError, match="bare file name"):
        local_path(File(name, "http://127.0.0.1/x"))


# The whole file at once


def test_downloads_once_and_leaves_only_the_file_and_its_hash(site, cache, capsys):
    path = fetch(site.file(size=len(site.content), sha256=sha256(site.content).upper()), progress=False)
    assert path == cache / NAME and path.read_bytes() == site.content
    assert {p.name for p in cache.iterdir()} - {f".{NAME}.lock"} == {NAME, f"{NAME}.sha256"}
    assert f"{sha256(site.content)}  {NAME}" in (cache / f"{NAME}.sha256").read_text()
    assert fetch(site.file(), progress=False) == path
    assert len(site.requests) == 1
    assert capsys.readouterr().err == ""


def test_progress_bar(site, capsys):
    fetch(site.file())
    shown = capsys.readouterr()
    assert NAME in shown.err and "293k/293k" in shown.err and shown.out == ""


def test_licence_is_stated_once_before_the_download(site, capsys):
    file = site.file(licence="non-commercial use only")
    seen = []
    site.after = [lambda: seen.append(capsys.readouterr().err)]
    fetch(file, progress=False)
    words = "published by the ResShift authors under a non-commercial licence (non-commercial use only)"
    assert seen == [f"{NAME}: {words}\n"]
    fetch(file, progress=False)
    assert capsys.readouterr().err == ""


def test_free_licence_is_named(site, capsys):
    fetch(site.file(licence="MIT"), progress=False)
    assert capsys.readouterr().err == f"{NAME}: licence: MIT\n"


def test_length_not_announced(site):
    site.says_length = False
    assert fetch(site.file(), progress=False).read_bytes() == site.content


def test_redirect_keeps_the_range(site, cache):
    target = site.url
    interrupt_after(1000, site, cache)

    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        moved = replace(site.file(), url=f"http://127.0.0.1:{server.server_port}/")
        assert fetch(moved, progress=False).read_bytes() == site.content
        server.shutdown()
    # The part belongs to the other address, so nothing of it is used.
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


def test_server_without_ranges_starts_anew(site, cache):
    interrupt_after(100_000, site, cache)
    site.ranges = False
    assert fetch(site.file(), progress=False).read_bytes() == site.content


def test_without_a_validator_nothing_is_joined(site, cache):
    site.etag = None
    site.cut_after = [100_000]
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert ["Range" in request for request in site.requests] == [False, False]


def test_weak_etag_is_no_validator(site):
    site.etag = 'W/"one"'
    site.cut_after = [100_000]
    fetch(site.file(), progress=False)
    assert ["Range" in request for request in site.requests] == [False, False]


def change(site, size=300_000):
    def apply():
        site.content, site.etag = noise(2, size), '"two"'

    return apply


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
def test_wrong_content_range_starts_anew(site, cache, value):
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
def test_part_with_an_unusable_state_starts_anew(site, cache, state):
    interrupt_after(100_000, site, cache)
    if state == "longer":
        (cache / f"{NAME}.part").write_bytes(bytes(400_000))
    else:
        (cache / f"{NAME}.part.json").write_text(state)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert "Range" not in site.requests[0]


def test_gives_up_when_nothing_new_arrives(site, cache):
    site.cut_after = [1000] + [0] * 50
    failure(site.file(), "3 tries brought nothing new", "1000 of 300000", "run again to go on", *by_hand(cache, site))
    assert len(site.requests) == 4
    assert not (cache / NAME).exists()


def test_a_server_that_always_breaks_at_the_same_place_ends(site):
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


@pytest.mark.parametrize("status", [403, 404, 410])
def test_lasting_http_error(site, cache, status):
    site.statuses = [status] * 9
    failure(site.file(), f"HTTP {status}", *by_hand(cache, site))
    assert len(site.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_http_error(site, cache, status):
    site.statuses = [status]
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    (cache / NAME).unlink()
    site.statuses = [status] * 9
    failure(site.file(), f"HTTP {status}", *by_hand(cache, site))


def test_web_page_instead_of_the_file(site, cache):
    interrupt_after(1000, site, cache)
    site.content_type = "text/html; charset=utf-8"
    failure(site.file(), "web page", *by_hand(cache, site))
    assert (cache / f"{NAME}.part").stat().st_size == 1000, "a log-in page must not cost what was there"


def test_nobody_listens(site, cache):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = replace(site.file(), url=f"http://127.0.0.1:{port}/x")
    failure(file, "no connection to 127.0.0.1", str(cache / NAME))


def test_offline(site, monkeypatch):
    def unresolved(*args, **kwargs):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unresolved)
    file = replace(site.file(), url="http://weights.invalid/w.pth")
    failure(file, "weights.invalid", "Name or service not known", "offline", file.url, "--weights FILE")


def test_message_names_the_right_option(site):
    site.statuses = [404]
    failure(site.file(), "autoencoder=FILE", "--autoencoder FILE", option="autoencoder")


def test_other_schemes_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"x")
    failure(File(NAME, (tmp_path / "w.pth").as_uri()), "not a web address")


# Size and hash


def test_wrong_announced_length(site):
    site.announced_extra = 10
    failure(site.file(), "tries brought nothing new")
    site.ranges = False
    failure(site.file(), "300000 of 300010 bytes")


def test_size_is_not_the_known_one(site, cache):
    failure(site.file(size=299_999), "offers 300000 bytes, expected 299999", *by_hand(cache, site))
    assert not (cache / NAME).exists()


@pytest.mark.parametrize("size", [299_999, 300_001], ids=["too-long", "too-short"])
def test_known_size_without_announced_length(site, cache, size):
    site.says_length = False
    failure(site.file(size=size), str(size))
    assert not (cache / NAME).exists()


def test_empty_answer(site):
    site.content = b""
    failure(site.file(), "0 of")


def test_hash_is_not_the_known_one(site, cache):
    failure(site.file(sha256="0" * 64), sha256(site.content), "0" * 64, *by_hand(cache, site))
    assert not (cache / NAME).exists()
    assert fetch(site.file(sha256=sha256(site.content)), progress=False).read_bytes() == site.content


def rewrite(path, content, keep_time):
    status = path.stat()
    path.write_bytes(content)
    offset = 0 if keep_time else 10**9
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + offset))


@pytest.mark.parametrize(
    "content, keep_time, verify, noticed",
    [
        (noise(1)[:-1], True, False, True),
        (noise(2), False, False, True),
        (noise(2), True, False, False),
        (noise(2), True, True, True),
        (noise(1), False, False, False),
    ],
    ids=["truncated", "changed", "changed-with-old-time", "changed-with-old-time-verified", "only-touched"],
)
@pytest.mark.parametrize("known", [True, False], ids=["known-hash", "recorded-hash"])
def test_later_corruption(site, cache, content, keep_time, verify, noticed, known):
    file = site.file(sha256=sha256(site.content) if known else None)
    path = fetch(file, progress=False)
    rewrite(path, content, keep_time)
    if noticed:
        text = failure(file, str(path), "damaged or another file", "delete it", verify=verify)
        assert ("on purpose" in text) is not known
        assert path.read_bytes() == content, "a file that the user may have put there is not removed"
    else:
        assert fetch(file, progress=False, verify=verify) == path
    assert len(site.requests) == 1


def test_unchanged_files_are_not_hashed_again(site, monkeypatch):
    path = fetch(site.file(), progress=False)
    os.utime(path)
    calls, whole = [], download._sha256
    monkeypatch.setattr(download, "_sha256", lambda path: calls.append(path) or whole(path))
    for _ in range(3):
        fetch(site.file(), progress=False)
    assert calls == [path]


def test_file_put_there_by_hand(site, cache):
    cache.mkdir()
    (cache / NAME).write_bytes(site.content)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert sha256(site.content) in (cache / f"{NAME}.sha256").read_text()
    (cache / f"{NAME}.sha256").unlink()
    failure(site.file(sha256="0" * 64), "0" * 64)
    failure(site.file(size=5), "300000 bytes, not 5")
    assert site.requests == []


def test_second_download_is_compared_with_the_first(site, cache):
    path = fetch(site.file(), progress=False)
    path.unlink()
    first = site.content
    change(site)()
    failure(site.file(), sha256(first), f"{NAME}.sha256", "another version")
    (cache / f"{NAME}.sha256").unlink()
    assert fetch(site.file(), progress=False).read_bytes() == noise(2)


@pytest.mark.parametrize("record", [b"", b"\xff\xfe", b"# size x"], ids=["empty", "binary", "cut"])
def test_damaged_record_is_made_again(site, cache, record):
    fetch(site.file(), progress=False)
    (cache / f"{NAME}.sha256").write_bytes(record)
    fetch(site.file(), progress=False)
    assert sha256(site.content) in (cache / f"{NAME}.sha256").read_text()


# The disk


def test_cache_that_is_a_file(site, cache):
    cache.write_bytes(b"")
    failure(site.file(), "could not be kept", "RESSHIFT_FAST_CACHE=FOLDER", *by_hand(cache, site))
    cache.unlink()


def refuse_writing(error):
    def opened(path, mode="r", *args, **kwargs):
        if "a" in mode:
            raise error
        return open(path, mode, *args, **kwargs)

    return opened


def test_unwritable_cache(site, cache, monkeypatch):
    error = PermissionError(errno.EACCES, "Permission denied")
    monkeypatch.setattr(download, "open", refuse_writing(error), raising=False)
    failure(site.file(), "Permission denied", "RESSHIFT_FAST_CACHE=FOLDER", *by_hand(cache, site))


def test_complete_cache_may_be_read_only(site, cache, monkeypatch):
    fetch(site.file(), progress=False)
    (cache / f"{NAME}.sha256").unlink()

    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(download, "open", refuse_writing(PermissionError(errno.EACCES, "")), raising=False)
    monkeypatch.setattr(Path, "write_text", refuse)
    assert fetch(site.file(), progress=False).read_bytes() == site.content


def test_too_little_space_is_seen_before_the_transfer(site, cache, monkeypatch):
    usage = download.shutil.disk_usage(os.getcwd())
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    failure(site.file(), "MB needed", *by_hand(cache, site))


def test_disk_full_in_the_middle(site, cache, monkeypatch):
    read, calls = download._read, []

    def fails_later(response):
        calls.append(1)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return read(response)

    monkeypatch.setattr(download, "_read", fails_later)
    failure(site.file(), "No space left on device", "make room", *by_hand(cache, site))
    monkeypatch.setattr(download, "_read", read)
    assert fetch(site.file(), progress=False).read_bytes() == site.content
    assert "Range" in site.requests[-1]


# Several at once


def test_threads_download_once(site, capsys):
    site.pause = 0.2
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(site.file(), progress=False), range(4)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == site.content
    assert len(site.requests) == 1
    assert "waiting for another process" in capsys.readouterr().err


def fetch_and_exit(file):
    download._POLL_SECONDS = 0.01
    fetch(file, progress=False)


def test_processes_download_once(site, cache):
    site.pause = 0.3
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=fetch_and_exit, args=(site.file(),)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (cache / NAME).read_bytes() == site.content and len(site.requests) == 1


def test_lock_of_a_dead_process_does_not_hold(site, cache):
    cache.mkdir()
    (cache / f".{NAME}.lock").write_bytes(b"")
    assert fetch(site.file(), progress=False).read_bytes() == site.content


def test_without_locks_each_has_its_own_part(site, cache, monkeypatch):
    monkeypatch.setattr(download, "_try_lock", lambda handle: None)
    site.pause = 0.1
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: fetch(site.file(), progress=False), range(3)))
    assert paths[0].read_bytes() == site.content
    assert {p.name for p in cache.iterdir()} - {f".{NAME}.lock"} == {NAME, f"{NAME}.sha256"}
