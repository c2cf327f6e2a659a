"""Claims on outputs and temporary files: held by one process at a time, and removed once their process is dead."""

import multiprocessing
import os
import signal
import threading
import time

import pytest

from resshift_fast.core import claims, files
from resshift_fast.core.claims import announced, claimed, remove_dead
from resshift_fast.core.files import make_folder, replacing, write_atomically

pytest.importorskip("fcntl")


def in_process(function, *args):
    """The exit code of a forked process that runs a function; a signal's number is negative."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join(60)
    return process.exitcode


def killed_while_writing(path):
    with replacing(path) as file:
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)


def killed_while_it_claims(path):
    with claimed(path):
        os.kill(os.getpid(), signal.SIGKILL)


def test_one_at_a_time(tmp_path):
    output = tmp_path / "a.png"
    with claimed(output) as first:
        with claimed(tmp_path / "a.jpg") as second, claimed(tmp_path / "b.png") as other:
            assert (first, second, other) == (True, False, True)
        with claimed(output) as third:
            assert third is False
    with claimed(output) as again:
        assert again is True
    assert list(tmp_path.iterdir()) == []


def test_a_name_of_255_bytes(tmp_path):
    with claimed(tmp_path / ("n" * 251 + ".png")) as mine:
        assert mine and len(list(tmp_path.iterdir())) == 1


def test_each_of_many_threads_gets_its_turn(tmp_path):
    held, most, turns = [0], [0], [0]

    def work():
        while True:
            with claimed(tmp_path / "a.png") as mine:
                if mine:
                    held[0] += 1
                    most[0] = max(most[0], held[0])
                    time.sleep(0.001)
                    held[0] -= 1
                    turns[0] += 1
                    return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] and turns == [8] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", [killed_while_writing, killed_while_it_claims])
def test_what_a_dead_process_leaves_is_removed(tmp_path, function, monkeypatch):
    path = tmp_path / "a.png"
    assert in_process(function, path) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with claimed(path) as mine:
        assert mine
    monkeypatch.setattr(files, "_tidied", set())
    write_atomically(tmp_path / "b.png", b"x")
    assert [one.name for one in tmp_path.iterdir()] == ["b.png"]


def test_runs_with_other_settings_know_of_each_other(tmp_path):
    one, two = [tmp_path / "a.png", tmp_path / "b.png"], [tmp_path / "b.jpg"]
    with announced(tmp_path, {"seed": "1", "tile": "None"}, one) as first:
        with announced(tmp_path, {"seed": "1", "tile": "None"}, two) as same:
            pass
        with announced(tmp_path, {"seed": "2", "tile": "None"}, two) as other:
            pass
        with announced(tmp_path, {"seed": "2"}, [tmp_path / "c.png"]) as elsewhere:
            pass
        remove_dead(tmp_path)  # not what lives
        with announced(tmp_path, {"seed": "2", "tile": "8"}, one) as both:
            pass
    with announced(tmp_path, {"seed": "2"}, one) as later:
        pass
    assert first == same == elsewhere == later == []
    assert other == ["seed 1 instead of 2"] and both == ["seed 1 instead of 2", "tile None instead of 8"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b'{"settings": 1, "outputs": {}}'])
def test_junk_in_the_file_of_a_run(tmp_path, content):
    path = tmp_path / ".resshift-1.run"
    path.write_bytes(content)
    with open(path) as file:
        claims.lock(file.fileno())
        with announced(tmp_path, {"seed": "1"}, [tmp_path / "a.png"]) as found:
            assert found == []
    os.mkfifo(tmp_path / ".resshift-2.run")
    (tmp_path / ".resshift-3.run").mkdir()
    with announced(tmp_path, {"seed": "1"}, [tmp_path / "a.png"]) as found:
        assert found == []


def test_what_a_living_process_holds_is_kept(tmp_path):
    with replacing(tmp_path / "a.png") as file, claimed(tmp_path / "a.png"):
        file.write(b"x")
        before = sorted(tmp_path.iterdir())
        remove_dead(tmp_path)
        make_folder(tmp_path)
        assert sorted(tmp_path.iterdir()) == before and len(before) == 2
    assert [one.name for one in tmp_path.iterdir()] == ["a.png"]


def test_files_of_others_are_kept(tmp_path):
    names = [".resshift-notes", "x.part", ".other.part", "resshift-1.part", ".resshift-link.part"]
    for name in names[:-1]:
        (tmp_path / name).touch()
    (tmp_path / names[-1]).symlink_to(tmp_path / names[0])
    (tmp_path / ".resshift-folder.part").mkdir()
    remove_dead(tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*names, ".resshift-folder.part"])


@pytest.mark.parametrize("error", [OSError(37, "No locks available"), ImportError("fcntl")], ids=["ENOLCK", "no-fcntl"])
def test_without_locks_nothing_is_claimed_or_removed(tmp_path, monkeypatch, error):
    def fail(descriptor):
        raise error

    (tmp_path / ".resshift-1.part").touch()
    monkeypatch.setattr(claims, "lock", fail)
    with claimed(tmp_path / "a.png") as one, claimed(tmp_path / "a.png") as two:
        assert one and two
    remove_dead(tmp_path)
    assert (tmp_path / ".resshift-1.part").exists()
    write_atomically(tmp_path / "a.png", b"x")


def test_a_temporary_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    lock, removed = claims.lock, []

    def late(descriptor):
        if not removed:
            removed.extend(path for path in tmp_path.iterdir() if path.suffix == ".part")
            removed[0].unlink()
        lock(descriptor)

    monkeypatch.setattr(claims, "lock", late)
    write_atomically(tmp_path / "a.png", b"x")
    assert removed and (tmp_path / "a.png").read_bytes() == b"x"
