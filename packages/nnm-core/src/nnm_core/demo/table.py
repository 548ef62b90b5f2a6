"""The demo's result as one terminal table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from nnm_core.evaluation.compare.arms import LABELS
from nnm_core.evaluation.compare.items import Item
from nnm_core.evaluation.compare.page import by_question
from nnm_core.evaluation.report import seconds, snippet


def result_table(items: Sequence[Item], arms: Mapping[str, Mapping[str, Any]]) -> Table:
    """Questions down, arms across, the figures of each arm below."""
    table = Table(title="The same questions, answered four ways", title_style="bold", show_lines=False, pad_edge=False)
    table.add_column("question", ratio=3, footer="")
    for name in arms:
        table.add_column(LABELS[name], ratio=2)
    for row in by_question(items):
        table.add_row(snippet(row[0].question.question, 90), *(_answer(item) for item in row))
    table.add_section()
    for label, values in figures(arms):
        table.add_row(Text(label, style="bold"), *(Text(value, style="bold") for value in values))
    return table


def figures(arms: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The lines below the answers: a label and one value an arm."""
    rows = list(arms.values())
    return [
        ("right answers", [f"{row['right']} of {row['questions']}" for row in rows]),
        ("tokens read", [f"{row['tokens_read']:.0f}" for row in rows]),
        ("tokens injected", [f"{row['tokens_injected']:.0f}" for row in rows]),
        ("time to first token", [seconds(row["seconds_to_first_token"]) for row in rows]),
    ]


def _answer(item: Item) -> Text:
    mark = Text("\N{CHECK MARK} ", style="green") if item.right else Text("\N{BALLOT X} ", style="red")
    return mark + Text(snippet(item.answer.text, 60) or "(nothing)", style="" if item.right else "dim")
