"""The command line: thin commands over the package, with one-line errors."""

import os
import sys

# By each of these a user decides how long OpenMP's threads look for work before they sleep.
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def main() -> None:
    """Run `resshift-fast` on the process's arguments; ends with SystemExit."""
    from resshift_fast.cli.console import open_missing

    open_missing()
    let_threads_sleep()
    try:
        from resshift_fast.cli.app import run

        run()
    except KeyboardInterrupt:  # during the imports; commands handle it themselves
        sys.exit(130)


def let_threads_sleep() -> None:
    """Have torch's threads sleep soon after an operator, unless the user has decided otherwise; before torch is loaded.

    libgomp's default is to look for work for some milliseconds, which takes a processor from whoever has work: from the
    kernels' own threads, and from other programs, that make each operator wait for such a thread.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ["GOMP_SPINCOUNT"] = "1000"
