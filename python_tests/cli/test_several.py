"""`restore --device A,B`: who gets which photo, and what happens where a device or its process fails."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from resshift_fast.cli import several
from resshift_fast.cli.plan import Job, Tally
from resshift_fast.cli.restore import _devices
from resshift_fast.measure.workers import WorkerError

DIED = "its process has died (exit code 9)"


class FakeWorkers:
    """Stands in for `Worker`: what each device does with a photo, without processes.

    Args:
        fails: device to the error with which it can't be used.
        dies: (device, photo) that end the process; a photo for all devices by itself.
        full: photo that finds the disk full.
    """

    def __init__(self, fails=None, dies=(), full=None):
        self.fails, self.dies, self.full = fails or {}, dies, full
        self.done = []
        self.closed = []
        self.threads = {}

    def __call__(self, make, device, jobs, request, *_):
        assert make is several.Part
        if device in self.fails:
            raise WorkerError(self.fails[device])
        self.threads[device] = request.threads
        tally = Tally()

        def call(method, index):
            assert method == "restore"
            time.sleep(0.002)
            if index in self.dies or (device, index) in self.dies:
                raise WorkerError(DIED)
            self.done.append((device, index))
            if index == self.full:
                tally.failed, tally.stopped = tally.failed + 1, "the disk is full"
            else:
                tally.restored += 1
            return Tally(**{name: getattr(tally, name) for name in ("restored", "failed", "skipped", "stopped")})

        return SimpleNamespace(call=call, close=lambda: self.closed.append(device), kill=lambda: None)


def run(monkeypatch, workers, devices=("a", "b"), photos=6, threads=None):
    """Restore photos with stand-ins; returns the tally."""
    monkeypatch.setattr(several, "Worker", workers)
    jobs = [Job(Path(f"{i}.png"), Path(f"out/{i}.png")) for i in range(photos)]
    tally = Tally(total=photos)

    class Request(SimpleNamespace):
        def __replace__(self, **changes):
            return Request(**vars(self) | changes)

    request = Request(devices=devices, threads=threads, as_json=False)
    monkeypatch.setattr(several, "replace", lambda one, **changes: one.__replace__(**changes))
    several.restore(jobs, request, tally, None)
    return tally


def test_every_photo_is_restored_once(monkeypatch):
    workers = FakeWorkers()
    tally = run(monkeypatch, workers, photos=20)
    assert sorted(index for _, index in workers.done) == list(range(20))
    assert {device for device, _ in workers.done} == {"a", "b"} == set(workers.closed)
    assert str(tally) == "20 restored, 0 failed, 0 skipped"


@pytest.mark.parametrize("broken", ["a", "b"])
def test_a_device_that_cannot_be_used_leaves_its_photos_to_the_other(monkeypatch, capfd, broken):
    workers = FakeWorkers(fails={broken: "it is not there"})
    assert run(monkeypatch, workers).restored == 6
    assert f"error: {broken}: it is not there" in capfd.readouterr().err


def test_without_a_device_it_is_wrong_usage(monkeypatch):
    with pytest.raises(ValueError, match="none of the devices a, b can be used"):
        run(monkeypatch, FakeWorkers(fails={"a": "no", "b": "no"}))


@pytest.mark.parametrize("index", [0, 5])
def test_the_photo_of_a_process_that_dies_is_restored_by_another(monkeypatch, capfd, index):
    workers = FakeWorkers(dies={("a", index)})
    assert str(run(monkeypatch, workers)) == "6 restored, 0 failed, 0 skipped"
    assert sorted(index for _, index in workers.done) == list(range(6))


def test_a_photo_that_ends_two_processes_has_failed(monkeypatch, capfd):
    workers = FakeWorkers(dies={2})
    tally = run(monkeypatch, workers, devices=("a", "b", "c"))
    assert str(tally) == "5 restored, 1 failed, 0 skipped"
    said = capfd.readouterr().err
    assert said.count("its photo is left to another device") == 1 and "error: 2.png: " in said and DIED in said


def test_photos_that_no_device_is_left_for_have_failed(monkeypatch, capfd):
    tally = run(monkeypatch, FakeWorkers(dies={0, 1}), devices=("a", "b"))
    assert tally.restored == 0 and tally.failed == 6
    assert "no device is left (" in capfd.readouterr().err


def test_a_full_disk_ends_the_run(monkeypatch):
    workers = FakeWorkers(full=3)
    tally = run(monkeypatch, workers, devices=("a", "b"), photos=40)
    left = int(re.fullmatch("stopped with ([0-9]+) of 40 not started", tally.stopped)[1])
    # Another device may have been at a photo.
    assert tally.failed == 1 and tally.restored < 10 and left - 1 <= 39 - tally.restored <= left + 1


@pytest.mark.parametrize(
    "devices, threads, expected", [(("cpu", "cpu"), None, 2), (("cpu", "a"), None, None), (("cpu", "cpu"), 3, 3)]
)
def test_processes_on_one_cpu_share_its_threads(monkeypatch, devices, threads, expected):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    workers = FakeWorkers()
    run(monkeypatch, workers, devices=devices, threads=threads)
    assert workers.threads["cpu"] == expected


def test_after_an_interruption_no_photo_begins_and_ended_processes_are_not_named(capfd):
    tally = Tally(total=3)
    shared = several._Shared([Job(Path(f"{i}.png"), Path(f"out/{i}.png")) for i in range(3)], tally, as_json=False)
    index = shared.next()
    shared.end()
    shared.give_back(index, "a", WorkerError(DIED))
    assert shared.is_done and shared.next() is None and tally.failed == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("text", ["", "cpu,", ",cuda:0", "cuda:0,,cuda:1"])
def test_an_empty_name_is_refused(text):
    with pytest.raises(ValueError, match="lacks the name of a device; give one, or several as cuda:0,cuda:1"):
        _devices(text)


def test_names_of_devices():
    assert _devices("cuda:0, cuda:1") == "cuda:0,cuda:1" and _devices("cpu") == "cpu"


def _children(process):
    """Processes that restore: the started one's children that have loaded a model's worth of memory."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == process.pid and "spawn_main" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


@pytest.mark.slow
def test_processes_that_are_interrupted_leave_nothing_begun(tmp_path):
    out = tmp_path / "out"
    for i in range(12):
        Image.linear_gradient("L").resize((120, 120)).rotate(30 * i).convert("RGB").save(tmp_path / f"{i}.png")
    command = [sys.executable, "-m", "resshift_fast", "restore", tmp_path, "-o", out, "--device", "cpu,cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert 0 < len(list(out.glob("*.png"))) < 12
    assert {path.suffix for path in out.iterdir()} == {".png"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processes_share_a_folder_and_one_that_is_killed_is_no_loss(tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    for i in range(12):
        Image.linear_gradient("L").resize((40, 40)).rotate(30 * i).convert("RGB").save(photos / f"{i}.png")
    command = [sys.executable, "-m", "resshift_fast", "restore", photos, "-o", out, "--device", "cpu,cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        said = []
        reader = threading.Thread(target=lambda: said.extend(process.stderr))
        reader.start()
        deadline = time.monotonic() + 120
        while not list(out.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(_children(process)[0], signal.SIGKILL)
        assert process.wait(120) == 0
        reader.join()
    text = "".join(said)
    assert sorted(path.name for path in out.iterdir()) == sorted(path.name for path in photos.iterdir()), text
    # A photo may have been written when its process was killed.
    assert re.search("12 restored, 0 failed, 0 skipped|11 restored, 0 failed, 1 skipped", text), text
    assert "killed by the system" in text
