"""``nnm eval retrieval``: how well are the right memories found, by every part alone and by all together?"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from nnm_core.cli import session as shared
from nnm_core.cli.output import owns_stdout, stderr, stdout
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.report import plain, quiet_libraries, write_json

if TYPE_CHECKING:
    from nnm_core.evaluation.datasets import RetrievalSet
    from nnm_core.evaluation.retrieval import Rankings
    from nnm_core.evaluation.retrieval_experiment import Experiment, RetrievalOptions
    from nnm_core.evaluation.retrieval_report import ArmResult
    from nnm_core.evaluation.statistics import Interval


@dataclass(frozen=True, slots=True)
class _Reader:
    model: str
    device: str | None
    dtype: str | None


@dataclass(frozen=True, slots=True)
class _Saving:
    """Where rankings and evidence go, after every part of the experiment; `started` is when it began."""

    runs: Path | None
    evidence: Path | None
    started: float

    def save(self, made: Runs, config: dict[str, Any], experiment: Experiment) -> None:
        from nnm_core.evaluation.retrieval_report import save_evidence, save_runs

        config["seconds"] = round(time.perf_counter() - self.started, 1)
        if self.runs is not None:
            save_runs(self.runs, made, plain(config))
        if self.evidence is not None and experiment.data.name == next(iter(made)):
            if experiment.evidence:
                save_evidence(self.evidence, experiment.evidence, experiment.arms["hybrid"])
            if experiment.judged_evidence:
                judged = self.evidence.with_suffix(".judged.npz")
                save_evidence(judged, experiment.judged_evidence, experiment.judged_first)


@dataclass(slots=True)
class _Report:
    """Prints the tables of a set as soon as its rankings are there, and writes the JSON of all sets so far.

    The first set stands under ``arms``, further ones under ``sets``. On stdout the JSON comes once, from `close`.
    """

    target: Path | None
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def add(self, data: RetrievalSet, arms: dict[str, Rankings], config: dict[str, Any]) -> None:
        from nnm_core.evaluation.retrieval_report import ablation, measured

        results = measured(data, arms)
        steps = ablation(results)
        self.found[data.name] = {"arms": {r.name: r.to_dict() for r in results}, "ablation": steps}
        self.config = config
        if owns_stdout(self.target):
            return
        console = stdout()
        if not console.is_terminal:  # a pipe has no width; the 80 columns of a console would break every name
            console.width = _PIPE_WIDTH
        console.print(_arms_table(data, results))
        console.print(_steps_table(data, steps))
        write_json(self.target, self._whole())  # what is measured is kept if a later set is not finished

    def close(self) -> None:
        if owns_stdout(self.target):
            write_json(self.target, self._whole())

    def _whole(self) -> dict[str, Any]:
        first, *further = self.found
        return {**self.found[first], "sets": {name: self.found[name] for name in further}, "config": self.config}


Runs = dict[str, dict[str, "Rankings"]]
_PIPE_WIDTH = 140


def register(group: typer.Typer) -> None:
    """Put the command into ``nnm eval``."""
    group.command("retrieval")(retrieval)


def retrieval(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A folder in BEIR's layout: corpus, queries, qrels.")],
    model: shared.ModelOption = shared.DEFAULT_MODEL,
    device: shared.DeviceOption = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 ...; chosen for you if left out.")] = None,
    split: Annotated[str, typer.Option(help="Which judgements: qrels/SPLIT.tsv.")] = "test",
    subset: Annotated[
        str | None, typer.Option(metavar="QxD", help="Also a small pool: Q queries, their documents filled up to D.")
    ] = None,
    only_subset: Annotated[bool, typer.Option("--only-subset", help="The small pool and not the full set.")] = False,
    queries: Annotated[int | None, typer.Option(help="Only the first so many queries, on all documents.")] = None,
    routes: Annotated[str, typer.Option(help="Dense vectors: of off, two-pass, one-pass.")] = "off,two-pass,one-pass",
    layers: Annotated[str, typer.Option(help="Re-routed layers: default, profile (chosen), or like 7,8.")] = "default",
    labels: Annotated[int, typer.Option(help="Own sentences that choices are made on.")] = 100,
    trial_depth: Annotated[int, typer.Option(help="Candidates of each own sentence.")] = 10,
    depth: Annotated[int, typer.Option(help="Candidates that are re-ranked.")] = 50,
    heads: Annotated[int, typer.Option(help="Attention heads that count.")] = 8,
    cue: Annotated[str, typer.Option(help="Text before the query in re-ranking.")] = "Question:",
    batch: Annotated[int, typer.Option(help="Tokens of a forward pass.")] = 4096,
    expansion: Annotated[int, typer.Option(help="Words that the language-model head adds to a query.")] = 30,
    document_expansion: Annotated[int, typer.Option(help="Words that it adds to each document: a second reading.")] = 0,
    tune_split: Annotated[
        str | None,
        typer.Option(help="Also choose re-ranking weights on the judgements of qrels/TUNE_SPLIT.tsv; not of --split."),
    ] = None,
    tune_queries: Annotated[int, typer.Option(help="The first so many queries of it.")] = 400,
    baselines: Annotated[str, typer.Option(help="Of bm25 and minilm; empty for none.")] = "bm25,minilm",
    rerank: Annotated[bool, typer.Option(help="Read queries over stored states.")] = True,
    tokens: Annotated[bool, typer.Option(help="Measure the token level.")] = True,
    save_runs: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all rankings (.json.gz).")] = None,
    save_evidence: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write what the states say of each candidate (.npz)."),
    ] = None,
    runs: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Rankings saved before, put together; only missing baselines are run."),
    ] = None,
    json: shared.JsonOption = None,
) -> None:
    """Measure recall on a public set: nDCG@10, recall@100 and MRR@10, with paired differences to BM25 and MiniLM.

    Whatever has to be chosen is chosen on sentences of the documents; no judgement is used but for the final figures.
    """
    from nnm_core.evaluation.datasets import load_beir
    from nnm_core.evaluation.retrieval_experiment import RetrievalOptions

    quiet_libraries()
    started = time.perf_counter()
    full = load_beir(data, split)
    if queries:
        full = full.subset(queries, len(full.documents))
    sets = _sets(full, subset, only_subset=only_subset)
    judged = _judged(data, split, tune_split, tune_queries)
    options = RetrievalOptions(
        routes=_of(routes, ("off", "two-pass", "one-pass"), "--routes"),
        layers=layers,
        labels=labels,
        trial_depth=trial_depth,
        depth=depth,
        heads=heads,
        cue=cue,
        batch=batch,
        baselines=_of(baselines, ("bm25", "minilm"), "--baselines"),
        rerank=rerank,
        tokens=tokens,
        expansion=expansion,
        document_expansion=document_expansion,
        all_heads=save_evidence is not None,
    )
    tell = _teller(started)
    report = _Report(json)
    if runs:
        _replayed(sets, runs, options, tell, report)
    else:
        saving = _Saving(save_runs, save_evidence, started)
        _made(sets, judged, _Reader(model, device, dtype), options, tell, saving, report)
    report.close()


def _sets(full: RetrievalSet, subset: str | None, *, only_subset: bool) -> list[RetrievalSet]:
    if subset is None:
        if only_subset:
            raise typer.BadParameter("say which pool with --subset 50x250", param_hint="--only-subset")
        return [full]
    sizes = re.fullmatch(r"(\d+)x(\d+)", subset)
    if sizes is None:
        raise typer.BadParameter("like 50x250: queries x documents", param_hint="--subset")
    small = full.subset(int(sizes[1]), int(sizes[2]))
    return [small] if only_subset else [full, small]


def _of(given: str, known: Sequence[str], option: str) -> tuple[Any, ...]:
    names = tuple(name.strip() for name in given.split(",") if name.strip())
    unknown = [name for name in names if name not in known]
    if unknown:
        raise typer.BadParameter(f"{unknown[0]!r} is none of {', '.join(known)}", param_hint=option)
    return names


def _teller(started: float) -> Callable[[str], None]:
    return lambda text: stderr().print(f"[{time.perf_counter() - started:6.1f} s] {text}")


def _made(
    sets: Sequence[RetrievalSet],
    judged: RetrievalSet | None,
    reader: _Reader,
    options: RetrievalOptions,
    tell: Callable[[str], None],
    saving: _Saving,
    report: _Report,
) -> None:
    """Run the experiment on every set with one model; judged queries are for the first set."""
    from nnm_core.evaluation.benchmark import environment
    from nnm_core.evaluation.retrieval_experiment import Experiment
    from nnm_core.model.load import ModelSettings, load_model

    tell(f"loading {reader.model}")
    loaded = load_model(reader.model, ModelSettings(device=reader.device, dtype=reader.dtype))
    runs: Runs = {}
    config: dict[str, Any] = {**environment(loaded), "sets": {}}
    for data in sets:
        tell(f"{data.name}: {len(data.documents)} documents, {len(data.queries)} queries")
        asked = judged if data is sets[0] else None
        experiment = Experiment(data, loaded, options, tell, judged=asked, save=partial(saving.save, runs, config))
        runs[data.name], config["sets"][data.name] = experiment.arms, experiment.config
        experiment.run()
        report.add(data, runs[data.name], config)


def _judged(data: Path, split: str, tune_split: str | None, queries: int) -> RetrievalSet | None:
    """The queries that weights may be chosen on."""
    if tune_split is None:
        return None
    if tune_split == split:
        raise typer.BadParameter("the split that is measured must not be tuned on", param_hint="--tune-split")
    from nnm_core.evaluation.datasets import load_beir

    found = load_beir(data, tune_split)
    return found.subset(queries, len(found.documents))


def _replayed(
    sets: Sequence[RetrievalSet],
    paths: Sequence[Path],
    options: RetrievalOptions,
    tell: Callable[[str], None],
    report: _Report,
) -> None:
    """Saved rankings, with the baselines that they lack; the configuration is the first file's."""
    from nnm_core.evaluation import baselines
    from nnm_core.evaluation.retrieval_experiment import LIMIT
    from nnm_core.evaluation.retrieval_report import load_runs

    files = [load_runs(path) for path in paths]
    for data in sets:
        arms = {name: found for saved, _ in reversed(files) for name, found in saved.get(data.name, {}).items()}
        if not arms:
            known = ", ".join(sorted({name for saved, _ in files for name in saved}))
            raise InvalidInputError(f"There are no saved rankings of {data.name}.", hint=f"There are some of {known}.")
        names = {"bm25": baselines.BM25, "minilm": baselines.MINILM}
        missing = [short for short in options.baselines if names[short] not in arms]
        if missing:
            tell(f"baselines of {data.name}: {', '.join(missing)}")
        found: dict[str, Rankings] = {**baselines.rankings(data, LIMIT, missing)}
        arms = {**found, **arms}
        if baselines.BM25 in arms and baselines.MINILM in arms and baselines.BOTH not in arms:
            arms[baselines.BOTH] = baselines.together(arms[baselines.BM25], arms[baselines.MINILM], LIMIT)
        report.add(data, arms, files[0][1])


def _arms_table(data: RetrievalSet, results: Sequence[ArmResult]) -> Table:
    references = list(dict.fromkeys(name for result in results for name in result.differences))
    title = f"{data.name}: {len(data.documents)} documents, {len(data.queries)} queries"
    table = Table(title=title, title_justify="left", caption="* p < 0.05, paired bootstrap over queries")
    table.add_column("arm")
    for name in ("nDCG@10", "95 %", *(f"to {name}" for name in references), "R@100", "MRR@10"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in results:
        own = result.interval
        differences = [
            _difference(result.differences[name]) if name in result.differences else "" for name in references
        ]
        figures = (f"{result.means['recall@100']:.3f}", f"{result.means['mrr@10']:.3f}")
        table.add_row(result.name, f"{own.mean:.4f}", f"[{own.low:.3f}, {own.high:.3f}]", *differences, *figures)
    return table


def _steps_table(data: RetrievalSet, steps: dict[str, Interval]) -> Table:
    table = Table(title=f"{data.name}: what each step brings (nDCG@10)", title_justify="left")
    table.add_column("step")
    table.add_column("difference", justify="right")
    table.add_column("95 %", justify="right", no_wrap=True)
    table.add_column("p", justify="right")
    for name, found in steps.items():
        table.add_row(name, f"{found.mean:+.4f}", f"[{found.low:+.4f}, {found.high:+.4f}]", f"{found.p:.3f}")
    return table


def _difference(found: Interval) -> str:
    return f"{found.mean:+.4f}{'*' if found.p < 0.05 else ' '}"
