"""What reaches the terminal: no control characters; and what happens if it can't be written: the work goes on."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sample_photos import make_photo, names

from resshift_fast import cli
from resshift_fast.cli import console

ROOT = Path(__file__).resolve().parents[2]
TITLE = "\x1b]0;owned\x07"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def assert_plain(text):
    assert not {one for one in text if ord(one) < 32 or 127 <= ord(one) < 160} - {"\n"}, repr(text)


@pytest.mark.skipif(sys.platform == "win32", reason="names without control characters")
@pytest.mark.parametrize("name", [f"{TITLE}.png", "two\nlines.png", "x\x9b31m.png", "a\rb.png"])
def test_names_of_photos(restore, tmp_path, name):
    photos = tmp_path / "photos"
    photos.mkdir()
    make_photo(photos / name, (8, 8))
    (photos / f"bad{name}").write_bytes(b"no image")
    outcome = restore(photos, "-o", tmp_path / "out")
    assert_plain(outcome.err)
    assert len(outcome.err.splitlines()) == 3 and len(outcome.errors) == 1
    assert (tmp_path / "out" / name).exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["restore", f"{TITLE}.png", "-o", "out"],
        ["restore", "a.png", "-o", "out", "--noise", TITLE],
        ["restore", "a.png", "-o", "out", "--model", TITLE],
        ["restore", "a.png", "-o", "out", f"--{TITLE}"],
        ["restore", "a.png", "-o", f"out{TITLE}.gif"],
        ["train", TITLE, "-o", "run"],
        [TITLE],
    ],
    ids=["photo", "value", "model", "option", "out", "train", "command"],
)
def test_words_of_the_command_line(program, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    make_photo(tmp_path / "a.png", (8, 8))
    outcome = program(*arguments)
    assert outcome.code in (1, 2)
    assert_plain(outcome.err + outcome.out)
    assert r"\x1b" in outcome.err


@pytest.mark.filterwarnings("default")
def test_warnings(program, monkeypatch):
    import warnings

    from resshift_fast.cli import doctor

    monkeypatch.setattr(doctor, "_operators", lambda: warnings.warn(TITLE, stacklevel=1) or TITLE)
    outcome = program("doctor")
    assert_plain(outcome.err + outcome.out)
    assert r"\x1b" in outcome.err and r"\x1b" in outcome.out


@pytest.mark.skipif(sys.platform == "win32", reason="shells without >&-")
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_streams_that_the_program_is_started_without(tmp_path, closed):
    """A file that is opened must not take the place of a stream, and its absence is no error."""
    code = (
        "import sys, os; from resshift_fast.cli.console import *; open_missing(); prepare_streams()\n"
        f"file = open({str(tmp_path / 'file')!r}, 'w'); assert file.fileno() > 2\n"
        "print('out'); say('err'); sys.stdout.flush(); file.close()\n"
        "assert sys.stdout.error is sys.stderr.error is None"
    )
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closed}', sys.executable, code], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="shells without >&-")
def test_a_command_without_stdout(tmp_path):
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m resshift_fast --version >&-'],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.fixture
def full():
    """A stream whose writes fail for lack of space."""
    with open("/dev/full", "wb", buffering=0) as raw:
        stream = io.TextIOWrapper(raw, encoding="utf-8", line_buffering=True)
        yield stream
        with contextlib.suppress(OSError):
            stream.close()


@needs_full
def test_all_photos_are_restored_though_nothing_can_be_said(restore, photos, tmp_path, monkeypatch, full):
    monkeypatch.setattr("sys.stderr", full)
    assert restore(photos, "-o", tmp_path / "out").code == 0
    assert names(tmp_path / "out") == ["a.png", "b.png", "c.png"]


@needs_full
def test_a_result_that_cannot_be_printed_is_an_error(monkeypatch, capsys, full):
    monkeypatch.setattr("sys.stdout", full)
    monkeypatch.setattr("sys.argv", ["resshift-fast", "--version"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 1
    assert (
        capsys.readouterr().err == "error: the output cannot be written: No space left on device; send it elsewhere\n"
    )


def test_a_stream_is_of_text():
    with pytest.raises(TypeError, match="expected a str, got bytes"):
        console.Stream(io.StringIO()).write(b"")


def test_a_stream_is_given_up_once(monkeypatch):
    calls = []

    class Broken(io.StringIO):
        def write(self, text):
            calls.append(text)
            raise BrokenPipeError(32, os.strerror(32))

    stream = console.Stream(Broken())
    assert stream.write("one") == 3 and stream.write("two") == 3
    stream.flush()
    assert calls == ["one"] and isinstance(stream.error, BrokenPipeError)


@pytest.mark.parametrize("has_descriptor", [True, False])
def test_stdout_is_kept_for_one_stream(has_descriptor, monkeypatch, capfd):
    if has_descriptor:
        monkeypatch.setattr(sys, "stdout", console.Stream(open(1, "w", encoding="ascii", closefd=False)))  # noqa: SIM115
    print("before")
    with console.own_stdout() as own:
        print("of another library")
        if has_descriptor:
            subprocess.run(["echo", "of another program"], check=True)
        print("own", file=own, flush=True)
    print("after", flush=True)
    assert capfd.readouterr().out == "before\nown\nafter\n"


@needs_full
@pytest.mark.parametrize("has_descriptor", [True, False])
def test_an_own_stdout_that_cannot_be_written_is_told(has_descriptor, monkeypatch, capfd, full):
    if has_descriptor:
        os.dup2(full.fileno(), 1)
        full = open(1, "w", encoding="ascii", closefd=False)  # noqa: SIM115
    monkeypatch.setattr(sys, "stdout", console.Stream(full))
    with console.own_stdout() as own:
        print("text", file=own, flush=True)
    assert sys.stdout.error is not None
