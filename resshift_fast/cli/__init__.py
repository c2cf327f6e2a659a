"""The command line: thin commands over the package, with one-line errors."""

import sys


def main() -> None:
    """Run `resshift-fast` on the process's arguments; ends with SystemExit."""
    from resshift_fast.cli.console import open_missing

    open_missing()
    try:
        from resshift_fast.cli.app import run

        run()
    except KeyboardInterrupt:  # during the imports; commands handle it themselves
        sys.exit(130)
