"""Locked files: processes and threads use a file one at a time."""

import fcntl
import os
import sys
import time
from threading import Thread
from types import SimpleNamespace

import pytest

from resshift_fast.core import locking
from resshift_fast.core.locking import locked


def test_the_file_is_created_and_opened_at_its_start(tmp_path):
    path = tmp_path / "a"
    for expected in ("", "x", "xx"):
        with locked(path) as file:
            assert file.read() == expected
            file.replace(expected + "x")


def test_threads_wait_for_one_another(tmp_path):
    path = tmp_path / "count"

    def work():
        for _ in range(20):
            with locked(path) as file:
                file.replace(str(int(file.read() or 0) + 1))

    threads = [Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "80"


@pytest.mark.parametrize("path", [None, "no such folder/file"])
def test_none_where_the_file_cannot_be_created(path, tmp_path):
    with locked(path and tmp_path / path) as file:
        assert file is None


def test_none_on_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError("no locks available")

    monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(flock=flock, LOCK_EX=2, LOCK_NB=4))
    with locked(tmp_path / "a") as file:
        assert file is None


def test_none_for_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "a")
    with locked(tmp_path / "a") as file:
        assert file is None


def test_a_lock_that_another_process_keeps_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setattr(locking, "_left", 0.5)
    with open(tmp_path / "a", "w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)  # of another open file, like that of another process
        start = time.monotonic()
        with locked(tmp_path / "a") as file:
            assert file is None and 0.4 < time.monotonic() - start < 30
        assert locking._left == 0
        monkeypatch.setattr(locking.time, "sleep", lambda _: pytest.fail("waited again"))
        with locked(tmp_path / "a") as file:
            assert file is None
    with locked(tmp_path / "a") as file:
        assert file is not None


def test_an_error_in_the_block_reaches_the_caller(tmp_path):
    with pytest.raises(OSError, match="in the block"), locked(tmp_path / "a"):
        raise OSError("in the block")
