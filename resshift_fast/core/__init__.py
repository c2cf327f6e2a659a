"""Modules that import nothing else of this package: cache folder, devices, files, error limits, NVTX, GPU timing."""
