"""`restore` of videos: names, options, what is said, what is refused, and runs that are interrupted."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hanging import PROGRAM
from PIL import Image
from sample_photos import make_photo, names
from videos import av, frames_in, make_video, sound_of

from resshift_fast import images
from resshift_fast.apps import extras
from resshift_fast.apps.video import restoring, work
from resshift_fast.cli import video

TESTS = Path(__file__).resolve().parents[1]


def test_a_video_becomes_a_video(restore, tmp_path, monkeypatch):
    monkeypatch.setattr(video, "ANNOUNCED_SECONDS", 0)
    monkeypatch.setattr(video, "LEAST_SECONDS", 0)
    source = make_video(tmp_path / "clip.mp4", 4, sound="aac")
    outcome = restore(source, "-o", tmp_path / "out.mp4", "--json", "--compare", "--scale", 3, "--tile", 16)
    assert outcome.code == 0, outcome.err
    lines = outcome.err.splitlines()
    assert lines[0] == "[1/1] clip.mp4 16×12 → 48×36 pixels, 4 frames, 0.4 s"
    assert re.fullmatch(r"\[1/1\] clip\.mp4 will take about [\d.]+ s", lines[1])
    assert lines[2].startswith("[1/1] clip.mp4 16×12 → 48×36, 4 frames ")
    assert lines[3:] == ["1 restored, 0 failed, 0 skipped"]
    told = json.loads(outcome.out)
    assert (told["status"], told["output"], told["frames"], told["notes"]) == (
        "restored",
        str(tmp_path / "out.mp4"),
        4,
        [],
    )
    assert frames_in(tmp_path / "out.mp4")[0].shape == (4, 36, 48, 3) and sound_of(source) == sound_of(told["output"])
    assert images.read(tmp_path / "out_compare.png").height == 36


def test_a_frame_is_restored_as_a_photo(restore, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 16, 3)).astype(np.uint8)
    make_video(tmp_path / "clip.mkv", [picture] * 2, codec="ffv1", pixels="bgr0")
    Image.fromarray(picture).save(tmp_path / "photo.png")
    assert restore(tmp_path / "photo.png", tmp_path / "clip.mkv", "-o", tmp_path / "out", "--quality", 100).code == 0
    after, photo = frames_in(tmp_path / "out" / "clip.mkv")[0], images.read(tmp_path / "out" / "photo.png").pixels
    # The encoder halves the resolution of colour, not that of luma.
    assert np.abs(images.luma(after[1].astype(float)) - images.luma(photo.astype(float))).mean() < 8


def test_folders_with_videos(restore, photos, tmp_path):
    """Photos come first, videos keep their container if it is written, and have names of their own."""
    for name, codec in (("a.mp4", "libx264"), ("b.avi", "mpeg4"), ("c.MOV", "libx264")):
        make_video(photos / name, 1, codec=codec, form="mov" if name == "c.MOV" else None)
    outcome = restore(photos, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert names(tmp_path / "out") == ["a.mp4", "a.png", "b.mp4", "b.png", "c.MOV", "c.png"]
    assert [line.split()[1] for line in outcome.err.splitlines() if "→" in line and "pixels" not in line] == [
        *("a.png", "b.jpg", "c.webp", "a.mp4", "b.avi", "c.MOV")
    ]
    again = restore(photos, "-o", tmp_path / "out", "--skip-existing")
    assert "0 restored, 0 failed, 6 skipped" in again.err
    (tmp_path / "out" / "a.mp4").write_bytes(b"")
    assert "1 restored, 0 failed, 5 skipped" in restore(photos, "-o", tmp_path / "out", "--skip-existing").err


def test_a_video_that_fails_does_not_stop_the_others(restore, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing")
    make_video(tmp_path / "b.mp4", 1)
    outcome = restore(tmp_path / "a.mp4", tmp_path / "b.mp4", "-o", tmp_path / "out")
    assert outcome.code == 1 and "a.mp4 is not a video, or its index is missing" in outcome.errors[0]
    assert names(tmp_path / "out") == ["b.mp4"]


@pytest.mark.parametrize(
    "source, output, message",
    [
        ("a.mp4", "b.png", "a.mp4 is a video; use one of .mp4, .m4v, .mov, .mkv, .webm"),
        ("a.mp4", "b.avi", ".avi is not supported; use one of .mp4"),
        ("a.png", "b.mp4", "a.png is no video; use one of .png"),
        ("a.mp4", "a.mp4", "would replace the input"),
    ],
)
def test_outputs_that_do_not_fit(restore, tmp_path, source, output, message):
    make_video(tmp_path / "a.mp4", 1)
    make_photo(tmp_path / "a.png", (8, 8))
    outcome = restore(tmp_path / source, "-o", tmp_path / output)
    assert outcome.code == 2 and message in outcome.errors[0]


def test_without_the_extra(restore, photos, tmp_path, monkeypatch):
    make_video(photos / "d.mp4", 1)
    found = extras.find_spec
    monkeypatch.setattr(extras, "find_spec", lambda name: None if name == "av" else found(name))
    monkeypatch.setattr("resshift_fast.images.search.reads_videos", lambda: False)
    outcome = restore(photos / "d.mp4", "-o", tmp_path / "d.mp4")
    assert outcome.code == 1
    assert outcome.errors == [
        f"error: {photos}/d.mp4: video needs another package, av: pip install 'resshift-fast[video]'"
    ]
    outcome = restore(photos, "-o", tmp_path / "out")
    assert outcome.code == 0 and "3 restored, 0 failed" in outcome.err
    assert f"left out 1: {photos}/d.mp4: videos need another package: pip install 'resshift-fast[video]'" in outcome.err


def test_large_frames_and_wrong_masks(restore, tmp_path):
    source = make_video(tmp_path / "a.mp4", 1, (64, 48))
    outcome = restore(source, "-o", tmp_path / "b.mp4", "--max-megapixels", 0.002)
    assert outcome.code == 1 and "the limit against decompression bombs" in outcome.errors[0]
    make_photo(tmp_path / "mask.png", (8, 8))
    outcome = restore(source, "-o", tmp_path / "b.mp4", "--mask", tmp_path / "mask.png", model="inpaint-imagenet")
    assert outcome.code == 1 and "the mask" in outcome.errors[0] and "is 8×8, but" in outcome.errors[0]


def test_ctrl_c_and_again(restore, tmp_path, monkeypatch):
    source = make_video(tmp_path / "a.mp4", 5)
    add, stored = work.Work.add, []

    def stopping(self, frame):
        add(self, frame)
        stored.append(frame)
        if len(stored) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(work.Work, "add", stopping)
    outcome = restore(source, "-o", tmp_path / "b.mp4")
    assert outcome.code == 130 and not (tmp_path / "b.mp4").exists()
    assert "[1/1] a.mp4 stopped; the same command goes on from the frames that are restored" in outcome.err
    outcome = restore(source, "-o", tmp_path / "b.mp4")
    assert outcome.code == 0 and len(stored) == 5
    assert "[1/1] a.mp4 goes on after frame 3, up to which an earlier run has restored it" in outcome.err
    assert names(tmp_path) == ["a.mp4", "b.mp4", "inpaint-imagenet.safetensors", "nano-x4.safetensors"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_keeps_what_is_restored(restore, tmp_path, monkeypatch):
    source = make_video(tmp_path / "a.mp4", 3)
    add, stored = work.Work.add, []

    def filling(self, frame):
        stored.append(frame)
        if len(stored) == 3:
            self._file.close()
            self._file = open("/dev/full", "wb")  # noqa: SIM115  closed by the work
        add(self, frame)

    monkeypatch.setattr(work.Work, "add", filling)
    outcome = restore(source, "-o", tmp_path / "b.mp4")
    assert outcome.code == 1 and "no space left to write" in outcome.errors[0] and "stopped with 0 of 1" in outcome.err
    assert "goes on after frame 2" in restore(source, "-o", tmp_path / "b.mp4").err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")
def test_a_killed_process_goes_on(restore, weights, tmp_path):
    source = make_video(tmp_path / "a.mp4", 4)
    arguments = ["restore", source, "-o", tmp_path / "b.mp4", "--weights", weights["nano-x4"], "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, encoding="utf-8") as process:
        assert any(line == "third\n" for line in process.stderr)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
    assert not (tmp_path / "b.mp4").exists()
    outcome = restore(source, "-o", tmp_path / "b.mp4", "--device", "cpu")
    assert outcome.code == 0 and "goes on after frame 2" in outcome.err
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].frames == 4
    assert restoring.folder_for(tmp_path / "b.mp4").exists() is False
