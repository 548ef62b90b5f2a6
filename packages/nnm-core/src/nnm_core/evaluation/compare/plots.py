"""The plots of a comparison as SVG that takes its colours from the page it stands in, so that it is light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.compare.arms import LABELS
from nnm_core.evaluation.compare.breakeven import break_even

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from nnm_core.evaluation.compare.run import Comparison

# Colours while drawing -> variables of the page. Arms of one kind share a colour.
INK, SOFT, GRID = "#010203", "#010204", "#010205"
PLAIN, TEXT, OURS, OURS_2, RANDOM = "#010206", "#010207", "#010208", "#010209", "#01020a"
VARIABLES = {
    INK: "--ink",
    SOFT: "--soft",
    GRID: "--line",
    PLAIN: "--plain",
    TEXT: "--text-arm",
    OURS: "--ours",
    OURS_2: "--ours-2",
    RANDOM: "--random",
}
COLOURS = {
    "bare": PLAIN,
    "rag": TEXT,
    "rag_recall": TEXT,
    "read": TEXT,
    "nnm": OURS,
    "nnm_again": OURS,
    "composed": OURS_2,
    "random": RANDOM,
}


def plots(comparison: Comparison) -> dict[str, str]:
    """Name -> SVG: ``quality``, ``tokens``, ``first_token``, and where there is something to show ``latency`` and
    ``break_even``.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    arms = comparison.arms
    drawn: dict[str, str] = {}
    if any(row["judged"] for row in arms.values()):
        drawn["quality"] = _svg("quality", (7, 0.44 * len(arms) + 0.7), lambda panel: _quality(panel, arms))
    drawn["tokens"] = _svg("tokens", (7, 0.44 * len(arms) + 0.7), lambda panel: _tokens(panel, arms))
    drawn["first_token"] = _svg("first", (7, 0.44 * len(arms) + 0.7), lambda panel: _first_token(panel, comparison))
    if any(len(rows) > 1 for rows in comparison.latency.values()):
        drawn["latency"] = _svg("latency", (7, 3.6), lambda panel: _latency(panel, comparison.latency))
    if "rag" in arms and set(arms) & {"nnm", "nnm_again", "composed"}:
        drawn["break_even"] = _svg("even", (7, 3.6), lambda panel: _break_even(panel, arms))
    return drawn


def _svg(name: str, size: tuple[float, float], draw: Callable[[Axes], None]) -> str:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError("Plots need matplotlib.", hint="pip install 'nnm-core[plot]'") from error
    # Text stays text: small, sharp, and in the page's own fonts. The salt keeps ids of two plots apart.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif"}):
        figure: Figure = Figure(figsize=size, layout="constrained", facecolor="none")
        panel = figure.subplots()
        panel.set_facecolor("none")
        draw(panel)
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None})
    return themed(target.getvalue(), name)


def themed(svg: str, name: str) -> str:
    """A stand-alone SVG made part of a page: no prolog, ids of its own, colours and fonts of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(?<=id=")|(?<=href="#)|(?<=url\(#)', f"{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1; font-family: inherit", svg)
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    return re.sub(r'width="[\d.]+pt"', 'width="100%"', re.sub(r'height="[\d.]+pt"', "", svg, count=1), count=1)


def _quality(panel: Axes, arms: Mapping[str, Mapping[str, Any]]) -> None:
    height = 0.36
    for place, (name, row) in enumerate(arms.items()):
        for shift, key, alpha in ((-height / 2, "exact_match", 1.0), (height / 2, "f1", 0.45)):
            value, (low, high) = row[key], row[f"{key}_interval"]
            panel.barh(place + shift, value, height, color=COLOURS[name], alpha=alpha)
            panel.plot([low, high], [place + shift] * 2, color=INK, linewidth=1.3)
            panel.text(max(high, 0) + 0.012, place + shift, f"{100 * value:.0f}", va="center", color=SOFT, fontsize=8)
    _bars(panel, arms)
    panel.set_xlim(0, min(1.06, max(row["f1_interval"][1] for row in arms.values()) * 1.1 + 0.05))
    panel.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")


def _tokens(panel: Axes, arms: Mapping[str, Mapping[str, Any]]) -> None:
    longest = max(row["tokens_read"] + row["tokens_injected"] for row in arms.values()) or 1
    for place, row in enumerate(arms.values()):
        read, injected = row["tokens_read"], row["tokens_injected"]
        panel.barh(place, read, color=TEXT, height=0.6)
        panel.barh(place, injected, left=read, color=OURS, height=0.6, alpha=0.55)
        label = f"{read:,.0f} read" + (f", {injected:,.0f} injected" if injected else "")
        panel.text(read + injected + longest * 0.015, place, label, va="center", color=SOFT, fontsize=8)
    _bars(panel, arms)
    panel.set_xlim(0, longest * 1.42)


def _first_token(panel: Axes, comparison: Comparison) -> None:
    longest = 0.0
    for place, (name, row) in enumerate(comparison.arms.items()):
        times = [1000 * i.answer.receipt.seconds_to_first_token for i in comparison.items if i.arm == name]
        median = 1000 * row["seconds_to_first_token"]
        longest = max(longest, median)
        panel.plot(times, [place] * len(times), "o", color=COLOURS[name], alpha=0.3, markersize=3, markeredgewidth=0)
        panel.barh(place, median, color=COLOURS[name], height=0.6, alpha=0.8)
        panel.text(median, place - 0.42, f" {_ms(median)}", va="center", color=INK, fontsize=8)
    _bars(panel, comparison.arms)
    panel.set_xlim(0, longest * 1.6)
    panel.xaxis.set_major_formatter(lambda value, _: _ms(value))


def _latency(panel: Axes, latency: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    for name, rows in latency.items():
        if rows:
            tokens, times = [row["tokens"] for row in rows], [1000 * row["seconds"] for row in rows]
            panel.plot(tokens, times, "o-", color=COLOURS[name], linewidth=2, markersize=4, label=LABELS[name])
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: _ms(value))
    panel.yaxis.set_minor_formatter(lambda value, _: _ms(value) if f"{value:.0e}"[0] in "25" else "")
    panel.tick_params(axis="y", which="minor", labelsize=8, colors=SOFT)
    panel.set_xlim(left=0)
    _lines(panel, "tokens of the prompt")


def _break_even(panel: Axes, arms: Mapping[str, Mapping[str, Any]]) -> None:
    shown = [name for name in ("rag", "nnm_again", "composed", "nnm") if name in arms]
    crossings = [found.questions for name in shown[1:] if (found := break_even(arms, name)).questions]
    last = max(10, int(1.6 * min(crossings)) if crossings else 200)
    for name in shown:
        row = arms[name]
        seconds = [row["ingest_seconds"] + count * row["seconds_total"] for count in (0, last)]
        panel.plot([0, last], seconds, color=COLOURS[name], linewidth=2, label=LABELS[name],
                   linestyle="--" if name == "nnm" else "-")  # fmt: skip
    for name in shown[1:]:
        at = break_even(arms, name).questions
        if at and at <= last:
            row = arms[name]
            panel.plot(at, row["ingest_seconds"] + at * row["seconds_total"], "o", color=INK, markersize=6)
    panel.set_xlim(0, last)
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f} s")
    _lines(panel, "questions asked")


def _bars(panel: Axes, arms: Mapping[str, Any]) -> None:
    panel.set_yticks(range(len(arms)), labels=[LABELS[name] for name in arms])
    panel.set_ylim(len(arms) - 0.4, -0.6)
    _tidy(panel, "x")


def _lines(panel: Axes, label: str) -> None:
    panel.set_xlabel(label, color=SOFT, fontsize=9)
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper left")
    _tidy(panel, "both")


def _tidy(panel: Axes, axis: str) -> None:
    panel.tick_params(colors=INK, length=0, labelsize=9)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(GRID)
    panel.grid(axis=axis, color=GRID, linewidth=0.8)  # type: ignore[arg-type]  # wants a literal, gets one of two
    panel.set_axisbelow(True)


def _ms(value: float) -> str:
    return f"{value:,.0f} ms" if value < 1000 else f"{value / 1000:,.1f} s"
