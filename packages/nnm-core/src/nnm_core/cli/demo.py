"""``nnm demo``: real documents, four ways to answer, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from nnm_core.cli import session as shared


def register(app: typer.Typer) -> None:
    """Put the command into `app`."""
    app.command()(demo)


def demo(
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the plot and the page go.")] = Path("out/demo"),
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    device: shared.DeviceOption = None,
    json: shared.JsonOption = None,
) -> None:
    """Compare the bare model, classic RAG, NNM, and NNM with random memories on real questions."""
