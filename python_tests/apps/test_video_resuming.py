"""Interrupted, killed and full: how a run on a video goes on."""

import errno
import os
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pipelines
import pytest
from videos import FITTING, frames_in, make_video, restore

from resshift_fast.apps.video import encoding, restoring, work


def stopping(pipe, after):
    """A pipeline that is interrupted at a frame."""
    calls = []

    class Stopping:
        spec, device, dtype, plan_tiles = pipe.spec, pipe.device, pipe.dtype, pipe.plan_tiles
        denoiser, first_stage = pipe.denoiser, pipe.first_stage

        def __call__(self, photos, masks, **options):
            calls.extend(photos)
            if len(calls) > after:
                raise KeyboardInterrupt
            return pipe(photos, masks, **options)

    return Stopping(), calls


class Repeating:
    """Repeats pixels. Sums of floating-point numbers are not the same at every place in memory, and may be rounded to
    another level."""

    def __init__(self, pipe):
        self.spec, self.device, self.dtype = pipe.spec, pipe.device, pipe.dtype
        self.plan_tiles = pipe.plan_tiles
        self.denoiser, self.first_stage = pipe.denoiser, pipe.first_stage

    def __call__(self, photos, masks, **options):
        return [replace(photo, pixels=photo.pixels.repeat(4, 0).repeat(4, 1)) for photo in photos]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_interrupted_run_goes_on(bicubic, tmp_path, monkeypatch, batch_size):
    """The result is the same, byte for byte, and no frame of a whole call is restored again."""
    bicubic = Repeating(bicubic)
    monkeypatch.setattr(work, "frames_per_segment", lambda size, at_once: 3)
    monkeypatch.setattr(restoring, "frames_per_segment", lambda size, at_once: 3)
    source = make_video(tmp_path / "a.mp4", 11, sound="aac")
    restore(bicubic, source, tmp_path / "whole.mp4", batch_size=batch_size)
    output = tmp_path / "b.mp4"
    for after in (5, 3):
        stopped, _ = stopping(bicubic, after)
        with pytest.raises(KeyboardInterrupt):
            restore(stopped, source, output, batch_size=batch_size)
        assert not output.exists() and work.folder_for(output).is_dir()
    # As a process that is killed while it writes leaves it.
    with open(next(work.folder_for(output).glob("*.raw")), "ab") as file:
        file.write(b"\0" * 100)
    counted, calls = stopping(bicubic, 99)
    resumed = []

    def on_resume(*told):
        resumed.extend(told)

    planned = restoring.plan(source, output, FITTING)
    options = {"batch_size": batch_size}
    result = restoring.restore(counted, planned, FITTING, options=options, on_resume=on_resume)
    done = {1: 8, 3: 6}[batch_size]
    assert resumed == [done, []] and len(calls) == 11 - done and result.frames == 11
    assert output.read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    assert not work.folder_for(output).exists()


def test_a_run_that_is_killed_after_it_has_encoded_a_segment(bicubic, tmp_path, monkeypatch):
    """Its frames are not encoded again, although they are still in the store."""
    monkeypatch.setattr(restoring, "frames_per_segment", lambda size, at_once: 3)
    source = make_video(tmp_path / "a.mp4", 5)

    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(work.Work, "finish_segment", killed)
        with pytest.raises(KeyboardInterrupt):
            restore(bicubic, source, tmp_path / "b.mp4")
    assert len(list(work.folder_for(tmp_path / "b.mp4").glob("000000.*"))) == 2
    counted, calls = stopping(bicubic, 99)
    assert restore(counted, source, tmp_path / "b.mp4").frames == 5 and len(calls) == 2
    np.testing.assert_allclose(frames_in(tmp_path / "b.mp4")[1], np.arange(5) / 10)


@pytest.mark.parametrize("change", ["seed", "quality", "source", "weights"])
def test_other_settings_begin_anew(bicubic, tmp_path, change):
    source = make_video(tmp_path / "a.mp4", 4)
    stopped, _ = stopping(bicubic, 2)
    with pytest.raises(KeyboardInterrupt):
        restore(stopped, source, tmp_path / "b.mp4", seed=0)
    fitting, seed, pipe = FITTING, 0, bicubic
    if change == "seed":
        seed = 1
    elif change == "quality":
        fitting = replace(FITTING, quality=50)
    elif change == "source":
        os.utime(source, (1, 1))
    else:
        pipe = pipelines.oracle(pipelines.zero)
        pipe.denoiser.weight.data += 1
    counted, calls = stopping(pipe, 99)
    planned, told = restoring.plan(source, tmp_path / "b.mp4", fitting), []
    restoring.restore(counted, planned, fitting, options={"seed": seed}, on_resume=lambda *these: told.extend(these))
    assert len(calls) == 4 and told == [0, ["encoding" if change == "quality" else change]]


def test_a_stored_frame_that_is_damaged_is_restored_again(tmp_path):
    shape, dtype = (6, 4), np.dtype(np.uint8)
    arguments = tmp_path / "w", {"seed": "1"}, shape, dtype, 5
    first = work.Work(*arguments)
    for i in range(3):
        first.add(work.Stored(np.full(shape, i, dtype), 10 * i, 10))
    first.close()
    store = tmp_path / "w" / "000000.raw"
    data = bytearray(store.read_bytes())
    data[-5] ^= 1
    store.write_bytes(data)
    second = work.Work(*arguments)
    assert second.done == 2 and [frame.time for frame in second.frames()] == [0, 10]
    second.close()


def test_the_end_is_not_restored_again(bicubic, tmp_path, monkeypatch):
    """If joining fails, as on a full disk, all frames are kept."""
    source = make_video(tmp_path / "a.mp4", 3)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(
            os, "replace", lambda source, target: full() if str(target).endswith("b.mp4") else os.rename(source, target)
        )
        with pytest.raises(OSError, match="no space left to write .*b.mp4"):
            restore(bicubic, source, tmp_path / "b.mp4")
    counted, calls = stopping(bicubic, 99)
    assert restore(counted, source, tmp_path / "b.mp4").frames == 3 and not calls


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
@pytest.mark.parametrize("name", ["000000.nut", "b.mp4"])
def test_a_full_disk_is_named_while_it_is_encoded(bicubic, tmp_path, monkeypatch, name):
    replacing = encoding.replacing

    @contextmanager
    def full(path):
        with replacing(path) as file, open("/dev/full", "wb", buffering=0) as device:
            yield device if path.name == name else file

    monkeypatch.setattr(encoding, "replacing", full)
    source = make_video(tmp_path / "a.mp4", 2, sound="aac")
    with pytest.raises(OSError, match="o space left") as caught:
        restore(bicubic, source, tmp_path / "b.mp4")
    assert caught.value.errno == errno.ENOSPC and not (tmp_path / "b.mp4").exists()
