"""The peak of this process's memory."""

import numpy as np
import pytest

from resshift_fast.measure import memory


def test_the_peak_is_measured_and_can_be_reset():
    before = memory.peak_bytes()
    held = np.ones(1 << 25)  # 256 MiB
    assert memory.peak_bytes() >= before + 0.8 * held.nbytes or memory.peak_bytes() >= held.nbytes
    if not memory.reset_peak():
        pytest.skip("this system cannot reset the peak")
    high = memory.peak_bytes()
    del held
    assert memory.reset_peak() and memory.peak_bytes() < high - 0.5 * 2**28
