"""``nnm eval``: the group of commands that measure; each command lives in a module of its own."""

from __future__ import annotations

import typer

group = typer.Typer(name="eval", help="Measure: with controls, intervals and paired tests.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Put the group into `app`."""
    app.add_typer(group)
