"""Batches with a teacher's pictures: made once, kept, and turned when they are repeated."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from training_runs import PLAN

from resshift_fast.training import rrdb
from resshift_fast.training.config import TrainConfig
from resshift_fast.training.data import Patches, PatchPlan
from resshift_fast.training.degradations import resize
from resshift_fast.training.degradations.second_order import SecondOrder
from resshift_fast.training.interfaces import Batch
from resshift_fast.training.photos import Photos
from resshift_fast.training.pixels import to_images
from resshift_fast.training.taught import Options, Taught, from_config, turned

BATCH_PLAN = PatchPlan(patch=64)


class Teacher(nn.Module):
    """Enlarges by repeating pixels, and counts its calls."""

    calls = 0

    def forward(self, low):
        Teacher.calls += 1
        return F.interpolate(low, scale_factor=4, mode="nearest")


@pytest.fixture
def make(photos, tmp_path):
    Teacher.calls = 0

    def taught(plan=PLAN, degradation=None, **options):
        patches = Patches(Photos([photos], min_side=64), plan, 0, 2)
        values = {"folder": str(tmp_path / "kept"), "batches": 2} | options
        return Taught(patches, degradation, Options(**values), Teacher)

    return taught


def test_a_batch_has_what_the_teacher_makes_of_its_low_side(make):
    batch = make().batch(0, range(2))
    assert batch.high.shape == batch.taught.shape == (2, 3, 64, 64) and batch.low.shape == (2, 3, 16, 16)
    assert torch.equal(batch.taught, F.interpolate(batch.low, scale_factor=4, mode="nearest"))
    assert batch[:1].taught.shape[0] == 1


def test_pictures_are_made_once_and_made_again_where_a_file_is_damaged(make):
    first = make()
    batches = [first.batch(step, range(2)) for step in (0, 1)]
    again = make()
    same = [again.batch(step, range(2)) for step in (0, 1)]
    assert Teacher.calls == 2
    assert all(torch.equal(a.taught, b.taught) for a, b in zip(batches, same, strict=True))
    (file,) = again.folder.glob("000000-*.npz")
    file.write_bytes(file.read_bytes()[:1000])
    assert torch.equal(make().batch(0, range(2)).low, batches[0].low) and Teacher.calls == 3


def test_a_repeated_batch_is_turned(make):
    taught = make(batches=1)
    seen = {taught.batch(step, range(2)).high.numpy().tobytes() for step in range(12)}
    assert Teacher.calls == 1 and 3 < len(seen) <= 8
    plain, ways = Batch(*torch.rand(2, 1, 3, 4, 4)), []
    for way in range(8):
        batch = turned(plain, way)
        ways.append(batch.high.numpy().tobytes())
        wanted = plain.low.numpy()[:, :, :: -1 if way & 2 else 1, :: -1 if way & 1 else 1]
        wanted = wanted.swapaxes(2, 3) if way & 4 else wanted
        assert np.array_equal(batch.low.numpy(), wanted)
    assert len(set(ways)) == 8


def test_new_batches_have_no_teacher(make):
    taught = make(fresh=1.0)
    batches = [taught.batch(step, range(2)) for step in range(3)]
    assert all(batch.taught is None for batch in batches) and Teacher.calls == 0
    assert len({batch.high.numpy().tobytes() for batch in batches}) == 3
    kept = make().batch(0, range(2))
    assert not any(torch.equal(batch.high, kept.high) for batch in batches)


def test_other_settings_have_other_files(make):
    folders = {make().folder, make(clean=0.5).folder, make(PatchPlan(patch=128)).folder, make(BATCH_PLAN).folder}
    assert len(folders) == 4 and make(batches=7).folder in folders


def only_reduced(batch):
    """Whether the low-quality patches are their high-quality ones, bicubically reduced."""
    high, low = to_images(batch.high), to_images(batch.low)
    return all(np.abs(resize(h, 8, 8).astype(int) - one).max() <= 1 for h, one in zip(high, low, strict=True))


def test_a_share_is_only_reduced(make):
    degradation = SecondOrder(gt_size=32)
    batch = make(BATCH_PLAN, degradation, clean=1.0).batch(0, range(2))
    assert batch.high.shape == (2, 3, 32, 32) and only_reduced(batch)
    assert not only_reduced(make(BATCH_PLAN, degradation).batch(0, range(2)))


def test_new_batches_have_a_share_of_their_own(make):
    degradation = SecondOrder(gt_size=32)
    taught = make(BATCH_PLAN, degradation, fresh=1.0, fresh_clean=1.0)
    assert only_reduced(taught.batch(0, range(2)))
    assert not only_reduced(make(BATCH_PLAN, degradation, fresh=1.0, clean=1.0, fresh_clean=0.0).batch(0, range(2)))
    assert only_reduced(make(BATCH_PLAN, degradation, fresh=1.0, clean=1.0).batch(0, range(2)))
    assert taught.folder == make(BATCH_PLAN, degradation).folder  # which keeps the same batches


def test_settings_are_checked(make, photos, monkeypatch):
    patches = make().patches
    with pytest.raises(ValueError, match="batches must be at least 1"):
        Options("folder", batches=0)
    with pytest.raises(ValueError, match="fresh_clean is a probability"):
        Options("folder", fresh_clean=1.5)
    with pytest.raises(ValueError, match="taught needs a folder"):
        from_config(TrainConfig(data="", run="", taught={"batches": 3}), patches, None)
    other = Patches(patches.photos, PatchPlan(patch=64, scale=2), 0, 2)
    config = TrainConfig(data="", run="", taught={"folder": str(make().folder)})
    with pytest.raises(ValueError, match="the teacher enlarges ×4, but the model ×2"):
        from_config(config, other, None)
    monkeypatch.setattr(rrdb, "from_files", lambda path: Teacher())
    assert from_config(config, patches, None).batch(0, range(2)).taught is not None
