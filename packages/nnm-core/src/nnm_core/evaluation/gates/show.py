"""A gate's result as terminal tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nnm_core.evaluation.gates.result import Comparison, GateResult
from nnm_core.evaluation.report import seconds

MARKS = {True: Text("ok", style="green"), False: Text("no", style="bold red"), None: Text("-", style="dim")}


def tables(result: GateResult) -> RenderableType:
    """Arms, groups, comparisons and checks, one below the other."""
    parts: list[RenderableType] = [arms_table(result)]
    parts += [_group_table(label, rows, result) for label, rows in result.groups.items() if len(rows) > 1]
    if result.comparisons:
        parts.append(_comparison_table(result))
    if result.checks:
        parts.append(_check_table(result))
    return Group(*parts)


def arms_table(result: GateResult) -> Table:
    """An arm a row: every metric (the tested one with its 95 % interval), mean tokens of a prompt, median time."""
    metrics = list(result.items[0].scores)
    recomputed = any(row["tokens"]["recomputed"] for row in result.arms.values())
    kinds = ("read", "injected", *(("recomputed",) if recomputed else ()))
    table = _table(f"Gate {result.gate}: % of {next(iter(result.arms.values()))['count']} cases")
    table.add_column("arm", overflow="fold")
    for name in (*metrics, *kinds, "1st token"):
        table.add_column(name.replace("_", " "), justify="right")
    for arm, row in result.arms.items():
        table.add_row(
            arm,
            *(_percent(row[name], row[f"{name}_interval"], short=name != result.primary) for name in metrics),
            *(f"{row['tokens_mean'][kind]:,.0f}" for kind in kinds),
            seconds(row["seconds_to_first_token"]),
        )
    return table


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)


def _percent(value: float, interval: list[float], *, short: bool) -> str:
    shown = f"{100 * value:.1f}"
    return shown if short else f"{shown} [{100 * interval[0]:.0f},\u00a0{100 * interval[1]:.0f}]"


def _group_table(label: str, rows: Mapping[str, Mapping[str, Any]], result: GateResult) -> Table:
    table = _table(f"{result.group_metric or result.primary} by {label}, %")
    table.add_column(label)
    arms = list(result.arms)
    for arm in arms:
        table.add_column(arm, justify="right")
    table.add_column("n", justify="right")
    for value, row in rows.items():
        table.add_row(value, *(f"{100 * row[arm]:.0f}" for arm in arms), f"{row['count']:.0f}")
    return table


def _comparison_table(result: GateResult) -> Table:
    table = _table("Paired, on the same cases")
    for name in ("arms", f"{result.primary}, points [95 %]", "only one right", "p", "same tokens"):
        table.add_column(name, justify="left" if name == "arms" else "right")
    for comparison in result.comparisons:
        table.add_row(*_comparison(comparison))
    return table


def _comparison(comparison: Comparison) -> list[str]:
    found, test = comparison.differences[comparison.metric], comparison.test
    return [
        f"{comparison.ours} - {comparison.theirs}",
        f"{100 * found.mean:+.1f} [{100 * found.low:+.1f},\u00a0{100 * found.high:+.1f}]",
        f"{test.ours} : {test.theirs}",
        "< 0.001" if test.p < 0.001 else f"{test.p:.3f}",
        f"{comparison.identical} of {comparison.count}",
    ]


def _check_table(result: GateResult) -> Table:
    table = Table(
        show_header=False, show_edge=False, pad_edge=False, title="Checks", title_justify="left", title_style=""
    )
    for check in result.checks:
        table.add_row(MARKS[check.passed], check.name, check.detail)
    return table
