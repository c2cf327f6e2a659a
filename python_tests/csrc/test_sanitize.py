"""Under scripts/sanitize.py, an out-of-bounds or misaligned access ends the process with a report."""

import os
import re
import subprocess
import sys
from pathlib import Path

import emulation
import pytest

pytestmark = pytest.mark.skipif(not emulation.SANITIZED, reason="runs under scripts/sanitize.py")

OVERFLOW = "AddressSanitizer: heap-buffer-overflow"
# Arrays are large enough that numpy does not cache their memory for later ones.
CALLS = {
    "dynamic-shared": ("past_the_end(nan(33), True, {})", 1, rf"{OVERFLOW}(.|\n)*WRITE of size 4(.|\n)*past_the_end"),
    "static-shared": ("static_past_the_end(nan(32), {})", 1, rf"{OVERFLOW}(.|\n)*WRITE of size 4(.|\n)*past_the_end"),
    "global": ("past_the_end(nan(33), False, {})", 1, rf"{OVERFLOW}(.|\n)*WRITE of size 4(.|\n)*past_the_end"),
    "global-read": ("vector_load(nan(502), nan(4), 496 + {})", 4, rf"{OVERFLOW}(.|\n)*READ of size"),
    "asynchronous-copy": ("async_copy(nan(128 - {}), nan(128), True)", 4, rf"{OVERFLOW}(.|\n)*READ of size"),
    "misaligned": ("vector_load(nan(500), nan(4), {})", 1, r"runtime error: .* misaligned address .* requires 16 byte"),
}


def run(*calls):
    """Call deliberately faulty kernels of the emulation, one after the other, in a process of their own."""
    script = "import emulation, numpy as np\nnan = lambda n: np.full(n, np.nan, np.float32)\n"
    script += "".join(f"emulation.module().selftest.{call}\nprint('returned', flush=True)\n" for call in calls)
    environment = {**os.environ, "PYTHONPATH": str(Path(emulation.__file__).parent)}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, cwd=emulation.ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", CALLS)
def test_a_fault_is_reported(name, built):
    call, excess, report = CALLS[name]
    done = run(call.format(0), call.format(excess))
    assert done.returncode != 0 and done.stdout == "returned\n", done.stderr
    assert re.search(report, done.stderr), done.stderr
