"""The program: its commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from nnm_core._version import __version__
from nnm_core.cli import ask, compare, demo, doctor, eval_citations, eval_retrieval, evaluate, layers, memory, sweep
from nnm_core.cli.output import readable_warnings, show_error, show_unexpected
from nnm_core.errors import NNMError

EXIT_ERROR = 1
EXIT_UNEXPECTED = 70  # EX_SOFTWARE of sysexits.h
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="nnm",
    help="Neural Native Memory: text goes in once, and the model's own states come back instead of the text.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nnm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Only for the options that stand before a command."""


demo.register(app)
compare.register(app)
memory.register_add(app)
ask.register(app)
memory.register(app)
evaluate.register(app)
eval_retrieval.register(evaluate.group)
eval_citations.register(evaluate.group)
sweep.register(app)
layers.register(app)
doctor.register(app)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and leave with its exit code.

    0: done; 1: an error that the message explains; 2: wrong usage; 70: an error that nobody thought of; 130: Ctrl-C.
    ``NNM_TRACEBACK=1`` in the environment lets every error through with its traceback.
    """
    with readable_warnings():
        try:
            app(args=None if arguments is None else list(arguments), prog_name="nnm")
        except NNMError as error:
            _reraise_if_asked()
            show_error(error)
            sys.exit(EXIT_ERROR)
        except KeyboardInterrupt:
            sys.exit(EXIT_INTERRUPTED)
        except Exception as error:  # noqa: BLE001 - the outermost frame: nothing above it could handle it
            _reraise_if_asked()
            show_unexpected(error)
            sys.exit(EXIT_UNEXPECTED)


def _reraise_if_asked() -> None:
    if os.environ.get("NNM_TRACEBACK"):
        raise
