"""Options of the commands."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from resshift_fast.backends import names
from resshift_fast.core import dtypes
from resshift_fast.core.files import expand_home


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


def weights_files(weights: Path | None, autoencoder: Path | None) -> dict[str, Any]:
    """The keyword arguments of `Pipeline.from_pretrained` for the two options of these names."""
    files = {"weights": weights, "autoencoder": autoencoder}
    return {name: path and expand_home(path) for name, path in files.items()}


def _model_names() -> list[str]:
    from resshift_fast.models import catalog

    return list(catalog.MODELS)


def chosen_model(model: str | None, weights: Path | None, masked: bool = False) -> str:
    """The value of --model, or what it is by default."""
    from resshift_fast.models.catalog import default_model

    return model or default_model(masked, weights)


def model_option(then: str = "") -> Any:
    """The option --model; `then` ends the sentence of its default."""
    text = f"A name that `resshift-fast models` lists. Default: that of --weights, else photo-x4{then}."
    return option(text, metavar="NAME", autocompletion=one_of(_model_names))


# What commands that run a model have in common.
Model = Annotated[str | None, model_option()]
Weights = Annotated[Path | None, option("Weights of the denoiser. Default: the published ones.", metavar="FILE")]
Autoencoder = Annotated[Path | None, option("Weights of the autoencoder. Default: the published ones.", metavar="FILE")]
Threads = Annotated[int | None, option("Threads of the CPU that compute. Default: one per core.", min=1, metavar="N")]
Device = Annotated[
    str | None,
    option(
        "cpu, cuda, cuda:1, mps, ... Default: cuda if available, else cpu.",
        metavar="NAME",
        autocompletion=one_of(lambda: ("auto", "cpu", "cuda", "mps")),
    ),
]
Dtype = Annotated[
    str,
    option(
        "Floating-point format of the networks: float32, bfloat16 (bf16), float16 (fp16, half), or auto: bfloat16 "
        "on GPUs that are fast with it. Default: float32.",
        metavar="NAME",
        parser=parsed_by(dtypes.full_name),
        autocompletion=one_of(lambda: (*dtypes.NAMES, "auto")),
    ),
]
Backend = Annotated[
    str | None,
    option(
        f"Kernels: {', '.join(names())}. Default: RESSHIFT_FAST_BACKEND if that is set, else auto.",
        metavar="NAME",
        autocompletion=one_of(names),
    ),
]

# What servers have in common.
Host = Annotated[
    str,
    option(
        "Address to listen on: 127.0.0.1, for this machine alone, or such as 0.0.0.0, for all that reach it. "
        "Default: 127.0.0.1.",
        metavar="ADDRESS",
    ),
]
Port = Annotated[int, option("Port to listen on; 0: any that is free. Default: 8000.", min=0, max=65535, metavar="N")]
