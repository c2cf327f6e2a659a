"""The peak of this process's memory."""

import numpy as np
import pytest

from resshift_fast.measure import memory


def test_the_peak_is_measured_and_can_be_reset():
    if not memory.reset_peak():
        pytest.skip("this system cannot reset the peak")
    low = memory.peak_bytes()
    held = np.ones(1 << 25)  # 256 MiB
    high = memory.peak_bytes()
    assert high > low + 0.8 * held.nbytes
    del held
    assert memory.reset_peak() and memory.peak_bytes() < high - 0.5 * 2**28
