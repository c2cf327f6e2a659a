"""The program `resshift-fast`: its commands, and the handling of streams, warnings and errors around them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from resshift_fast import __version__
from resshift_fast.cli import bench, console
from resshift_fast.cli.compile import compile_kernels
from resshift_fast.cli.doctor import doctor
from resshift_fast.cli.e2e import e2e
from resshift_fast.cli.models import models
from resshift_fast.cli.profile import profile
from resshift_fast.cli.restore import restore
from resshift_fast.cli.train import train
from resshift_fast.cli.tune import tune


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command exit with code 130 on Ctrl-C, as other programs do; typer's versions differ here."""

    @wraps(command)
    def run_command(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            console.say("interrupted")
            raise typer.Exit(130) from None

    return run_command


# Help is plain text, so that it is the same in every terminal, pipe and encoding.
app = typer.Typer(name="resshift-fast", add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
for command in (restore, models, doctor, train, profile):
    app.command()(_interruptible(command))
app.command("compile")(_interruptible(compile_kernels))
for command in (e2e, bench.count, bench.roofline, tune):
    bench.app.command()(_interruptible(command))
app.add_typer(bench.app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"resshift-fast {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Restore photos with ResShift diffusion models: super-resolution, face restoration, inpainting."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def run() -> None:
    """Run the program on the process's arguments: plain streams, one-line warnings and errors; raises SystemExit."""
    console.prepare_streams()
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: console.say(f"warning: {console.one_line(message)}")
        try:
            app()
        except Exception as error:  # one line for users; RESSHIFT_FAST_DEBUG=1 adds the traceback
            console.report(error)
            sys.exit(1)
        finally:
            _flush()


def _flush() -> None:
    """Flush stdout here, where a closed pipe, as after `| head`, can be ignored; at exit it would print an error."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
