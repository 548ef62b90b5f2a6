"""A comparison as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from nnm_core.evaluation.compare.arms import LABELS
from nnm_core.evaluation.report import seconds

QUALITY = ("EM [95 %]", "F1", "given", "supported", "EM against classic RAG")
COSTS = ("read", "injected", "first token", "total", "stored")
COLUMNS = QUALITY + COSTS


def quality_table(arms: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """An arm a row: how good the answers are, and the paired difference to classic RAG."""
    return _table(arms, title, QUALITY, quality_cells)


def costs_table(arms: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """An arm a row: tokens of a prompt, seconds, bytes."""
    return _table(arms, title, COSTS, cost_cells)


def _table(
    arms: Mapping[str, Mapping[str, Any]],
    title: str,
    columns: Sequence[str],
    values: Callable[[Mapping[str, Any]], list[str]],
) -> Table:
    table = Table(title=title, title_style="bold", title_justify="left", pad_edge=False, box=SIMPLE_HEAD)
    table.add_column("arm", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in arms.items():
        table.add_row(LABELS[name], *values(row))
    return table


def cells(row: Mapping[str, Any]) -> list[str]:
    """The figures of an arm in the order of `COLUMNS`."""
    return quality_cells(row) + cost_cells(row)


def quality_cells(row: Mapping[str, Any]) -> list[str]:
    """In the order of `QUALITY`."""
    return [
        percent(row["exact_match"], row.get("exact_match_interval")),
        percent(row["f1"]),
        percent(row["gold_given"]),
        percent(row["supported"]),
        versus(row),
    ]


def cost_cells(row: Mapping[str, Any]) -> list[str]:
    """In the order of `COSTS`."""
    return [
        f"{row['tokens_read']:,.0f}",
        f"{row['tokens_injected']:,.0f}",
        seconds(row["seconds_to_first_token"]),
        seconds(row["seconds_total"]),
        size(row["bytes_stored"]),
    ]


def versus(row: Mapping[str, Any]) -> str:
    """Difference to classic RAG in points, its interval, and the p-value of McNemar's test; empty where none is."""
    found, test = row.get("exact_match_minus_rag"), row.get("mcnemar_rag")
    if not found or not test:
        return ""
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['mean']:+.1f} [{low:+.1f}, {high:+.1f}] p {p_value(test['p'])}"


def p_value(p: float) -> str:
    """A probability, short."""
    return "< 0.001" if p < 0.001 else f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def percent(value: float | None, interval: list[float] | None = None) -> str:
    """A share in per cent with its interval; a dash where it is not known."""
    if value is None:
        return "-"
    shown = f"{100 * value:.1f}"
    return f"{shown} [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}]" if interval else shown


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "B" or count >= 10 else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"
