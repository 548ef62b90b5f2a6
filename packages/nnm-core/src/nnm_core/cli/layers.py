"""``nnm layers``: the model's layers as the stored texts see them, and which of them to re-route."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, stderr, stdout
from nnm_core.cli.session import Session, opened
from nnm_core.evaluation.report import plain, write_json

if TYPE_CHECKING:
    from nnm_core.embedding.layers import LayerProfile


def register(app: typer.Typer) -> None:
    """Put the command into `app`."""
    app.command("layers")(layers)


def layers(
    count: Annotated[int, typer.Option(min=3, help="Memories to measure on.")] = 200,
    labels: Annotated[
        int, typer.Option(min=0, help="Own sentences that have to find their memories; 0: the paper's rule decides.")
    ] = 64,
    apply: Annotated[bool, typer.Option("--apply", help="Embed by the choice from now on: reads all again.")] = False,
    plot: Annotated[Path, typer.Option(metavar="FILE", help="Where the plot goes.")] = Path("layers.png"),
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    path: shared.PathOption = shared.DEFAULT_PATH,
    namespace: shared.NamespaceOption = shared.DEFAULT_NAMESPACE,
    device: shared.DeviceOption = None,
    url: shared.UrlOption = None,
    json: shared.JsonOption = None,
) -> None:
    """Measure every layer's intrinsic dimension and what re-routing it brings; the choice is kept with the memory."""
    from nnm_core.evaluation.layer_plot import plot_layers

    session = Session(model, path, namespace, device, url=url)
    with opened(session) as engine, stderr().status("Measuring ...") as status:
        profile = engine.profile_layers(count, labels=labels, apply=apply, progress=status.update)
    plot_layers(profile, plot)
    if not owns_stdout(json):
        stdout().print(_table(profile))
        stdout().print(f"Chosen: {_names(profile.chosen) or 'no re-routing'}: {profile.reason}.")
        stderr().print(f"The plot is in {plot}.")
    rows = {
        f"layer {row.layer}": {
            "last_token": row.last_token,
            "all_tokens": row.all_tokens,
            "self_retrieval": row.self_retrieval,
        }
        for row in profile.rows
    }
    config = {**session.config(), "count": count, "labels": labels, "applied": apply}
    write_json(json, {"arms": rows, "profile": plain(profile), "config": config})


def _table(profile: LayerProfile) -> Table:
    shape = "U-shaped" if profile.u_shaped else "not U-shaped"
    without = "" if profile.baseline is None else f"; own sentences without re-routing: {profile.baseline:.3f}"
    table = Table(title=f"TwoNN intrinsic dimension ({shape}){without}", title_justify="left")
    for name in ("layer", "last token", "all tokens", "own sentences found", ""):
        table.add_column(name, justify="right")
    for row in profile.rows:
        marks = [
            word for word, inside in (("rule", profile.by_rule), ("chosen", profile.chosen)) if row.layer in inside
        ]
        found = "" if row.self_retrieval is None else f"{row.self_retrieval:.3f}"
        table.add_row(str(row.layer), f"{row.last_token:.1f}", f"{row.all_tokens:.1f}", found, ", ".join(marks))
    return table


def _names(chosen: tuple[int, ...]) -> str:
    return ", ".join(map(str, chosen))
