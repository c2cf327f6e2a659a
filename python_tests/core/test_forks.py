"""A process that is forked after a restoration restores too, instead of waiting for threads that it does not have."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import multiprocessing, numpy as np, torch, tiny_models
tiny_models.install()
torch.set_num_threads(2)
from resshift_fast import Pipeline, ops

pipe = Pipeline.from_pretrained(random_weights=True)
photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)

def restore(_):
    return torch.get_num_threads(), pipe(photo, progress=False)

def matrices(_):
    a = torch.randn(700, 700)
    return torch.get_num_threads(), (a @ a).relu().numpy()

def concatenated(threads):
    torch.set_num_threads(threads)
    with torch.no_grad():
        results = [ops.concat(x, x) for _ in range(3)]
    torch.set_num_threads(1)  # for torch's own operators
    return [result.equal(torch.cat([x, x], dim=1)) for result in results]

x = torch.randn(1, 64, 64, 64).contiguous(memory_format=torch.channels_last)
assert all(concatenated(2))  # starts the kernels' own threads
torch.set_num_threads(2)
expected = restore(0)[1]
matrices(0)
with multiprocessing.get_context("fork").Pool(2) as pool:
    for threads, result in pool.map_async(restore, range(2)).get(90):
        assert threads == 1 and np.abs(result.astype(int) - expected).max() <= 1, threads
    assert all(threads == 1 for threads, _ in pool.map_async(matrices, range(2)).get(90))
    # The kernels' own threads are started anew where more than one is asked for.
    assert all(all(found) for found in pool.map_async(concatenated, (2, 3)).get(90))
assert torch.get_num_threads() == 2
"""


@pytest.mark.slow
@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no forks here")
def test_forked_processes_restore_on_one_thread():
    folder = Path(__file__).resolve().parents[1]
    done = subprocess.run([sys.executable, "-c", CODE], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
