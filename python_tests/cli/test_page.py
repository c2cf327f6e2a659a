"""`resshift-fast app` as a program: wrong usage in one line, before anything is served."""

import pytest

from resshift_fast.apps import extras
from resshift_fast.apps.listening import bound


def test_a_missing_extra_is_one_line(program, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    outcome = program("app")
    text = "error: app needs another package, gradio: pip install 'resshift-fast[app]'"
    assert outcome.code == 1 and outcome.errors == [text]


@pytest.mark.parametrize(
    "arguments, text",
    [
        (("--max-megapixels", "0"), "--max-megapixels is 0.0, expected a positive number"),
        (("--max-megabytes", "inf"), "--max-megabytes is inf, expected a positive number"),
        (("--model", "nano-x4", "--model", "faceir", "--weights", "a.pth"), "are for one model; name one --model"),
        (("--host", "192.0.2.1"), "192.0.2.1 port 8000 is no address of this machine"),
    ],
)
def test_bad_arguments_are_one_line(arguments, text, program, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    outcome = program("app", *arguments)
    assert outcome.code == 1 and len(outcome.errors) == 1 and text in outcome.errors[0]


def test_a_port_that_is_used_is_one_line(program, monkeypatch):
    monkeypatch.setattr(extras, "find_spec", lambda name: name)
    with bound("127.0.0.1", 0) as other:
        port = other.getsockname()[1]
        outcome = program("app", "--port", port)
    assert outcome.code == 1 and f"127.0.0.1 port {port} is used by another program" in outcome.errors[0]
