"""``nnm eval citations``: do the spans that are named hold the answers, and does a score say that nothing answers?"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, stderr, stdout
from nnm_core.evaluation.report import quiet_libraries, write_json

if TYPE_CHECKING:
    from nnm_core.evaluation.citations import SpanFigures
    from nnm_core.evaluation.statistics import Interval

Areas = dict[str, dict[str, tuple[float, float, float]]]


def register(group: typer.Typer) -> None:
    """Put the command into ``nnm eval``."""
    group.command("citations")(citations)


def citations(
    data: Annotated[Path, typer.Argument(metavar="FILE", help="SQuAD's layout; v2.0 has unanswerable questions.")],
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    device: shared.DeviceOption = None,
    passages: Annotated[int, typer.Option(help="Passages in the memory.")] = 80,
    questions: Annotated[int, typer.Option(help="Questions of each kind.")] = 150,
    depth: Annotated[int, typer.Option(help="Candidates that a question is read over.")] = 8,
    seed: Annotated[int, typer.Option(help="Of the sample.")] = 0,
    json: shared.JsonOption = None,
) -> None:
    """Measure what re-ranking on states says beside the order: the span to cite, and whether to abstain.

    Spans are compared with windows of the same length elsewhere in the passage; abstaining is the area under the ROC
    curve of telling answerable questions from unanswerable ones and from those whose passage is not in the memory.
    """
    from nnm_core.engine import NNM
    from nnm_core.evaluation import citations as measure
    from nnm_core.evaluation.benchmark import environment
    from nnm_core.evaluation.datasets import load_questions

    quiet_libraries()
    started = time.perf_counter()
    drawn = measure.draw(load_questions(data), passages, questions, seed=seed)
    with NNM.open(model, device=device) as engine:
        found = measure.ask(
            engine,
            drawn,
            depth=depth,
            tell=lambda text: stderr().print(f"[{time.perf_counter() - started:6.1f} s] {text}"),
        )
        config = {**environment(engine.model), "data": data.name, "passages": passages, "depth": depth, "seed": seed}
    spans, areas = measure.span_figures(found["answerable"]), measure.abstain_figures(found)
    config["questions"] = {kind: len(of_kind) for kind, of_kind in found.items()}
    config["seconds"] = round(time.perf_counter() - started, 1)
    if not owns_stdout(json):
        console = stdout()
        console.print(_span_table(spans) if spans else "No span was named: too few sentences to find heads on.")
        console.print(_abstain_table(areas, config["questions"]))
    write_json(json, {"arms": _arms(spans, areas), "config": config})


def _arms(spans: SpanFigures | None, areas: Areas) -> dict[str, Any]:
    arms: dict[str, Any] = {}
    if spans is not None:
        arms["best hit is the passage"] = asdict(spans.right)
        for name in ("named", "random", "beginning"):
            arms[f"{name} span holds the answer"] = asdict(getattr(spans, name))
        arms["span, part of the passage"] = {"mean": spans.share}
    for kind, by_signal in areas.items():
        for signal, (area, low, high) in by_signal.items():
            arms[f"AUC answerable / {kind}, {signal}"] = {"mean": area, "low": low, "high": high}
    return arms


def _span_table(spans: SpanFigures) -> Table:
    title = f"Spans ({100 * spans.share:.0f} % of the passage) that hold a gold answer, best hit right"
    table = Table(title=title, title_justify="left")
    table.add_column("what is cited")
    table.add_column("%", justify="right")
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("questions", justify="right")
    for name, found in (
        ("the span that the states name", spans.named),
        ("a window at a random place", spans.random),
        ("the passage's beginning", spans.beginning),
        ("(best hit is the question's passage)", spans.right),
    ):
        table.add_row(name, *_percent(found), str(found.count))
    return table


def _percent(found: Interval) -> tuple[str, str]:
    return f"{100 * found.mean:.1f}", f"[{100 * found.low:.1f}, {100 * found.high:.1f}]"


def _abstain_table(areas: Areas, counts: dict[str, int]) -> Table:
    title = (
        f"Telling {counts['answerable']} answerable questions from others, by the best hit's part (area under the ROC)"
    )
    table = Table(title=title, title_justify="left")
    for name in ("others", "part"):
        table.add_column(name)
    table.add_column("AUC", justify="right")
    table.add_column("95 %", justify="right", no_wrap=True)
    for kind, by_signal in areas.items():
        for signal, (area, low, high) in by_signal.items():
            table.add_row(f"{kind} ({counts[kind]})", signal, f"{area:.3f}", f"[{low:.3f}, {high:.3f}]")
    return table
