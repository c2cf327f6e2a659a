"""Weights files on this computer: embedded in the package, or downloaded once and compared with a hash at every use.

A download goes to `FILENAME.part` beside its target, is resumed where it stopped (even by a later process), and is
renamed to the target when it is complete and the caller's check accepts it. Its SHA-256 is stored in `FILENAME.sha256`
(readable by `sha256sum -c`), so that a later change of the file is noticed even if its publisher gives no hash. A user
who knows the hash writes it there before the download; a file with another one is then never kept.
"""

import contextlib
import errno
import hashlib
import http.client
import logging
import os
import re
import shutil
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from resshift_fast.core.cache import CACHE_VARIABLE, cache_dir
from resshift_fast.weights.partial import (
    Partial,
    Record,
    beside,
    discard,
    read_partial,
    read_record,
    remove_foreign,
    remove_state,
    restart,
    size_of,
    write_record,
)

if TYPE_CHECKING:
    from resshift_fast.weights.published import WeightFile

TIMEOUT_SECONDS = 20.0  # without a byte received, not for the whole file
ATTEMPTS = 3  # consecutive ones that receive nothing new
RETRY_DELAY_SECONDS = 1.0  # doubles at each attempt

_log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 18
_POLL_SECONDS = 0.2


class DownloadError(OSError):
    """A weights file that could not be fetched, stored or verified; the message is one line and says what to do."""


class _Failure(Exception):
    """A permanent failure, not worth a retry; the message is the reason alone."""


class _Interruption(Exception):
    """A temporary failure of the network or the server, worth a retry; the message is the reason alone."""


def local_path(file: "WeightFile") -> Path:
    """Where a weights file is, or will be once fetched; nothing is read or written.

    Raises:
        ValueError: the file name is not a bare name.
        OSError: the home folder is unknown.
    """
    if file.filename in ("", ".", "..") or re.search(r"[/\\]", file.filename):
        raise ValueError(f"a weights file needs a bare file name, got {file.filename!r}")
    folder = Path(__file__).parent if file.url is None else cache_dir()
    return folder / file.filename


def fetch(
    file: "WeightFile",
    progress: bool = True,
    *,
    verify: bool = False,
    option: str = "weights",
    check: Callable[[Path], object] | None = None,
) -> Path:
    """Return a weights file's path, downloading the file first if it is missing.

    Safe to call from several threads and processes: one downloads, the others wait for it. A file that the user put
    there by hand is treated as if downloaded.

    Args:
        file: filename; url, or None for a file embedded in the package; size in bytes and sha256 where known; licence.
        progress: show a bar on stderr while downloading.
        verify: hash the whole file even if its size and modification time have not changed.
        option: the argument that takes a local file instead, for messages ("weights" or "autoencoder").
        check: called with a file that has been downloaded, before it is kept; raises ValueError if it is damaged or
            another file, and returns what it has verified, in words for the user, or None.

    Returns:
        The file's absolute path.

    Raises:
        FileNotFoundError: an embedded file is missing.
        DownloadError: no connection, an HTTP error, no space, an unwritable folder, or a file whose size or hash is
            not the expected one. The bytes received so far are kept for the next try if the server can resume.

    Example:
        >>> fetch(catalog.get("realsr-x4-v3").weights)  # doctest: +SKIP
        PosixPath('/home/me/.cache/resshift_fast/resshift_realsrx4_s4_v3.pth')
    """
    target = local_path(file)
    if file.url is None:
        if not target.is_file():
            raise FileNotFoundError(f"{target} is missing from the installed package; install resshift_fast again")
        return target
    part = target
    by_hand = f"download {file.url} by hand to {target}, or pass a copy as {option}=FILE (--{option} FILE)"
    try:
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            with _only_one(target) as part:
                if not target.exists():  # else another process has finished it meanwhile
                    file = _with_pinned_size(file, target)
                    _announce(file)
                    _download(file, target, part, progress, check)
        _check(file, target, verify)
    except _Failure as error:
        kept = f"run again to continue from what is kept in {part}, or " if read_partial(part, file).received else ""
        raise DownloadError(f"{file.filename} could not be downloaded ({error}); {kept}{by_hand}") from error
    except DownloadError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{file.filename} could not be kept in {target.parent} ({_reason(error)}); make room and permit writing "
            f"there, or choose another folder with {CACHE_VARIABLE}=FOLDER; or {by_hand}"
        ) from error
    return target


def _with_pinned_size(file: "WeightFile", target: Path) -> "WeightFile":
    """The file with the size that the user has pinned, so that no other one is received."""
    record = read_record(target)
    return file if record is None or record.mtime_ns is not None else replace(file, size=file.size or record.size)


def _announce(file: "WeightFile") -> None:
    """Log the licence before the download begins; one that a user may break is a warning."""
    if not file.licence:
        return
    if "non-commercial" in file.licence.lower():
        _log.warning("%s: its licence allows non-commercial use only: %s", file.filename, file.licence)
    else:
        _log.info("%s: licence: %s", file.filename, file.licence)


def _check(file: "WeightFile", target: Path, verify: bool) -> None:
    """Compare a local file with its known or recorded size and hash; record them the first time."""
    status = target.stat()
    record = read_record(target)
    known_size = file.size if file.size is not None else (record.size if record else status.st_size)
    known_hash = (file.sha256 or (record.sha256 if record else "")).lower()
    remedy = f"delete it and run again to download it from {file.url}"
    if record and not file.sha256:
        remedy += f", or delete {beside(target, '.sha256')} if you replaced it on purpose"
    if known_size is not None and status.st_size != known_size:
        raise DownloadError(f"{target} is damaged or another file ({status.st_size} bytes, not {known_size}); {remedy}")
    if not verify and record == Record(status.st_size, status.st_mtime_ns, known_hash):
        return
    digest = sha256_of(target)
    if known_hash and digest != known_hash:
        raise DownloadError(f"{target} is damaged or another file (sha256 {digest}, not {known_hash}); {remedy}")
    write_record(target, Record(status.st_size, status.st_mtime_ns, digest))


def _download(
    file: "WeightFile", target: Path, part: Path, progress: bool, check: Callable[[Path], object] | None
) -> None:
    """Receive the whole file, over as many connections as it takes, check it and rename it to the target."""
    resumed, total = _receive_all(file, part, progress)
    try:
        digest, verified = _checked(file, target, part, check)
    except _Failure:
        if not resumed:
            raise
        # What was kept of an earlier try may be damaged, as by a power failure: once more, from the beginning.
        _, total = _receive_all(file, part, progress)
        digest, verified = _checked(file, target, part, check)
    os.replace(part, target)
    remove_state(part)
    status = target.stat()
    _say_what_was_verified(file, target, total, digest, verified)
    write_record(target, Record(status.st_size, status.st_mtime_ns, digest))


def _say_what_was_verified(file: "WeightFile", target: Path, total: int | None, digest: str, verified: str) -> None:
    """Log what of a download was compared with something known, and what was not, which is a warning."""
    done, left = [], []
    if total is None:
        left.append("its length, which the server did not announce")
    else:
        done.append("its size" if file.size is not None else "the length that the server announced")
    done += [verified] * bool(verified)
    if file.sha256:
        done.append("its published sha256")
    elif read_record(target):
        done.append(f"the sha256 in {beside(target, '.sha256')}")
    else:
        left.append(f"its sha256 {digest}, since none is published or pinned")
    lists = {"verified": done or ["nothing"], "not verified": left}
    parts = [f"{word}: {', '.join(items)}" for word, items in lists.items() if items]
    level = logging.WARNING if left else logging.INFO
    _log.log(level, "%s: %s bytes; %s", file.filename, f"{target.stat().st_size:,}", "; ".join(parts))


def _receive_all(file: "WeightFile", part: Path, progress: bool) -> tuple[bool, int | None]:
    """Receive the whole file; returns whether an earlier try had received some of it, and its length if announced."""
    from tqdm import tqdm

    began = read_partial(part, file).received
    failures, furthest = 0, began
    # The delay prevents an empty bar before the server has answered.
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "delay": 1e-9, "disable": not progress}
    with tqdm(desc=file.filename, **options) as bar:
        while True:
            try:
                return began > 0, _transfer(file, part, bar)
            except _Interruption as error:
                # Compared with the furthest byte ever: a restart that breaks off at the same byte is no progress.
                failures = 0 if size_of(part) > furthest else failures + 1
                furthest = max(furthest, size_of(part))
                if failures >= ATTEMPTS:
                    raise _Failure(f"{error}; {failures} tries brought nothing new") from error
                time.sleep(RETRY_DELAY_SECONDS * 2 ** max(0, failures - 1))


def _checked(file: "WeightFile", target: Path, part: Path, check: Callable[[Path], object] | None) -> tuple[str, str]:
    """The SHA-256 of a complete part, and what its check has verified; one that is another file is discarded."""
    digest = sha256_of(part)
    record = read_record(target)
    expected = (file.sha256 or (record.sha256 if record else digest)).lower()
    try:
        if digest != expected:
            accept = (
                "" if file.sha256 else f" as {beside(target, '.sha256')} says; delete that to accept another version"
            )
            raise _Failure(f"its sha256 is {digest}, not {expected}{accept}")
        verified = check(part) if check is not None else None
    except (_Failure, ValueError) as error:
        discard(part)
        raise _Failure(str(error).replace(str(part), "what was received")) from error
    return digest, verified if isinstance(verified, str) else ""


def _transfer(file: "WeightFile", part: Path, bar: Any) -> int | None:
    """One request: resume at the end of the part, or restart if the server can't resume or the file has changed.

    Returns:
        The length of the file; None if it is not known.
    """
    partial = read_partial(part, file)
    if partial.received and partial.received == partial.total:
        return partial.total
    assert file.url is not None
    request = urllib.request.Request(file.url, headers={"User-Agent": "resshift-fast"})
    if partial.received and partial.validator is not None:
        request.add_header("Range", f"bytes={partial.received}-")
        request.add_header("If-Range", partial.validator)
    with _connect(request, part) as response:
        if response.status not in (200, 206) or response.headers.get_content_type() == "text/html":
            raise _Failure(f"the server answered HTTP {response.status} with a web page or nothing instead of the file")
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            raise _Failure(f"the server sent the file compressed ({encoding}), which was not asked for")
        partial = _plan(response, partial, part)
        total = file.size if partial.total is None else partial.total
        if file.size is not None and total != file.size:
            raise _Failure(f"the server offers {total} bytes, expected {file.size}")
        _require_space(part.parent, (total or 0) - partial.received)
        if not partial.received:
            restart(part, file, partial)
        # Only the bytes of this connection count for the rate that the bar shows.
        bar.total, bar.initial, bar.n = total, partial.received, partial.received
        bar.refresh()
        _receive(response, part, total, bar)
    received = size_of(part)
    if received == 0 or (total is not None and received != total):
        raise _Interruption(f"the connection ended after {received} of {total or 'an unknown number of'} bytes")
    return total


def _connect(request: urllib.request.Request, part: Path) -> http.client.HTTPResponse:
    """Open the address; temporary failures raise _Interruption, permanent ones _Failure."""
    host = request.host
    if request.type not in ("http", "https"):
        raise _Failure(f"{request.full_url} is not a web address")
    try:
        return urllib.request.build_opener().open(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and request.has_header("Range"):
            discard(part)
            raise _Interruption(f"{host} cannot resume the download (HTTP 416)") from error
        kind = _Interruption if error.code in (408, 429) or error.code >= 500 else _Failure
        raise kind(f"{host} answered HTTP {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, (TimeoutError, ConnectionResetError, ConnectionAbortedError)):
            raise _Interruption(f"no answer from {host}: {_reason(reason)}") from error
        offline = "; is this computer offline?" if isinstance(reason, socket.gaierror) else ""
        text = _reason(reason) if isinstance(reason, BaseException) else reason
        raise _Failure(f"no connection to {host}: {text}{offline}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interruption(f"no answer from {host}: {_reason(error)}") from error


def _plan(response: http.client.HTTPResponse, partial: Partial, part: Path) -> Partial:
    """What the response holds: the rest of the part, or the whole file (`received` 0)."""
    headers = response.headers
    etag = headers.get("ETag", "")
    # A weak tag means equivalent content, not equal bytes, so it does not allow a download to be resumed.
    validator = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if response.status != 206:
        return Partial(0, validator, _length(response))
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    total = int(found[2]) if found and found[2] != "*" else partial.total
    # Some servers honour Range but not If-Range, and would send the end of another version.
    same = total == partial.total and (validator is None or validator == partial.validator)
    if not found or int(found[1]) != partial.received or not same:
        discard(part)
        raise _Interruption("the file on the server has changed since the download began")
    return partial


def _length(response: http.client.HTTPResponse) -> int | None:
    """The announced length; None if there is none. One that makes no sense is a failure."""
    announced = {text.strip() for text in response.headers.get_all("Content-Length", [])}
    if not announced:
        return None
    (text, *others) = announced
    if others or not re.fullmatch("[0-9]{1,18}", text):
        raise _Failure(f"the server announces a length of {', '.join(sorted(announced))!r} bytes")
    return int(text)


def _receive(response: http.client.HTTPResponse, part: Path, total: int | None, bar: Any) -> None:
    """Append to the part; everything received is written, however the connection ends."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(part, flags, 0o666), "ab") as handle:
        while block := _read(response):
            handle.write(block)
            bar.update(len(block))
            if total is not None and handle.tell() > total:
                discard(part)
                raise _Failure(f"the server sent more than {total} bytes")
        handle.flush()
        os.fsync(handle.fileno())


def _read(response: http.client.HTTPResponse) -> bytes:
    # read1 returns what has arrived; read would lose that if the connection broke before the block is full.
    try:
        return response.read1(_BLOCK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise _Interruption(f"the connection broke: {_reason(error)}") from error


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")


@contextlib.contextmanager
def _only_one(target: Path) -> Iterator[Path]:
    """Hold the target's lock and yield the part's path; the system releases the lock when a process dies."""
    lock = target.with_name(f".{target.name}.lock")
    remove_foreign(lock)
    with open(lock, "a+b") as handle:
        waiting = False
        while True:
            locked = _try_lock(handle)
            if locked is not False:
                break
            if not waiting:
                _log.warning("%s: waiting for another process that downloads it", target.name)
            waiting = True
            time.sleep(_POLL_SECONDS)
        # Without locks (some network file systems) each process needs its own part, which no other resumes.
        yield beside(target, ".part" if locked else f".{os.getpid()}-{threading.get_ident()}.part")


def _try_lock(handle: IO[bytes]) -> bool | None:
    """True: locked until the handle is closed. False: another has the lock. None: this file system has no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            handle.seek(0)
            msvcrt.locking(handle.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK) else None
    return True


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in lower-case hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _reason(error: BaseException) -> str:
    """The first line of an exception's message, or its class if it has none."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0].rstrip(".")[:200] if text else type(error).__name__
