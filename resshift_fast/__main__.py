"""`python -m resshift_fast` is `resshift-fast`."""

from resshift_fast.cli import main

main()
