"""Files of the cache folder, which may contain anything: they are read whole or refused, and never waited for."""

import os
import stat

import pytest

from resshift_fast.core.cache import MAX_BYTES, CacheFile, read_json, read_text


def test_a_file_is_created_read_and_replaced(tmp_path):
    path = tmp_path / "a"
    for before, after in (("", "a longer text, with ü"), ("a longer text, with ü", "short"), ("short", "")):
        with CacheFile(path) as file:
            assert file.read() == before
            file.replace(after)
            assert file.read() == after
        assert read_text(path) == after
    assert not stat.S_IMODE(path.stat().st_mode) & 0o111


def test_bytes_that_are_no_text_are_replaced(tmp_path):
    (tmp_path / "a").write_bytes(b"\xff\x00ok")
    assert read_text(tmp_path / "a") == "\ufffd\0ok"


def test_a_missing_file_is_not_created_by_reading(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("create", [False, True], ids=["read", "write"])
def test_a_pipe_is_refused_without_waiting(create, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is no regular file"):
        CacheFile(tmp_path / "pipe", create=create)


def test_a_folder_and_a_device_are_refused(tmp_path):
    with pytest.raises(OSError, match="is no regular file|Is a directory"):
        read_text(tmp_path)
    with pytest.raises(OSError, match="is no regular file"):
        read_text(os.devnull)


def test_a_very_long_file_is_refused(tmp_path):
    with open(tmp_path / "a", "wb") as file:
        file.truncate(MAX_BYTES + 1)  # sparse
    with pytest.raises(OSError, match=f"longer than {MAX_BYTES} bytes"):
        read_text(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[" * 300_000, "\0\0", '{"a": 1}}'])
def test_what_is_no_json_is_a_value_error(text, tmp_path):
    (tmp_path / "a").write_text(text)
    with pytest.raises(ValueError, match="Expecting|Extra data|nested too deep"):
        read_json(tmp_path / "a")


def test_json_is_read(tmp_path):
    (tmp_path / "a").write_text('{"a": [1, null]}')
    assert read_json(tmp_path / "a") == {"a": [1, None]}
