"""Trainings in two processes, as torchrun starts them, against one process with the whole batch."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from training_runs import read_log

from resshift_fast.training.distributed import Processes, parts_of

WORKER = Path(__file__).parents[1] / "training_worker.py"


STEPS = 20
KINDS = ("denoiser", "student", "autoencoder")


def _train(photos, folder, processes):
    """Train the networks of all kinds in one process, or several; returns what was said."""
    start = [sys.executable] if processes == 1 else [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += [] if processes == 1 else [f"--nproc-per-node={processes}"]
    paths = os.pathsep.join([str(WORKER.parent), str(WORKER.parents[1])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [*start, str(WORKER), str(photos), str(folder), str(STEPS), *KINDS]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_two_processes_train_as_one_does_and_write_one_log(photos, tmp_path):
    _train(photos, tmp_path / "one", 1)
    said = _train(photos, tmp_path / "two", 2)
    assert said.count(f"step {STEPS}/{STEPS}") == len(KINDS)
    _compare(tmp_path, "denoiser", {"loss": 20, "val_psnr_y_clean": 2})
    columns = ("loss", "rsd_loss", "generator_loss", "fake_loss", "discriminator_loss")
    _compare(tmp_path, "student", dict.fromkeys(columns, 20))
    columns = {"loss": 20, "val_psnr_y_reconstructed": 2, "l1": 20, "lambda": 18, "usage": 20}
    _compare(tmp_path, "autoencoder", columns)


def _compare(folder, kind, columns):
    """Compare the gradients, the numbers in the log, with how many rows have one, and the names of the files."""
    alone, together = folder / "one" / kind, folder / "two" / kind
    one = torch.load(alone / "gradients-0.pt")
    both = [torch.load(together / f"gradients-{rank}.pt") for rank in range(2)]
    largest = max(float(gradient.abs().max()) for gradient in one)
    for reference, first, second in zip(one, *both, strict=True):
        assert torch.equal(first, second), kind
        assert float((first - reference).abs().max()) <= 1e-5 * largest, kind
    logs = [read_log(path) for path in (alone, together)]
    for column, count in columns.items():
        expected, found = ([float(row[column]) for row in log if row[column]] for log in logs)
        assert found == pytest.approx(expected, rel=1e-4) and len(found) == count, f"{kind}: {column}"
    names = [
        {path.name for path in run.iterdir() if not path.name.startswith("gradients")} for run in (alone, together)
    ]
    assert names[0] == names[1], kind


@pytest.mark.parametrize(("count", "size"), [(1, 6), (2, 6), (3, 6)])
def test_processes_share_a_batch_without_gap_or_overlap(monkeypatch, count, size):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", str(count))
    found = []
    for rank in range(count):
        monkeypatch.setenv("RANK", str(rank))
        processes = Processes("cpu")
        found += processes.indices(size)
        assert processes.is_main == (rank == 0)
    assert found == list(range(size))


def test_parts_cover_a_batch_in_order():
    parts = list(parts_of(6, 3))
    assert [part.stop - part.start for part in parts] == [2, 2, 2] and parts[0].start == 0
    assert all(first.stop == second.start for first, second in pairwise(parts))
    assert list(parts_of(5, 3)) == [slice(0, 5)]
