"""A lock that allows one thread at a time to capture a CUDA graph or to time kernels."""

from threading import RLock

# A capture fails if another thread synchronizes the device, and kernels of two threads would share the GPU while they
# are timed. Reentrant, because kernels are autotuned in the warm-up runs before a capture.
capture_lock = RLock()
