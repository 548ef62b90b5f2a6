"""``nnm eval``: the group of commands that measure; each command lives in a module of its own."""

from __future__ import annotations

import typer

from nnm_core.cli import eval_gate_commands
from nnm_core.cli.eval_gate import group as gates

group = typer.Typer(name="eval", help="Measure: with controls, intervals and paired tests.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Put the group into `app`."""
    eval_gate_commands.register(gates)
    group.add_typer(gates)
    app.add_typer(group)
