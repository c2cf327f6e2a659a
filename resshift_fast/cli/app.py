"""The program `resshift-fast`: its commands, and the handling of streams, warnings and errors around them."""

from __future__ import annotations

import io
import logging
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
from resshift_fast.cli.export import export
from resshift_fast.cli.models import models
from resshift_fast.cli.page import page
from resshift_fast.cli.profile import profile
from resshift_fast.cli.report import report
from resshift_fast.cli.restore import RestoreCommand, restore
from resshift_fast.cli.serve import serve
from resshift_fast.cli.train import train
from resshift_fast.cli.train_autoencoder import train_autoencoder
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
app = typer.Typer(
    name="resshift-fast",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command(cls=RestoreCommand)(_interruptible(restore))
_commands: tuple[Callable[..., None], ...] = (serve, models, doctor, train, train_autoencoder, export, profile)
for command in _commands:
    app.command()(_interruptible(command))
app.command("compile")(_interruptible(compile_kernels))
app.command("app")(_interruptible(page))
for command in (e2e, bench.count, bench.roofline, tune, report):
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
    console.prepare_logging()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            code = _run()
        sys.stdout.flush()  # here, since an error at exit would be a traceback
        sys.stderr.flush()
        error = getattr(sys.stdout, "error", None)
        if error is not None and not isinstance(error, BrokenPipeError):  # a closed pipe is no error, as after `| head`
            reason = error.strerror or error
            console.say(f"error: the output cannot be written: {reason}; send it elsewhere", logging.ERROR)
            code = code or 1
    finally:
        console.end_logging()
    sys.exit(code)


def _show_warning(message: object, *_: object, **__: object) -> None:
    console.say(f"warning: {console.one_line(message)}", logging.WARNING)


def _run() -> int:
    """Run the command that the arguments name; returns the exit code."""
    try:
        return app(standalone_mode=False) or 0
    except typer.Abort:
        return 1
    except Exception as error:  # one line for users; RESSHIFT_FAST_DEBUG=1 adds the traceback
        show = getattr(error, "show", None)
        if show is None:
            console.report(error)
            return 1
        # Wrong usage. Typer would write to the terminal past the streams that are prepared here.
        text = io.StringIO()
        show(file=text)
        print(text.getvalue(), file=sys.stderr, end="")
        return int(getattr(error, "exit_code", 2))
