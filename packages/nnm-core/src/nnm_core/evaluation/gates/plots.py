"""A gate's result as one picture: bars with intervals, a heat map of needles, curves over a number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nnm_core.errors import InvalidInputError, StorageError
from nnm_core.evaluation.gates.needle import grid
from nnm_core.evaluation.gates.result import GateResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, GRID = "#22303c", "#e6eaee"
_INJECTED, _TEXT, _CONTROL = "#e07a3f", "#3d7ea6", "#9aa5b1"


def save(result: GateResult, target: Path) -> None:
    """Write the picture that suits the gate; the ending of the name chooses PNG, SVG or PDF.

    Raises:
        InvalidInputError: matplotlib is not installed, or knows no such format.
        StorageError: the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError("Plots need matplotlib.", hint="pip install 'nnm-core[plot]'") from error
    draw, size = _picture(result)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    draw(figure, result)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=160)
    except ValueError as error:
        raise InvalidInputError(f"{target}: {error}.", hint="Name a .png, .svg or .pdf file.") from error
    except OSError as error:
        raise StorageError(
            f"Cannot write {target}: {error.strerror}.", hint="Name another file with --plot."
        ) from error


def _picture(result: GateResult) -> tuple[Callable[[Figure, GateResult], None], tuple[float, float]]:
    if result.gate == "needle":
        return _heat, (2.2 + 2.4 * len(result.arms), 4.2)
    if result.gate == "multi":
        return _curves, (9, 4.2)
    return _bars, (8, 1.2 + 0.45 * len(result.arms))


def colour(arm: str) -> str:
    """Arms of one kind share a colour: injected, read as text, controls."""
    if any(word in arm for word in ("nnm", "composed")):
        return _INJECTED
    return _TEXT if any(word in arm for word in ("rag", "read")) else _CONTROL


def _bars(figure: Figure, result: GateResult) -> None:
    panel = figure.subplots()
    names = list(result.arms)
    highest = max(row[f"{result.primary}_interval"][1] for row in result.arms.values())
    for place, name in enumerate(names):
        row = result.arms[name]
        value, (low, high) = 100 * row[result.primary], row[f"{result.primary}_interval"]
        panel.barh(place, value, color=colour(name), height=0.62)
        panel.plot([100 * low, 100 * high], [place, place], color=INK, linewidth=1.4)
        label = (
            f"{value:.1f} %   {row['tokens_mean']['read']:,.0f} read, {row['tokens_mean']['injected']:,.0f} injected"
        )
        panel.text(100 * high + 0.015 * max(100 * highest, 10), place, label, va="center", color=INK, fontsize=8)
    panel.set_xlim(0, max(100 * highest, 10) * 1.6)
    panel.set_xticks([tick for tick in panel.get_xticks() if tick <= min(100, max(100 * highest * 1.1, 10))])
    panel.set_yticks(range(len(names)), labels=names)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_xlabel(f"{result.primary}, %, with 95 % intervals; mean tokens of a prompt", color=INK, fontsize=9)
    panel.set_title(f"Gate {result.gate}, {next(iter(result.arms.values()))['count']} cases", loc="left", color=INK)
    panel.grid(axis="x", color=GRID)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(length=0, colors=INK)


def _heat(figure: Figure, result: GateResult) -> None:
    arms = list(result.arms)
    panels = figure.subplots(1, len(arms), sharey=True, squeeze=False)[0]
    image = None
    for panel, arm in zip(panels, arms, strict=True):
        cells = grid(result.items, arm)
        lengths, depths = sorted({key[0] for key in cells}), sorted({key[1] for key in cells})
        values = [[100 * cells.get((length, depth), float("nan")) for length in lengths] for depth in depths]
        image = panel.imshow(values, aspect="auto", cmap="Blues", vmin=0, vmax=100)
        _annotate(panel, values)
        panel.set_xticks(range(len(lengths)), labels=[f"{length / 1000:g}k" for length in lengths])
        panel.set_yticks(range(len(depths)), labels=[f"{100 * depth:.0f} %" for depth in depths])
        panel.set_title(f"{arm}: {100 * result.arms[arm]['found']:.0f} %", color=INK, fontsize=10)
        panel.set_xlabel("characters", color=INK, fontsize=9)
        panel.tick_params(length=0, colors=INK)
    panels[0].set_ylabel("depth of the needle", color=INK)
    if image is not None:
        figure.colorbar(image, ax=list(panels), label="needles found, %", shrink=0.8)


def _annotate(panel: object, values: Sequence[Sequence[float]]) -> None:
    from matplotlib.axes import Axes

    assert isinstance(panel, Axes)
    for row, line in enumerate(values):
        for column, value in enumerate(line):
            ink = "white" if value > 60 else INK
            panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=ink)


def _curves(figure: Figure, result: GateResult) -> None:
    """Codes found over the number of memories, one panel for each number needed."""
    needed = sorted({int(item.case.labels["needed"]) for item in result.items})
    panels = figure.subplots(1, len(needed), sharey=True, squeeze=False)[0]
    arms = list(result.arms)
    for panel, wanted in zip(panels, needed, strict=True):
        for place, arm in enumerate(arms):
            rows: dict[int, list[float]] = {}
            for item in result.items:
                if item.arm == arm and item.case.labels["needed"] == wanted:
                    rows.setdefault(int(item.case.labels["memories"]), []).append(item.scores["found"])
            shift = 0.12 * (place - (len(arms) - 1) / 2)  # arms that agree are drawn side by side
            sizes = sorted(rows)
            shares = [100 * sum(rows[size]) / len(rows[size]) for size in sizes]
            marker = "osD^vP"[place % 6]
            panel.plot([size + shift for size in sizes], shares, marker=marker, color=colour(arm), label=arm, alpha=0.8)
        panel.set_xticks(sorted({int(item.case.labels["memories"]) for item in result.items}))
        panel.set_title(f"{wanted} of them needed", loc="left", color=INK, fontsize=10)
        panel.set_xlabel("memories in the prompt", color=INK)
        panel.set_ylim(-3, 103)
        panel.grid(color=GRID)
        panel.tick_params(length=0, colors=INK)
    panels[0].set_ylabel("codes found, %", color=INK)
    panels[-1].legend(frameon=False, fontsize=9)
