"""``nnm doctor --costs`` and ``--calibrate``: what injecting costs here, and how near it comes to reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nnm_core.cli import session as shared
from nnm_core.cli.output import stderr
from nnm_core.evaluation.report import seconds
from nnm_core.progress import bar

if TYPE_CHECKING:
    from nnm_core.injection.costs import Costs, Curve
    from nnm_core.injection.planner import Planner, Quality

QuestionsOption = Annotated[
    Path | None,
    typer.Option("--questions", metavar="FILE", help="JSON lines of question and answers, to calibrate on."),
]
CountOption = Annotated[int, typer.Option("--count", min=1, help="Prompts to calibrate on.")]


def show_costs(model: str, path: Path, device: str | None, report: dict[str, Any], *, refresh: bool) -> Table:
    """Measure the costs, or take those that were measured before, and show them; they are put into `report` too."""
    from nnm_core.injection.costs import keep_costs, load_costs, measure_costs
    from nnm_core.model.load import ModelSettings, load_model

    loaded = load_model(model, ModelSettings(device=device))
    costs = None if refresh else load_costs(loaded)
    if costs is None:
        with stderr().status("Measuring ...") as status:
            folder = path if path.is_dir() else None
            costs = measure_costs(loaded, folder=folder, progress=lambda what: status.update(f"Measuring {what} ..."))
        costs = keep_costs(loaded, costs)
    report["costs"] = costs.to_json() | {
        "break_even_tokens": {name: costs.break_even(curve) for name, curve in _curves(costs).items()}
    }
    return _cost_table(costs)


def show_quality(session: shared.Session, report: dict[str, Any], *, questions: Path | None, count: int) -> Table:
    """Calibrate the namespace and show what was found; it is put into `report` too."""
    from nnm_core.evaluation.answers import f1
    from nnm_core.evaluation.datasets.plain import load_plain

    asked = () if questions is None else [(q.text, q.answers) for q in load_plain(questions).questions]
    with shared.opened(session) as engine, bar("Calibrating", 2 * count) as update:
        found = engine.calibrate(f1, count=count, questions=asked, progress=update)
        report["calibration"] = {name: asdict(quality) for name, quality in found.items()}
        report["planner"] = engine.planner.report()
        return _quality_table(found, engine.planner)


def _curves(costs: Costs) -> Mapping[str, Curve]:
    loads = {f"load {name}": curve for name, curve in costs.load.items()}
    return loads | {f"compose {name}": curve for name, curve in costs.compose.items()}


def _cost_table(costs: Costs) -> Table:
    lengths: Sequence[int] = [tokens for tokens, _ in costs.read.points]
    kept = costs.made.get("file", "")
    note = f"measured {costs.made.get('date', '')}, " + (f"kept in {kept}" if kept else "not kept")
    table = Table(title="Seconds to the first token, by tokens of the memory", caption=note)
    table.add_column("way")
    for tokens in lengths:
        table.add_column(f"{tokens}", justify="right")
    table.add_column("pays from", justify="right")
    table.add_row("read", *(seconds(costs.read(tokens)) for tokens in lengths), "")
    for name, curve in _curves(costs).items():
        pays = costs.break_even(curve)
        shown = "never" if pays is None else f"{pays} tokens"
        table.add_row(name, *(seconds(curve(tokens)) for tokens in lengths), shown)
    return table


def _quality_table(found: Mapping[str, Quality], planner: Planner) -> Table:
    table = Table(title="Beside reading, on these memories", caption=_verdict(planner))
    for name in ("way", "kind", "same greedy tokens", "KL (nats)", "F1", "F1 of reading", "prompts"):
        table.add_column(name, justify="left" if name in ("way", "kind") else "right")
    for name, quality in found.items():
        row = (f"{100 * quality.agreement:.1f} %", f"{quality.kl:.4f}", f"{quality.f1:.3f}", f"{quality.f1_read:.3f}")
        table.add_row(name, quality.kind, *row, str(quality.prompts))
    return table


def _verdict(planner: Planner) -> str:
    if planner.automatic is None:
        return f"policy='auto' composes nothing: no composer reaches {100 * planner.bound:.0f} % of the greedy tokens."
    return (
        f"policy='auto' composes with {planner.automatic!r}: at least {100 * planner.bound:.0f} % of the greedy tokens."
    )
