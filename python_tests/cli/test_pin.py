"""`models --pin` writes what downloads are compared with, and prints it for other machines."""

import pytest

from resshift_fast.cli.models import models
from resshift_fast.core.cache import CACHE_VARIABLE

FILE = "resshift_realsrx4_s4_v3.pth"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_is_printed_can_be_given_again(folder, capsys):
    models(pins=[f"{FILE}={'AB' * 32},1234"])
    printed = capsys.readouterr().out.strip()
    assert printed == f"{FILE}={'ab' * 32},1234"
    assert (folder / f"{FILE}.sha256").read_text() == f"# size 1234\n{'ab' * 32}  {FILE}\n"
    models(pins=[printed])
    assert capsys.readouterr().out.strip() == printed


@pytest.mark.parametrize(
    "text, message",
    [
        ("other.pth=" + "0" * 64, "'other.pth' is no published weights file; expected one of resshift_realsrx4_s15_v1"),
        ("nano-x4.safetensors", "no published weights file"),
        (FILE + "=0", "expected 64 hexadecimal digits"),
        (FILE + "=" + "0" * 64 + ",much", "the size of .* is 'much', expected a number of bytes"),
    ],
)
def test_a_pin_that_makes_no_sense_is_refused(folder, text, message):
    with pytest.raises(ValueError, match=message):
        models(pins=[text])
    assert not list(folder.glob("*.sha256"))
