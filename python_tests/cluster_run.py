"""A run of `restore --ray` on a cluster of two nodes, one of whose workers is killed, and then a node; prints JSON.

    python python_tests/cluster_run.py PHOTOS OUT [OPTIONS OF restore]

A worker of the first node is killed after a quarter of the photos, and the second node after half of them.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

os.environ |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}

from ray.cluster_utils import Cluster

MEMORY = 80_000_000  # bytes, the least that Ray takes
SECONDS = 1500


def raylet(node):
    """The process id of a node's daemon, which starts its workers."""
    return node.all_processes["raylet"][0].process.pid


def workers(node):
    """The process ids of a node's workers that restore."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet(node) and "MapWorker" in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return found


def main(photos, out, *options):
    total = sum(1 for path in Path(photos).iterdir() if path.suffix == ".png")
    node = {"num_cpus": 1, "object_store_memory": MEMORY}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    second = cluster.add_node(**node)
    command = [sys.executable, "-m", "resshift_fast", "restore", "--ray", cluster.address, photos, "-o", out]
    lines, strays, killed = [], [], []
    try:
        with subprocess.Popen(
            [*command, "--threads", "1", "--json", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as program:
            signal.signal(signal.SIGALRM, lambda *_: program.kill())
            signal.alarm(SECONDS)
            for line in program.stdout:
                try:
                    lines.append(json.loads(line) | {"at": time.monotonic()})
                except ValueError:
                    strays.append(line)
                    continue
                if len(lines) == total // 4 and workers(cluster.head_node):
                    killed.append("worker")
                    os.kill(workers(cluster.head_node)[0], signal.SIGKILL)
                if len(lines) == total // 2:
                    killed.append("node")
                    cluster.remove_node(second, allow_graceful=False)
            said = program.stderr.read()
        found = {"code": program.returncode, "killed": killed, "lines": lines, "strays": strays, "said": said}
        print(json.dumps(found), flush=True)
    finally:
        cluster.shutdown()


main(*sys.argv[1:])
