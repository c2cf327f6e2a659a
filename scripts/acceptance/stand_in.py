"""Replaces compute-sanitizer on a machine without a GPU: runs the given program without checking it.

python stand_in.py --tool racecheck --error-exitcode 9 python -m pytest ...
"""

import os
import sys


def main(arguments: list[str]) -> None:
    """Skip the options, each with its value, and execute the program."""
    while arguments and arguments[0].startswith("--"):
        arguments = arguments[2:]
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
