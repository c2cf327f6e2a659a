"""The command line: thin commands over the package, with every error in one line."""

import sys


def main() -> None:
    """Run `resshift-fast` on the process's arguments; ends with SystemExit."""
    try:
        from resshift_fast.cli.app import run

        run()
    except KeyboardInterrupt:  # outside the commands, which have their own say
        sys.exit(130)
