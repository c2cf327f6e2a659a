"""`restore --ray` on a cluster of two nodes, one of whose workers is killed, and then a node.

RESSHIFT_FAST_CLUSTER_PHOTOS sets the number of photos, by default 12.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from other_projects import needs
from PIL import Image
from sample_photos import names

needs("ray")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
SCRIPT = Path(__file__).parents[1] / "cluster_run.py"


def restore(*arguments):
    """Run the command in a process of its own; returns its exit code and what it printed on stdout and stderr."""
    command = [sys.executable, "-m", "resshift_fast", "restore", *map(str, arguments), "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of tiny photos, and what a run on one machine makes of them."""
    folder, plain = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("plain")
    for i in range(int(os.environ.get("RESSHIFT_FAST_CLUSTER_PHOTOS", "12"))):
        Image.linear_gradient("L").resize((24, 20)).rotate(7 * i).convert("RGB").save(folder / f"{i}.png")
    run = restore(folder, "-o", plain, "--seed", "3")
    assert run.returncode == 0, run.stderr
    return folder, plain


def test_a_killed_worker_and_a_killed_node_lose_no_photo(photos, tmp_path):
    folder, plain = photos
    out, count = tmp_path / "out", len(names(folder))
    command = [sys.executable, SCRIPT, folder, out, "--seed", "3"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert not found["strays"], "on stdout are lines that are none of --json"
    assert found["code"] == 0 and found["killed"] == ["worker", "node"], found["said"]
    assert Counter(Path(line["input"]).name for line in found["lines"]) == Counter(names(folder))
    # A result may have been written when its worker was killed.
    statuses = Counter(line["status"] for line in found["lines"])
    assert statuses["restored"] + statuses["skipped"] == count and statuses["skipped"] <= 2, found["said"]
    assert names(out) == names(plain)
    assert all((out / name).read_bytes() == (plain / name).read_bytes() for name in names(plain))


def test_stores_a_bad_photo_and_resuming(photos, tmp_path):
    folder, plain = photos
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    out.mkdir()
    for name in names(folder)[:3]:
        (source / name).write_bytes((folder / name).read_bytes())
    (source / "bad.png").write_text("text")
    done = names(folder)[0]
    (out / done).write_bytes(b"an earlier result")
    # To fsspec these are no files of this machine, so they are copied there and back.
    stores = (f"simplecache::file://{source}", "-o", f"simplecache::file://{out}")
    run = restore(*stores, "--ray", "local", "--ray-workers", 1, "--seed", 3, "--skip-existing", "--json")
    assert run.returncode == 1 and "2 restored, 1 failed, 1 skipped" in run.stderr, run.stderr
    assert "bad.png is a text file" in run.stderr.splitlines()[-2]
    assert len([json.loads(line) for line in run.stdout.splitlines()]) == 4
    assert names(out) == names(folder)[:3] and (out / done).read_bytes() == b"an earlier result"
    for name in names(folder)[1:3]:
        assert (out / name).read_bytes() == (plain / name).read_bytes()
