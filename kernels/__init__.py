"""Triton kernels and their launchers, one file an operator; `resshift_fast.ops` says what each computes."""
