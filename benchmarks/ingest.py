"""What does ingest cost, beyond running the model over the same tokens once?

    python benchmarks/ingest.py --json out/ingest.json --plot out/ingest.png

Five arms, in turns, in one process, over the same passages and in batches of the same size:

forward     a plain call of the model, which also computes the logits of every token
backbone    the same without the logits: the least that reading can cost
add         everything that `NNM.add` does: states, vectors, index, journal, files on disk
add in RAM  the same without a folder
fuse        `NNM.fuse` afterwards: second states, computed behind the two nearest passages, in RAM
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nnm_core import NNM
from nnm_core.evaluation.benchmark import environment, parser, side_by_side, spread, texts_of_length, timed
from nnm_core.evaluation.report import seconds, write_json
from nnm_core.model.batching import padded_batches, tokens_per_pass
from nnm_core.model.load import LoadedModel, ModelSettings, load_model

OWN = ("add", "add in RAM", "fuse")
ARMS = ("forward", "backbone", *OWN)
COLOURS = {"forward": "#3d7ea6", "backbone": "#9aa5b1", "add": "#e07a3f", "add in RAM": "#f2c14e", "fuse": "#b5838d"}
INK = "#22303c"


def main() -> None:
    """Measure, print, save."""
    options = parser(str(__doc__).splitlines()[0], repeats=3)
    options.add_argument("--passages", type=int, default=48, help="how many passages")
    options.add_argument("--cpu-time", action="store_true", help="seconds of processor time: for a busy machine")
    options.add_argument("--tokens", type=int, default=190, help="tokens of a passage")
    arguments = options.parse_args()
    model = load_model(arguments.model, ModelSettings(device=arguments.device))
    texts = texts_of_length(model, arguments.tokens, arguments.passages)
    rows = [model.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    results = measure(model, texts, rows, arguments.repeats, clock)
    report = {
        "arms": {name: {"seconds": spread(values)} for name, values in results.items()},
        "ratio": {name: ratio(results, name, "forward") for name in OWN},
        "ratio_to_backbone": {name: ratio(results, name, "backbone") for name in OWN},
        "config": environment(model)
        | {"repeats": arguments.repeats, "passages": len(texts), "tokens": sum(len(row) for row in rows)}
        | {"clock": "cpu" if arguments.cpu_time else "wall"},
    }
    write_json(arguments.json, report)
    Console(file=sys.stderr if str(arguments.json) == "-" else sys.stdout).print(table(report))
    if arguments.plot:
        save_plot(report, arguments.plot)


def ratio(results: Mapping[str, Sequence[float]], arm: str, base: str) -> float:
    """Seconds of `arm` over seconds of `base`: the median over the turns, each of which measured both."""
    return statistics.median(a / b for a, b in zip(results[arm], results[base], strict=True))


def measure(
    model: LoadedModel, texts: Sequence[str], rows: Sequence[Sequence[int]], repeats: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each arm, `repeats` times, after one turn that is not counted."""
    arms: dict[str, Callable[[int], float]] = {
        "forward": lambda _: timed(lambda: forward(model, rows, logits=True), clock),
        "backbone": lambda _: timed(lambda: forward(model, rows, logits=False), clock),
        "add": lambda _: add(model, texts, clock, on_disk=True),
        "add in RAM": lambda _: add(model, texts, clock, on_disk=False),
        "fuse": lambda _: fuse(model, texts, clock),
    }
    side_by_side(arms, 1)
    return side_by_side(arms, repeats)


@torch.inference_mode()
def forward(model: LoadedModel, rows: Sequence[Sequence[int]], *, logits: bool) -> None:
    """Run the model over `rows`, batched as ingest does."""
    network = model.hf if logits else model.hf.base_model
    for batch in padded_batches([len(row) for row in rows], tokens_per_pass(model.device)):
        width = max(len(rows[index]) for index in batch)
        ids = [[*rows[index], *[0] * (width - len(rows[index]))] for index in batch]
        network(input_ids=torch.tensor(ids, device=model.device), use_cache=False)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def add(model: LoadedModel, texts: Sequence[str], clock: Callable[[], float], *, on_disk: bool) -> float:
    """Seconds of one `NNM.add` into a new store; opening and closing it do not count."""
    with (
        tempfile.TemporaryDirectory(prefix="nnm-ingest-") as folder,
        NNM.open(model, path=folder if on_disk else None) as engine,
    ):
        # The left context is read once a process, not once a memory.
        engine.add("warm up")
        return timed(lambda: engine.add(texts), clock)


def fuse(model: LoadedModel, texts: Sequence[str], clock: Callable[[], float]) -> float:
    """Seconds of one `NNM.fuse` over what was just added."""
    with NNM.open(model) as engine:
        engine.add(texts)
        return timed(engine.fuse, clock)


def table(report: Mapping[str, Any]) -> Table:
    """One row an arm."""
    config = report["config"]
    shown = Table(
        title=f"{config['tokens']} tokens in {config['passages']} passages, {config['model']}, {config['device']}"
    )
    for name in ("arm", "seconds", "lowest", "highest", "tokens/s", "x forward", "x backbone"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for name in ARMS:
        row = report["arms"][name]["seconds"]
        ratios = [f"{report[key][name]:.2f}" if name in report[key] else "" for key in ("ratio", "ratio_to_backbone")]
        rate = f"{config['tokens'] / row['median']:,.0f}"
        shown.add_row(name, *(seconds(row[key]) for key in ("median", "low", "high")), rate, *ratios)
    return shown


def save_plot(report: Mapping[str, Any], target: Path) -> None:
    """A bar an arm, with the range of the repeats."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    panel = figure.subplots()
    rows = [report["arms"][name]["seconds"] for name in ARMS]
    medians = [row["median"] for row in rows]
    errors = [[row["median"] - row["low"] for row in rows], [row["high"] - row["median"] for row in rows]]
    panel.barh(ARMS, medians, color=[COLOURS[name] for name in ARMS])
    panel.errorbar(medians, range(len(ARMS)), xerr=errors, fmt="none", ecolor=INK, capsize=3, linewidth=1)
    for place, name in enumerate(ARMS):
        label = f"{report['ratio'][name]:.2f} x forward" if name in report["ratio"] else ""
        panel.text(rows[place]["high"] + max(medians) * 0.03, place, label, va="center", color=INK)
    panel.set_xlim(0, max(row["high"] for row in rows) * 1.3)
    panel.invert_yaxis()
    panel.set_title("Seconds for the same passages", loc="left", fontweight="bold", color=INK)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(colors=INK, length=0)
    panel.grid(axis="x", color="#e6eaee", linewidth=0.8)
    panel.set_axisbelow(True)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)


if __name__ == "__main__":
    main()
