"""Counting, timing, profiling and autotuning."""
