"""The demo's result as one picture: how many answers are right, what it cost, how long the first token took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.compare.arms import LABELS
from nnm_core.evaluation.compare.items import Item

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"bare": "#9aa5b1", "rag": "#3d7ea6", "nnm": "#e07a3f", "random": "#c9b79c"}
INK = "#22303c"
READ, INJECTED = "#3d7ea6", "#f2c14e"


def save_plot(items: Sequence[Item], arms: Mapping[str, Mapping[str, Any]], target: Path) -> None:
    """Write the picture as PNG.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError("Plots need matplotlib.", hint="pip install 'nnm-core[plot]'") from error
    # A Figure of its own, without pyplot: no global state, no window system.
    figure = Figure(figsize=(12, 4.2), layout="constrained", facecolor="white")
    draw(figure, items, arms)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)


def draw(figure: Figure, items: Sequence[Item], arms: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the three panels into `figure`."""
    panels = figure.subplots(1, 3)
    names = list(arms)
    _draw_right(panels[0], names, arms)
    _draw_tokens(panels[1], names, arms)
    _draw_times(panels[2], names, items, arms)
    for panel in panels:
        _tidy(panel, [LABELS[name] for name in names])
    for panel in panels[1:]:
        panel.set_yticklabels([])


def _draw_right(panel: Axes, names: Sequence[str], arms: Mapping[str, Mapping[str, Any]]) -> None:
    total = max((arms[name]["questions"] for name in names), default=1)
    panel.barh(range(len(names)), [arms[name]["right"] for name in names], color=[COLOURS[name] for name in names])
    for place, name in enumerate(names):
        right = arms[name]["right"]
        panel.text(right + total * 0.02, place, f"{right} of {total}", va="center", color=INK)
    panel.set_xlim(0, total * 1.22)
    panel.set_title("Right answers", loc="left", fontweight="bold", color=INK)


def _draw_tokens(panel: Axes, names: Sequence[str], arms: Mapping[str, Mapping[str, Any]]) -> None:
    read = [arms[name]["tokens_read"] for name in names]
    injected = [arms[name]["tokens_injected"] for name in names]
    panel.barh(range(len(names)), read, color=READ, label="read")
    panel.barh(range(len(names)), injected, left=read, color=INJECTED, label="injected")
    longest = max((a + b for a, b in zip(read, injected, strict=True)), default=1) or 1
    for place, (a, b) in enumerate(zip(read, injected, strict=True)):
        label = f"{a:.0f} read" + (f"\n{b:.0f} injected" if b else "")
        panel.text(a + b + longest * 0.02, place, label, va="center", color=INK, fontsize=9)
    panel.set_xlim(0, longest * 1.45)
    panel.legend(frameon=False, loc="upper right", fontsize=9, labelcolor=INK)
    panel.set_title("Tokens of a prompt (mean)", loc="left", fontweight="bold", color=INK)


def _draw_times(
    panel: Axes, names: Sequence[str], items: Sequence[Item], arms: Mapping[str, Mapping[str, Any]]
) -> None:
    longest = 0.0
    for place, name in enumerate(names):
        times = [1000 * item.answer.receipt.seconds_to_first_token for item in items if item.arm == name]
        median = 1000 * arms[name]["seconds_to_first_token"]
        longest = max(longest, *times)
        panel.plot(times, [place] * len(times), "o", color=COLOURS[name], alpha=0.45, markersize=5, markeredgewidth=0)
        panel.plot([median, median], [place - 0.3, place + 0.3], color=INK, linewidth=2)
        panel.annotate(f"{median:.0f} ms", (median, place - 0.36), ha="center", va="bottom", color=INK, fontsize=9)
    panel.set_xlim(0, longest * 1.05)
    panel.set_xlabel("ms; a dot is a question, the bar their median", color=INK, fontsize=9)
    panel.set_title("Time to first token", loc="left", fontweight="bold", color=INK)


def _tidy(panel: Axes, labels: Sequence[str]) -> None:
    panel.set_yticks(range(len(labels)), labels=list(labels))
    panel.set_ylim(len(labels) - 0.45, -0.65)
    panel.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color("#cfd6dc")
    panel.grid(axis="x", color="#e6eaee", linewidth=0.8)
    panel.set_axisbelow(True)
