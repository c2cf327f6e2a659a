"""Takes the place of compute-sanitizer where there is no GPU: runs the program that it is given, without a look at it.

python stand_in.py --tool racecheck --error-exitcode 9 python -m pytest ...
"""

import os
import sys


def main(arguments: list[str]) -> None:
    """Leave out the options, each with its value, and become the program."""
    while arguments and arguments[0].startswith("--"):
        arguments = arguments[2:]
    os.execvp(arguments[0], arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
