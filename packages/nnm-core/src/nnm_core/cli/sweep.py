"""``nnm sweep alpha`` and ``nnm sweep layers``: how strongly and where to inject, tried on one's own questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, progress_bar, stderr, stdout
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.report import quiet_libraries, write_json
from nnm_core.injection.settings import Scaling

if TYPE_CHECKING:
    from nnm_core.evaluation.sweep import Kind, Setting
    from nnm_core.injection.steering import Pool
    from nnm_core.model.load import LoadedModel

group = typer.Typer(name="sweep", help="Try strengths and layers of injection on your questions.", no_args_is_help=True)

DataArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="Questions with answers and passages: SQuAD, TriviaQA, NQ or JSON lines.")
]
QuestionsOption = Annotated[int | None, typer.Option("--questions", min=1, help="Ask so many, drawn at random.")]
SeedOption = Annotated[int, typer.Option(help="Of the draw.")]
DtypeOption = Annotated[str | None, typer.Option(help="float32, bfloat16, float16; chosen for you if left out.")]
PlotOption = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write a plot (PNG).")]


def register(app: typer.Typer) -> None:
    """Put the group into `app`."""
    app.add_typer(group)


@group.command()
def alpha(
    file: DataArgument,
    values: Annotated[str, typer.Option("--values", help="Strengths, separated by commas; 1 is always there.")] = (
        "0,0.25,0.5,0.75,1.5,2,4"
    ),
    by: Annotated[str, typer.Option("--by", help="What is scaled: attention or value.")] = "attention",
    questions: QuestionsOption = 100,
    seed: SeedOption = 0,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    device: shared.DeviceOption = None,
    dtype: DtypeOption = None,
    plot: PlotOption = None,
    json: shared.JsonOption = None,
) -> None:
    """How strongly should memories be felt? 1 is as read, 0 takes their content away."""
    from nnm_core.evaluation.sweep import strengths

    chosen = strengths(_numbers(values), _scaling(by))
    config = {"values": values, "by": by}
    _sweep("alpha", lambda loaded: chosen, file, questions, seed, (model, device, dtype), config, plot, json)


@group.command()
def layers(
    file: DataArgument,
    kind: Annotated[
        str, typer.Option("--kind", help="Memories are seen: from, 'up to', only in, or everywhere without a layer.")
    ] = "from",
    route: Annotated[
        str, typer.Option("--route", help="states: keys and values; residual: one vector added before the layer.")
    ] = "states",
    strength: Annotated[float, typer.Option("--strength", help="Of the vector (residual).")] = 1.0,
    pool: Annotated[str, typer.Option("--pool", help="The memory's vector (residual): its last token or mean.")] = (
        "last"
    ),
    questions: QuestionsOption = 100,
    seed: SeedOption = 0,
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    device: shared.DeviceOption = None,
    dtype: DtypeOption = None,
    plot: PlotOption = None,
    json: shared.JsonOption = None,
) -> None:
    """In which layers should memories be seen?"""
    from nnm_core.evaluation.sweep import additions, places

    _one_of("--route", route, ("states", "residual"))
    seen: Kind = _one_of("--kind", kind, ("from", "up to", "only", "without"))
    pooling: Pool = _one_of("--pool", pool, ("last", "mean"))

    def settings(loaded: LoadedModel) -> Sequence[Setting]:
        if route == "residual":
            return additions(loaded.layers, strength, pooling)
        return places(loaded.layers, seen)

    config = {"route": route} | ({"kind": kind} if route == "states" else {"strength": strength, "pool": pool})
    _sweep("layers", settings, file, questions, seed, (model, device, dtype), config, plot, json)


def _sweep(
    name: str,
    settings: Any,
    file: Path,
    questions: int | None,
    seed: int,
    opened: tuple[str, str | None, str | None],
    config: Mapping[str, Any],
    plot: Path | None,
    json: Path | None,
) -> None:
    quiet_libraries()
    from nnm_core.evaluation.benchmark import environment
    from nnm_core.evaluation.datasets import load_questions
    from nnm_core.evaluation.sweep import Sweep
    from nnm_core.model.load import ModelSettings, load_model

    data = load_questions(file).sample(questions, seed=seed)
    with stderr().status(f"Opening {opened[0]} ..."):
        model = load_model(opened[0], ModelSettings(device=opened[1], dtype=opened[2]))
    sweep = Sweep(model, settings(model))
    with progress_bar("Asking", len(data.questions)) as bar:
        for _ in sweep.run(data):
            bar.advance(bar.task_ids[0])
    found = {"data": data.name, "questions": len(data.questions), "left_out": dict(data.left_out), "seed": seed}
    report = {"arms": sweep.report(), "config": environment(model) | found | {"sweep": name} | dict(config)}
    write_json(json, report)
    (stderr() if owns_stdout(json) else stdout()).print(table(report))
    if plot is not None:
        save_plot(report, plot)


def table(report: Mapping[str, Any]) -> Table:
    """One row an arm."""
    config = report["config"]
    shown = Table(title=f"{config['questions']} questions of {config['data']}, {config['model']}")
    for head in ("setting", "EM", "F1", "change [95 %]", "log p", "change [95 %]"):
        shown.add_column(head, justify="left" if head == "setting" else "right", no_wrap=True)
    shown.caption = "change: to 'as read', paired; log p: of the gold answer, a token"
    for name, arm in report["arms"].items():
        shown.add_row(
            name,
            f"{arm['em'].mean:.1f}",
            f"{arm['f1'].mean:.1f}",
            _interval(arm["f1_minus_base"], 1),
            f"{arm['gold_logprob'].mean:.2f}",
            _interval(arm["gold_minus_base"], 2),
        )
    return shown


def _interval(found: Any, digits: int) -> str:
    return f"{found.low:+.{digits}f} .. {found.high:+.{digits}f}"


def save_plot(report: Mapping[str, Any], target: Path) -> None:
    """F1 and the gold answer's log-probability, an arm a mark, with 95 % intervals.

    Raises:
        InvalidInputError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InvalidInputError("Plots need matplotlib.", hint="pip install 'nnm-core[plot]'") from error
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    names = list(report["arms"])
    for panel, key, title in zip(figure.subplots(1, 2), ("f1", "gold_logprob"), ("F1", "log p(gold)"), strict=True):
        values = [report["arms"][name][key] for name in names]
        means = [value.mean for value in values]
        errors = [[value.mean - value.low for value in values], [value.high - value.mean for value in values]]
        panel.errorbar(range(len(names)), means, yerr=errors, fmt="o", capsize=3, color="#e07a3f", ecolor="#9aa5b1")
        panel.set_xticks(range(len(names)), names, rotation=60, ha="right")
        panel.set_title(title, loc="left", fontweight="bold", color="#22303c")
        panel.grid(axis="y", color="#e6eaee", linewidth=0.8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise InvalidInputError(f"{text!r} is no list of numbers.", hint="Write 0,0.5,2.") from error


def _scaling(by: str) -> Scaling:
    found: Scaling = _one_of("--by", by, ("attention", "value"))
    return found


def _one_of(option: str, value: str, allowed: tuple[str, ...]) -> Any:
    if value not in allowed:
        raise InvalidInputError(f"{option} is {value!r}.", hint=f"Use one of {', '.join(allowed)}.")
    return value
