"""scripts/sanitize.py: which runs its record lets it leave out."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import sanitize


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The script with three runs of files of their own, and the calls of pytest instead of these."""
    for name in ("a", "b", "c", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.cpp").write_text(name)
    runs = {name: sanitize.Run([name], [], {}, sources=["shared"]) for name in "abc"}
    monkeypatch.setattr(sanitize, "ROOT", tmp_path)
    monkeypatch.setattr(sanitize, "RECORD", tmp_path / "sanitized.json")
    monkeypatch.setattr(sanitize, "RUNS", runs)
    calls = []
    monkeypatch.setattr(sanitize, "execute", lambda name, arguments: calls.append((name, arguments)) or 0)

    def run(*arguments):
        calls.clear()
        assert sanitize.main(list(arguments)) == 0
        return "".join(name for name, _ in calls)

    run.calls, run.folder = calls, tmp_path
    return run


def test_what_has_passed_is_left_out_but_for_one_run_that_the_seed_chooses(script):
    assert script("--known", "1") == "abc"
    assert script("--update", "-q", "--most-cases=3") == "abc"
    assert script.calls[0] == ("a", ["-q", "--most-cases=3"])
    chosen = {script("--known", str(seed), "--most-cases=3") for seed in range(20)}
    assert chosen == {"a", "b", "c"}
    assert script() == "abc" and script("b", "--known", "1", "--most-cases=3") == "b"


def test_changed_files_and_more_cases_are_run(script):
    script("--update", "--most-cases=3")
    left = next(name for name in "abc" if name != script("--known", "1", "--most-cases=3"))
    (script.folder / left / "kernel.cpp").write_text("changed")
    assert left in script("--known", "1", "--most-cases=3")
    script(left, "--update", "--most-cases=3")
    assert left not in script("--known", "1", "--most-cases=2")
    assert script("--known", "1", "--most-cases=4") == script("--known", "1") == "abc"
    script("--update")
    assert len(script("--known", "1", "--most-cases=99")) == len(script("--known", "1")) == 1
    (script.folder / "shared" / "more.h").write_text("")
    assert script("--known", "1") == "abc"


def test_a_run_that_fails_is_not_recorded(script, monkeypatch):
    monkeypatch.setattr(sanitize, "execute", lambda name, arguments: 66 if name == "b" else 0)
    assert sanitize.main(["--update"]) == 66
    assert json.loads(sanitize.RECORD.read_text()).keys() == {"a", "c"}


@pytest.mark.parametrize("argument", ["-k=conv2d", "-mslow", "a", "a/kernel.cpp::test"])
def test_part_of_a_run_is_not_recorded(script, monkeypatch, argument, capsys):
    monkeypatch.chdir(script.folder)
    with pytest.raises(SystemExit):
        sanitize.main(["--update", "-q", argument])
    assert "--update records whole runs" in capsys.readouterr().err and not script.calls
