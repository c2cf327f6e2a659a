"""Runs the command line: `python -m resshift_fast` does the same as `resshift-fast`."""

from resshift_fast.cli import main

main()
