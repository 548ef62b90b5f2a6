"""How much sooner does the first token come when a memory is injected instead of read?

    python benchmarks/ttft.py --json out/ttft.json --plot out/ttft.png

One memory of 500 to 3,900 tokens is given to the model, and one token is decoded. The arms, in turns, in one process:

read            the memory's text is read with the prompt, as in ordinary RAG
injected        its state is loaded from disk; every repeat uses a memory that this process has not used before, so its
                checksum is compared as well
injected again  its state is still in RAM, placed, from the turn before
ram             it is loaded from a store in RAM
int8 ...        it is loaded from a file in that codec, which was verified before

The time of the search is not part of it, since it is the same for all. Then tokens are decoded after reading and after
injecting, in turns; and the break-even length is found on shorter memories, as the planner does it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nnm_core import NNM, Memory
from nnm_core.evaluation.benchmark import environment, parser, side_by_side, spread, texts_of_length
from nnm_core.evaluation.gates.corpus import remember
from nnm_core.evaluation.report import seconds, write_json
from nnm_core.injection.costs import Costs, measure_costs
from nnm_core.model.load import LoadedModel, ModelSettings, load_model

QUESTION = "What is this text about?"
LONGER = "Repeat the text word by word."
DECODED = 48
COLOURS = {"read": "#3d7ea6", "injected": "#e07a3f", "injected again": "#f2c14e", "ram": "#5b8c5a"}
INK = "#22303c"


def main() -> None:
    """Measure, print, save."""
    options = parser(str(__doc__).splitlines()[0], repeats=4)
    options.add_argument("--lengths", type=int, nargs="+", default=[500, 1000, 2000, 3900], help="tokens of a memory")
    options.add_argument("--codecs", nargs="*", default=["int8", "int4", "residual-int8"], help="beside native")
    arguments = options.parse_args()
    model = load_model(arguments.model, ModelSettings(device=arguments.device))
    with tempfile.TemporaryDirectory(prefix="nnm-ttft-") as folder, ExitStack() as stack:
        engines = {
            "native": stack.enter_context(NNM.open(model, path=Path(folder) / "native")),
            "ram": stack.enter_context(NNM.open(model, state_cache=0)),  # nothing stays placed between answers
        }
        for codec in arguments.codecs:
            engines[codec] = stack.enter_context(
                NNM.open(model, path=Path(folder) / "codecs", namespace=codec, codec=codec, state_cache=0)
            )
        results = {length: measure(engines, length, arguments.repeats) for length in arguments.lengths}
        decoding = decode_times(model, min(1000, max(arguments.lengths)), arguments.repeats)
        costs = measure_costs(model, lengths=(8, 16, 32, 64, 128), codecs=("native", *arguments.codecs), composers=())
    report = report_of(results, decoding, costs)
    report["config"] = environment(model) | {"repeats": arguments.repeats, "lengths": arguments.lengths}
    write_json(arguments.json, report)
    console = Console(file=sys.stderr if str(arguments.json) == "-" else sys.stdout)
    console.print(table(report))
    ratio_of = report["decoding"]["ratio"]
    console.print(f"Decoding after injecting takes {ratio_of:.3f} of the time a token takes after reading.")
    console.print(f"Injecting pays from: {report['break_even_tokens']} tokens.")
    if arguments.plot:
        save_plot(report, arguments.plot)


def report_of(
    results: Mapping[int, Mapping[str, Sequence[float]]], decoding: Mapping[str, Sequence[float]], costs: Costs
) -> dict[str, Any]:
    """What is written as JSON."""
    names = list(next(iter(results.values())))
    return {
        "arms": {
            name: {"seconds_to_first_token": {str(length): spread(row[name]) for length, row in results.items()}}
            for name in names
        },
        "ratio": {
            name: {str(length): ratio(row, name) for length, row in results.items()} for name in names if name != "read"
        },
        "decoding": {name: spread(values) for name, values in decoding.items()}
        | {"ratio": statistics.median(b / a for a, b in zip(decoding["read"], decoding["inject"], strict=True))},
        "break_even_tokens": {name: costs.break_even(curve) for name, curve in costs.load.items()},
    }


def measure(engines: Mapping[str, NNM], length: int, repeats: int) -> dict[str, list[float]]:
    """Seconds to the first token of each arm, `repeats` times, for memories of `length` tokens."""
    engine = engines["native"]
    texts = texts_of_length(engine.model, length, repeats + 1)
    warm, *memories = _added(engine, {f"{length}-{number}": text for number, text in enumerate(texts)})
    for mode in ("read", "inject", "inject"):
        ask(engine, warm, mode)
    arms: dict[str, Callable[[int], float]] = {
        "read": lambda repeat: ask(engine, memories[repeat], "read"),
        "injected": lambda repeat: ask(engine, memories[repeat], "inject"),
        # The turn before has left this state in RAM; in the first turn the warm-up has.
        "injected again": lambda repeat: ask(engine, memories[repeat - 1] if repeat else warm, "inject"),
    }
    for name, other in engines.items():
        if other is not engine:
            memory = _added(other, {str(length): texts[0]})[0]
            ask(other, memory, "inject")
            arms[name] = partial(lambda repeat, other, memory: ask(other, memory, "inject"), other=other, memory=memory)
    return side_by_side(arms, repeats)


def _added(engine: NNM, texts: Mapping[str, str]) -> list[Memory]:
    """Nothing is searched for, so no vectors are made."""
    return list(remember(engine, texts, searchable=False).values())


def decode_times(model: LoadedModel, length: int, repeats: int) -> dict[str, list[float]]:
    """Seconds a decoded token after reading and after injecting, `repeats` times in turns."""
    endless = replace(model)
    # Short answers would leave nothing to measure: a copy of the model that knows no end of an answer.
    endless.__dict__["eos_token_ids"] = frozenset()
    with NNM.open(endless) as engine:
        memory = _added(engine, {"decoding": texts_of_length(model, length, 1)[0]})[0]

        def each(mode: Any) -> float:
            answer = engine.answer(LONGER, memories=[memory], mode=mode, max_tokens=DECODED)
            decoded = len(answer.token_ids) - 1  # the first token belongs to the prompt
            return (answer.receipt.seconds_total - answer.receipt.seconds_to_first_token) / decoded

        for mode in ("read", "inject"):
            each(mode)
        return side_by_side({"read": lambda repeat: each("read"), "inject": lambda repeat: each("inject")}, repeats)


def ask(engine: NNM, memory: Memory, mode: Any) -> float:
    """Seconds to the first token; fails if the arm did not do what it is named after."""
    answer = engine.answer(QUESTION, memories=[memory], mode=mode, max_tokens=1)
    injected = answer.receipt.tokens_injected > 0
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
    for name in ("tokens", *report["arms"]):
        shown.add_column(name, justify="right")
    for length in report["ratio"]["injected"]:
        cells = []
        for name, arm in report["arms"].items():
            faster = "" if name == "read" else f"\n{report['ratio'][name][length]:.1f} x"
            cells.append(seconds(arm["seconds_to_first_token"][length]["median"]) + faster)
        shown.add_row(length, *cells)
    return shown


def save_plot(report: Mapping[str, Any], target: Path) -> None:
    """Seconds over the length of the memory, a line an arm, the range of the repeats shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.4), layout="constrained")
    panel = figure.subplots()
    for name in COLOURS:
        rows = report["arms"][name]["seconds_to_first_token"]
        lengths = [int(length) for length in rows]
        medians, low, high = ([1000 * row[key] for row in rows.values()] for key in ("median", "low", "high"))
        panel.fill_between(lengths, low, high, color=COLOURS[name], alpha=0.18, linewidth=0)
        panel.plot(lengths, medians, "o-", color=COLOURS[name], linewidth=2, label=name)
    panel.set_xlim(0, max(lengths) * 1.05)
    panel.legend(frameon=False, loc="best", labelcolor=INK)  # names at the ends of lines that meet hide each other
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
