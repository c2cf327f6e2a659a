"""The command line: thin commands over the package, with every error in one line."""


def main() -> None:
    """Run `resshift-fast` on the process's arguments; ends with SystemExit."""
    from resshift_fast.cli.app import run

    run()
