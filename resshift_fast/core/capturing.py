"""Of several threads, one captures a CUDA graph or times kernels."""

from threading import RLock

# A capture does not survive another one's wait for the device, and two threads that time would time each other. Who
# holds it may take it again: kernels are timed in the runs before a capture.
alone = RLock()
