"""`resshift-fast serve` as a program: its address, its arguments, its end, and that it writes no file."""

import importlib.util
import os
import re
import resource
import signal
import subprocess
import sys
import urllib.request

import pytest
from local_service import PATIENCE, form_of, picture

from resshift_fast.apps import extras
from resshift_fast.apps.listening import bound, is_local, url_of


@pytest.fixture
def serve(program, weights):
    """Runs `resshift-fast serve ARGUMENTS`, which must fail before it serves."""
    return lambda *arguments: program("serve", "--weights", weights["nano-x4"], *arguments)


def test_a_missing_extra_is_one_line(serve, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name in ("fastapi", "uvicorn") else found(name))
    outcome = serve()
    text = "error: serve needs other packages, fastapi, uvicorn: pip install 'resshift-fast[serve]'"
    assert outcome.code == 1 and outcome.errors == [text]


def test_a_port_that_is_used_is_one_line(serve):
    with bound("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        outcome = serve("--port", port)
    assert outcome.code == 1 and len(outcome.errors) == 1
    assert f"127.0.0.1 port {port} is used by another program; give another --port" in outcome.errors[0]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("--host", "no.such.host.invalid"), "--host no.such.host.invalid is no address"),
        (("--host", "192.0.2.1"), "192.0.2.1 port 8000 is no address of this machine"),
        (("--max-megapixels", "0"), "--max-megapixels is 0.0, expected a positive number"),
        (("--max-megabytes", "nan"), "--max-megabytes is nan, expected a positive number"),
        (("--seconds", "-1"), "--seconds is -1.0, expected a positive number"),
        (("--receive-seconds", "0"), "--receive-seconds is 0.0, expected a positive number"),
        (("--keep-alive-seconds", "inf"), "--keep-alive-seconds is inf, expected a positive number"),
        (("--model", "nano-x5"), "nano-x5"),
    ],
)
def test_bad_arguments_are_one_line(arguments, text, serve):
    outcome = serve(*arguments)
    assert outcome.code == 1 and len(outcome.errors) == 1 and text in outcome.errors[0]


def test_local_addresses():
    with bound("127.0.0.1", 0) as listener:
        assert is_local(listener) and re.fullmatch(r"http://127\.0\.0\.1:\d+/", url_of(listener))
    with bound("0.0.0.0", 0) as listener:
        assert not is_local(listener)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM can't be handled there")
def test_the_program_needs_no_disk_and_ends_by_sigterm():
    """Nothing may be written, as on a full disk, but to stderr, which is a pipe."""

    def full_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    command = [sys.executable, "-m", "resshift_fast", "serve", "--port", "0", "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RESSHIFT_FAST_VERIFY": "0"}
    with subprocess.Popen(
        command, preexec_fn=full_disk, env=environment, stderr=subprocess.PIPE, encoding="utf-8"
    ) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"POST pictures to (http://127\.0\.0\.1:\d+/restore)", line):
                break
        # 2 MB, more than a form keeps in memory by default: a PNG with something behind it.
        data = picture(20, 20)[0] + bytes(2_000_000)
        body, headers = form_of(image=data)
        with urllib.request.urlopen(urllib.request.Request(found[1], body, headers), timeout=PATIENCE) as answer:
            assert answer.read(4) == b"\x89PNG"
        process.send_signal(signal.SIGTERM)
        lines += process.stderr.read().splitlines()
        assert process.wait(PATIENCE) == 0, lines
    assert "stopped after 1 pictures" in lines[-1]
