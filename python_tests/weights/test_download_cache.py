"""The folder of downloaded weights: verification, full and read-only disks, several users at once."""

import errno
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from weights_site import NAME, File, Handler, Site, by_hand, change, failure, noise, prepare, serving, sha256

from resshift_fast.weights import download
from resshift_fast.weights.download import fetch, local_path


@pytest.fixture
def site():
    site = Site()
    with serving(Handler, site) as site.url:
        yield site


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    return prepare(monkeypatch, tmp_path / "cache")


# The cache


def test_embedded_file_needs_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "__file__", str(tmp_path / "package" / "weights" / "download.py"))
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


# Size and hash


def test_wrong_announced_length(site):
    site.announced_extra = 10
    failure(site.file(), "tries brought nothing new")
    site.ranges = False
    failure(site.file(), "300000 of 300010 bytes")


def test_size_is_not_the_known_one(site, cache):
    failure(site.file(size=299_999), "offers 300000 bytes, expected 299999", *by_hand(cache, site))
    assert not (cache / NAME).exists()


@pytest.mark.parametrize(
    "size, words",
    [(299_999, "more than 299999 bytes"), (300_001, "300000 of 300001 bytes")],
    ids=["too-long", "too-short"],
)
def test_known_size_without_announced_length(site, cache, size, words):
    site.says_length = False
    failure(site.file(size=size), words)
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
    calls, whole = [], download.sha256_of
    monkeypatch.setattr(download, "sha256_of", lambda path: calls.append(path) or whole(path))
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
def test_damaged_record_is_rewritten(site, cache, record):
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


def test_threads_download_once(site, caplog):
    site.pause = 0.2
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(site.file(), progress=False), range(4)))
    assert len(set(paths)) == 1 and paths[0].read_bytes() == site.content
    assert len(site.requests) == 1
    assert "waiting for another process" in caplog.text


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
