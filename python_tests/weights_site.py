"""A local HTTP server for tests of downloads, which can resume, refuse, cut off, change or misreport its file."""

import contextlib
import hashlib
import http.server
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from resshift_fast.weights import download
from resshift_fast.weights.download import DownloadError, fetch

NAME = "weights.pth"


@dataclass(frozen=True)
class File:
    """The attributes of the catalog's WeightFile that `fetch` reads."""

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
    """Behaviour of the server; tests change it between and during requests."""

    content: bytes = field(default_factory=lambda: noise(1))
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    honours_if_range: bool = True
    cut_after: list[int | None] = field(default_factory=list)  # by request: bytes of the body to send; None for all
    statuses: list[int] = field(default_factory=list)  # by request: HTTP status instead of the file; 0 for the file
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


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler], site: Site | None = None) -> Iterator[str]:
    """Answer requests at the yielded address from a thread."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.site = site
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/release/{NAME}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def prepare(monkeypatch, folder):
    """Have `fetch` download into `folder` without a proxy and with short pauses."""
    monkeypatch.setenv("RESSHIFT_FAST_CACHE", str(folder))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "RETRY_DELAY_SECONDS", 0.001)
    monkeypatch.setattr(download, "TIMEOUT_SECONDS", 5.0)
    monkeypatch.setattr(download, "_POLL_SECONDS", 0.01)
    return folder


def failure(file, *words, **options):
    """The message of a failing `fetch`: one line, in which all `words` occur."""
    with pytest.raises(DownloadError) as error:
        fetch(file, progress=False, **options)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


def by_hand(cache, site):
    """Words that a message needs so that the user can download the file without the package."""
    return site.url, str(cache / NAME), "weights=FILE", "--weights FILE"


def interrupt_after(count, site, cache, file=None):
    """Leave a partial file of `count` bytes, as a process whose connection broke and could not be resumed."""
    site.cut_after, site.statuses = [count], [0, 403]
    failure(file or site.file(), "HTTP 403", "run again to continue", str(cache / f"{NAME}.part"))
    assert (cache / f"{NAME}.part").stat().st_size == count
    site.requests.clear()


def change(site, size=300_000):
    def apply():
        site.content, site.etag = noise(2, size), '"two"'

    return apply
