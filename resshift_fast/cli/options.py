"""Options of the commands."""

from typing import Any

import typer


def option(text: str, *names: str, **details: Any) -> Any:
    """An option whose help text states its default, since many defaults depend on the model or the machine.

    Args:
        text: the help, with "Default: …" unless the option is required, and with the unit of a number.
        names: as in `typer.Option`, by default "--" and the parameter's name.
        details: further arguments of `typer.Option`.
    """
    return typer.Option(*names, help=text, show_default=False, **details)
