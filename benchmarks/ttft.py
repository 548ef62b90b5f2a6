"""How much sooner does the first token come when a memory is injected instead of read?

    python benchmarks/ttft.py --json out/ttft.json --plot out/ttft.png

One memory of 250 to 2,000 tokens is given to the model, and one token is decoded. Three arms, in turns, in one process:

read            the memory's text is read with the prompt, as in ordinary RAG
injected        its state is loaded from disk; every repeat uses a memory that this process has not used before
injected again  its state is still in RAM from the turn before

The time of the search is not part of it, since it is the same for all three.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nnm_core import NNM, Memory
from nnm_core.evaluation.benchmark import environment, parser, side_by_side, spread, texts_of_length
from nnm_core.evaluation.report import seconds, write_json

QUESTION = "What is this text about?"
ARMS = ("read", "injected", "injected again")
COLOURS = {"read": "#3d7ea6", "injected": "#e07a3f", "injected again": "#f2c14e"}
INK = "#22303c"


def main() -> None:
    """Measure, print, save."""
    options = parser(str(__doc__).splitlines()[0], repeats=7)
    options.add_argument("--lengths", type=int, nargs="+", default=[250, 500, 1000, 2000], help="tokens of a memory")
    arguments = options.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="nnm-ttft-") as folder,
        NNM.open(arguments.model, path=folder, device=arguments.device) as engine,
    ):
        results = {length: measure(engine, length, arguments.repeats) for length in arguments.lengths}
        config = environment(engine.model) | {"repeats": arguments.repeats, "lengths": arguments.lengths}
    report = {
        "arms": {
            name: {"seconds_to_first_token": {str(length): spread(row[name]) for length, row in results.items()}}
            for name in ARMS
        },
        "ratio": {
            name: {str(length): ratio(row, name) for length, row in results.items()} for name in ARMS if name != "read"
        },
        "config": config,
    }
    write_json(arguments.json, report)
    Console(file=sys.stderr if str(arguments.json) == "-" else sys.stdout).print(table(report))
    if arguments.plot:
        save_plot(report, arguments.plot)


def measure(engine: NNM, length: int, repeats: int) -> dict[str, list[float]]:
    """Seconds to the first token of each arm, `repeats` times, for memories of `length` tokens."""
    texts = texts_of_length(engine.model, length, repeats + 1)
    warm, *memories = engine.add(texts, ids=[f"{length}-{number}" for number in range(len(texts))])
    for mode in ("read", "inject", "inject"):
        ask(engine, warm, mode)
    arms: dict[str, Callable[[int], float]] = {
        "read": lambda repeat: ask(engine, memories[repeat], "read"),
        "injected": lambda repeat: ask(engine, memories[repeat], "inject"),
        # The turn before has left this state in RAM; in the first turn the warm-up has.
        "injected again": lambda repeat: ask(engine, memories[repeat - 1] if repeat else warm, "inject"),
    }
    return side_by_side(arms, repeats)


def ask(engine: NNM, memory: Memory, mode: Any) -> float:
    """Seconds to the first token; fails if the arm did not do what it is named after."""
    answer = engine.answer(QUESTION, memories=[memory], mode=mode, max_tokens=1)
    injected = answer.receipt.tier == "exact"
    if injected != (mode == "inject"):
        raise RuntimeError(f"{mode}: the receipt says {answer.receipt}")
    return answer.receipt.seconds_to_first_token


def ratio(row: Mapping[str, Sequence[float]], arm: str) -> float:
    """Seconds of reading over seconds of `arm`: the median over the turns, each of which measured both."""
    return statistics.median(read / other for read, other in zip(row["read"], row[arm], strict=True))


def table(report: Mapping[str, Any]) -> Table:
    """One row a length."""
    config = report["config"]
    title = f"Seconds to the first token: {config['model']} on {config['device']}, medians of {config['repeats']}"
    shown = Table(title=title)
    for name in ("tokens", *ARMS, "read / injected", "read / again"):
        shown.add_column(name, justify="right")
    for length in report["ratio"]["injected"]:
        medians = [seconds(report["arms"][name]["seconds_to_first_token"][length]["median"]) for name in ARMS]
        ratios = [f"{report['ratio'][name][length]:.1f} x" for name in ARMS[1:]]
        shown.add_row(length, *medians, *ratios)
    return shown


def save_plot(report: Mapping[str, Any], target: Path) -> None:
    """Seconds over the length of the memory, a line an arm, the range of the repeats shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    panel = figure.subplots()
    for name in ARMS:
        rows = report["arms"][name]["seconds_to_first_token"]
        lengths = [int(length) for length in rows]
        medians, low, high = ([1000 * row[key] for row in rows.values()] for key in ("median", "low", "high"))
        panel.fill_between(lengths, low, high, color=COLOURS[name], alpha=0.18, linewidth=0)
        panel.plot(lengths, medians, "o-", color=COLOURS[name], linewidth=2)
        end = (lengths[-1], medians[-1])
        panel.annotate(name, end, xytext=(8, 0), textcoords="offset points", va="center", color=INK)
    panel.set_xlim(0, max(lengths) * 1.25)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panel.yaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:.0e}"[0] in "25" else "")
    panel.set_xlabel("tokens of the memory", color=INK)
    panel.set_title("Milliseconds to the first token", loc="left", fontweight="bold", color=INK)
    panel.grid(color="#e6eaee", linewidth=0.8)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(colors=INK, length=0)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)


if __name__ == "__main__":
    main()
