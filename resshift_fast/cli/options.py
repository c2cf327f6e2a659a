"""Options of the commands."""

from collections.abc import Callable, Iterable
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


def one_of(values: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What a shell completes an option's value with; `values` is called when it does."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def parsed_by(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A function as `parser` of an option, whose ValueError is wrong usage."""

    def convert(text: str) -> Any:
        try:
            return parse(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return convert


def shown(text: str, *names: str, **details: Any) -> Any:
    """An option with its default after the help text, which names it where it is None; arguments as of `option`."""
    return typer.Option(*names, help=text, show_default=True, **details)
