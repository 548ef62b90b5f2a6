"""At the same time to the first token, and at the same prompt tokens: who answers better, classic RAG or NNM?

    python benchmarks/equal_budget.py --squad dev-v1.1.json --questions 300 --json out/equal_budget.json

Every question is asked with the 1, 2, 3, 5 ... best of all passages of the file, retrieval in the loop. Arms:

rag         passages found by MiniLM, their text read in the prompt
exact       passages found by NNM, at repeated use: everything but the question is injected, the answers are those of
            reading the same tokens
composed    passages found by NNM, states that were read apart injected side by side (policy fast)

Times are measured on `--timed` questions, one at a time, all arms in turns, retrieval included. The answers of `rag`
and `exact` on all questions come from states of the same tokens, prompts growing passage by passage, and all answers
are decoded side by side, since that is what makes 300 questions affordable; on the timed questions they are compared
with reading the text of one prompt and decoding it alone, and the number of equal answers is in the result. Passages
that do not fit the context are dropped from the end, and counted. At each budget of RAG, NNM gets the most passages
whose median time is no longer. Differences are paired by question; p is the exact McNemar test, and p_holm is corrected
for the number of budgets (Holm 1979). Without `--squad` the demo's 24 questions are asked: a demonstration, no
measurement. `--store` keeps the memory for the next run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from nnm_core import NNM
from nnm_core.answering import Request
from nnm_core.demo import dataset
from nnm_core.errors import ContextOverflowError
from nnm_core.evaluation.answers import contains_answer, exact_match, f1
from nnm_core.evaluation.benchmark import environment, inject_always, parser
from nnm_core.evaluation.compare.arms import keeper
from nnm_core.evaluation.compare.questions import Question
from nnm_core.evaluation.datasets.load import load_questions
from nnm_core.evaluation.embedders import EmbeddingRetriever
from nnm_core.evaluation.rag import ClassicRag
from nnm_core.evaluation.report import seconds, write_json
from nnm_core.evaluation.statistics import bootstrap, holm, mcnemar, paired_bootstrap
from nnm_core.records import Answer, Hit, Memory
from nnm_core.together import BatchUse, answer_together

ARMS = ("rag", "exact", "composed")
LABELS = {"rag": "classic RAG", "exact": "NNM exact, again", "composed": "NNM composed"}
COLOURS = {"rag": "#3d7ea6", "exact": "#e07a3f", "composed": "#b8860b"}
INK = "#22303c"


@dataclass
class Cell:
    """One arm with one number of passages: an entry a question, in the order of the questions."""

    exact: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)
    gold: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    read: dict[str, tuple[int, ...]] = field(default_factory=dict)
    same: list[bool] = field(default_factory=list)
    dropped: int = 0

    def add(self, question: Question, answer: Answer, given: Sequence[Hit], dropped: int) -> None:
        """Count an answer; where the text was really read before (`read`), compare with that."""
        self.dropped += dropped
        if question.id in self.read:
            self.same.append(self.read[question.id] == answer.token_ids)
        self.exact.append(exact_match(answer.text, question.answers))
        self.overlap.append(f1(answer.text, question.answers))
        self.gold.append(contains_answer("\n\n".join(hit.memory.text for hit in given), question.answers))
        self.tokens.append(answer.receipt.tokens_read + answer.receipt.tokens_injected)

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        interval = bootstrap(self.exact)
        return {
            "exact_match": interval.mean,
            "exact_match_interval": [interval.low, interval.high],
            "f1": statistics.fmean(self.overlap),
            "gold_given": statistics.fmean(self.gold),
            "prompt_tokens": statistics.fmean(self.tokens),
            "seconds_to_first_token": statistics.median(self.first) if self.first else None,
            "timed": len(self.first),
            "same_answer_as_reading": sum(self.same) if self.same else None,
            "dropped_passages": self.dropped,
        }


Cells = Mapping[str, Mapping[int, Cell]]


class Experiment:
    """Holds what all parts need."""

    def __init__(self, engine: NNM, memories: Sequence[Memory], rag: ClassicRag, options: argparse.Namespace) -> None:
        self.engine, self.rag, self.options = engine, rag, options
        self.fresh = keeper(engine, memories)
        count = len(memories)
        counts = {"rag": options.read, "exact": options.read, "composed": options.composed}
        self.cells = {arm: {k: Cell() for k in counts[arm] if k <= count} for arm in ARMS}

    def ask(self, questions: Sequence[Question]) -> None:
        """All arms and numbers of passages, for their answers, decoded side by side."""
        most = {arm: max(cells) for arm, cells in self.cells.items()}
        ours = [self.engine.search(question.question, max(most["exact"], most["composed"])) for question in questions]
        theirs = [self._theirs(question, most["rag"]) for question in questions]
        self.fresh()  # so that what is composed finds no chain that was read
        self._add("composed", questions, [(ours, k, "fast") for k in self.cells["composed"]])
        self._add("exact", questions, [(ours, k, "exact") for k in self.cells["exact"]])
        self._add("rag", questions, [(theirs, k, "exact") for k in self.cells["rag"]])

    def _add(self, arm: str, questions: Sequence[Question], wanted: Sequence[tuple[list[list[Hit]], int, str]]) -> None:
        """The answers of an arm; shorter prompts come first, so that longer ones are read behind them."""
        rows = [
            (question, k, self._request(question, hits[:k], policy))
            for found, k, policy in wanted
            for question, hits in zip(questions, found, strict=True)
        ]
        answers = answer_together(self.engine._answerer, [request for *_, request in rows], BatchUse())
        for (question, k, request), answer in zip(rows, answers, strict=True):
            self.cells[arm][k].add(question, answer, request.hits, k - len(request.hits))

    def _request(self, question: Question, hits: Sequence[Hit], policy: Any) -> Request:
        """With as many of the hits as fit."""
        options: dict[str, Any] = {"composer": self.options.composer} if policy == "fast" else {}
        limit = self.options.max_tokens
        asked = self.engine.stream(
            question.question, memories=hits, max_tokens=limit, policy=policy, overflow="drop", **options
        )
        return asked.request

    def time(self, question: Question, turn: int) -> None:
        """All arms as they are used, for their times; the order of the arms turns."""
        for k in sorted({k for cells in self.cells.values() for k in cells}):
            for arm in ARMS if turn % 2 == 0 else reversed(ARMS):
                if k in self.cells[arm]:
                    self._time(arm, k, question)

    def _time(self, arm: str, k: int, question: Question) -> None:
        cell = self.cells[arm][k]
        self.fresh()
        try:
            answer = self._as_used(arm, k, question, cell)
        except ContextOverflowError:
            return  # its time is not that of k passages
        cell.first.append(answer.receipt.seconds_to_first_token)

    def _as_used(self, arm: str, k: int, question: Question, cell: Cell) -> Answer:
        asked, limit = question.question, self.options.max_tokens
        if arm == "composed":
            return self.engine.answer(asked, k, limit, policy="fast", composer=self.options.composer)
        if arm == "rag":
            answer = self.rag.answer(asked, k=k, max_tokens=limit)
            cell.read[question.id] = answer.token_ids
            return answer
        self.engine.answer(asked, k, 1, policy="exact")
        answer = self.engine.answer(asked, k, limit, policy="exact")
        cell.read[question.id] = self.engine.answer(asked, k, limit, mode="read").token_ids
        return answer

    def _theirs(self, question: Question, k: int) -> list[Hit]:
        found = self.rag.retriever.search(question.question, k)
        return [Hit(self.rag.memories[place], score) for place, score in found]


def main() -> None:
    """Measure, print, save."""
    options = _options()
    started = time.perf_counter()
    questions, passages, name = _data(options)
    with _engine(options) as engine:
        new = not engine.stats()["memories"]
        memories = engine.add(list(passages.values()), ids=list(passages), progress=True)
        ingest = time.perf_counter() - started
        retriever = EmbeddingRetriever("minilm")
        rag = ClassicRag.over(engine, retriever, memories)
        experiment = Experiment(engine, memories, rag, options)
        _run(experiment, questions, options)
        retriever.close()
        config = environment(engine.model) | {
            "data": name,
            "passages": len(passages),
            "questions": len(questions),
            "timed": min(options.timed, len(questions)),
            "max_tokens": options.max_tokens,
            "composer": options.composer or "default",
            "retriever": retriever.name,
            "seed": options.seed,
            "ingest_seconds": ingest if new else None,
            "seconds": time.perf_counter() - started,
        }
    report = {
        "arms": {arm: {str(k): cell.figures() for k, cell in cells.items()} for arm, cells in experiment.cells.items()},
        "same_time": same_time(experiment.cells),
        "same_tokens": same_tokens(experiment.cells),
        "config": config,
        "items": {arm: {str(k): cell.exact for k, cell in cells.items()} for arm, cells in experiment.cells.items()},
    }
    write_json(options.json, report)
    console = Console(file=sys.stderr if str(options.json) == "-" else sys.stdout)
    console.print(table(report))
    for sentence in sentences(report):
        console.print(f"- {sentence}", highlight=False)
    if options.plot:
        save_plot(report, options.plot)


def _run(experiment: Experiment, questions: Sequence[Question], options: argparse.Namespace) -> None:
    first = questions[0]
    experiment.rag.answer(first.question, k=1, max_tokens=1)
    for policy in ("exact", "fast"):
        experiment.engine.answer(first.question, 1, 1, policy=policy)
    timed = questions[: options.timed]
    for turn, question in enumerate(track(timed, "times", console=Console(stderr=True), transient=True)):
        experiment.time(question, turn)
    groups = [questions[start : start + options.batch] for start in range(0, len(questions), options.batch)]
    for group in track(groups, "answers", console=Console(stderr=True), transient=True):
        experiment.ask(group)


def same_time(cells: Cells) -> list[dict[str, Any]]:
    """For each budget of RAG: each NNM arm with the most passages that take no longer, paired."""
    rows = []
    for k, theirs in cells["rag"].items():
        budget = statistics.median(theirs.first) if theirs.first else 0.0
        for arm in ("exact", "composed"):
            affordable = [n for n, cell in cells[arm].items() if cell.first and statistics.median(cell.first) <= budget]
            if affordable:
                rows.append({"budget_seconds": budget, **_pair(cells, arm, max(affordable), k)})
    return _corrected(rows)


def same_tokens(cells: Cells) -> list[dict[str, Any]]:
    """For each number of passages: each NNM arm against RAG with as many, paired."""
    rows = [_pair(cells, arm, k, k) for arm in ("exact", "composed") for k in cells["rag"] if k in cells[arm]]
    return _corrected(rows)


def _pair(cells: Cells, arm: str, ours: int, theirs: int) -> dict[str, Any]:
    mine, rag = cells[arm][ours], cells["rag"][theirs]
    return {
        "arm": arm,
        "rag_passages": theirs,
        "passages": ours,
        "prompt_tokens": statistics.fmean(mine.tokens),
        "difference": asdict(paired_bootstrap(mine.exact, rag.exact)),
        "mcnemar": asdict(mcnemar(mine.exact, rag.exact)),
    }


def _corrected(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for arm in ("exact", "composed"):
        mine = [row for row in rows if row["arm"] == arm]
        for row, p in zip(mine, holm([row["mcnemar"]["p"] for row in mine]), strict=True):
            row["p_holm"] = p
    return rows


def table(report: Mapping[str, Any]) -> Table:
    """One row an arm and number of passages."""
    config = report["config"]
    title = f"{config['questions']} questions on {config['passages']} passages, {config['model']}, {config['device']}"
    shown = Table(title=title)
    for name in ("arm", "passages", "prompt tokens", "first token", "EM [95 %]", "F1", "gold given"):
        shown.add_column(name, justify="left" if name == "arm" else "right", no_wrap=name == "arm")
    for arm, cells in report["arms"].items():
        for k, row in cells.items():
            low, high = (100 * value for value in row["exact_match_interval"])
            first = row["seconds_to_first_token"]
            shown.add_row(
                LABELS[arm],
                k,
                f"{row['prompt_tokens']:,.0f}",
                "-" if first is None else seconds(first),
                f"{100 * row['exact_match']:.1f} [{low:.0f}, {high:.0f}]",
                f"{100 * row['f1']:.1f}",
                f"{100 * row['gold_given']:.1f}",
            )
        shown.add_section()
    return shown


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What the pairs say, whichever way it goes."""
    said = []
    for name, rows in (("at the same time to the first token", report["same_time"]),
                       ("at the same number of passages", report["same_tokens"])):  # fmt: skip
        for row in rows:
            difference, test = row["difference"], row["mcnemar"]
            mean, low, high = (f"{100 * difference[key]:+.1f}" for key in ("mean", "low", "high"))
            verdict = "ahead" if difference["mean"] > 0 else "behind"
            verdict = "no difference shown" if row["p_holm"] >= 0.05 else verdict
            said.append(
                f"{LABELS[row['arm']]} with {row['passages']} passages, RAG with {row['rag_passages']}, {name}: "
                f"{verdict} ({mean} points EM [{low}, {high}], {test['ours']}:{test['theirs']}, p {test['p']:.3g}, "
                f"corrected {row['p_holm']:.3g})"
            )
    return said


def save_plot(report: Mapping[str, Any], target: Path) -> None:
    """EM over time to the first token and over prompt tokens, a line an arm, the number of passages at each point."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for panel, key, scale, label in (
        (panels[0], "seconds_to_first_token", 1000, "milliseconds to the first token"),
        (panels[1], "prompt_tokens", 1, "tokens of the prompt"),
    ):
        for arm, cells in report["arms"].items():
            rows = {k: row for k, row in cells.items() if row[key] is not None}
            across = [scale * row[key] for row in rows.values()]
            up = [100 * row["exact_match"] for row in rows.values()]
            ends = [[100 * abs(row["exact_match"] - row["exact_match_interval"][end]) for row in rows.values()]
                    for end in (0, 1)]  # fmt: skip
            panel.errorbar(across, up, yerr=ends, fmt="none", ecolor=COLOURS[arm], elinewidth=1, capsize=2, alpha=0.5)
            panel.plot(across, up, "o-", color=COLOURS[arm], linewidth=2, label=LABELS[arm])
            for k, x, y in zip(rows, across, up, strict=True):
                panel.annotate(k, (x, y), xytext=(5, 5), textcoords="offset points", ha="left", color=INK, fontsize=8)
        panel.set_xlabel(label, color=INK)
        panel.grid(color="#e6eaee", linewidth=0.8)
        panel.tick_params(colors=INK, length=0)
        for side in ("top", "right", "left"):
            panel.spines[side].set_visible(False)
    panels[0].set_xscale("log")
    panels[0].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    panels[0].xaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}" if f"{value:.0e}"[0] in "25" else "")
    panels[0].set_title("Exact match, %, with 95 % intervals; numbers: passages", loc="left", fontsize=10, color=INK)
    panels[1].legend(frameon=False, loc="best", labelcolor=INK, fontsize=9)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _data(options: argparse.Namespace) -> tuple[list[Question], Mapping[str, str], str]:
    if options.squad is None:
        passages = {passage.id: passage.text for passage in dataset.passages()}
        return dataset.questions()[: options.questions], passages, "demo excerpt"
    found = load_questions(options.squad)
    asked = found.sample(options.questions, seed=options.seed).questions
    # In another order than the file's, so that the timed ones are not all about one article.
    chosen = [Question(item.id, item.text, item.answers, item.passages[0]) for item in asked]
    return sorted(chosen, key=lambda question: question.id), found.passages, found.name


@contextmanager
def _engine(options: argparse.Namespace) -> Iterator[NNM]:
    with tempfile.TemporaryDirectory(prefix="nnm-equal-") as folder:
        path = options.store or Path(folder)
        with NNM.open(options.model, path=path, device=options.device, rebuild=True) as engine:
            inject_always(engine)
            yield engine


def _options() -> argparse.Namespace:
    options = parser(str(__doc__).splitlines()[0], repeats=1)
    options.description, options.formatter_class = __doc__, argparse.RawDescriptionHelpFormatter
    options.add_argument("--squad", type=Path, help="a SQuAD v1.1 file; default: the demo's passages and questions")
    options.add_argument("--questions", type=int, default=300, help="unique questions, drawn from the file")
    options.add_argument("--timed", type=int, default=12, help="questions on which times are measured")
    options.add_argument("--read", type=int, nargs="+", default=[1, 2, 3, 5, 8], help="passages of RAG and exact")
    options.add_argument("--composed", type=int, nargs="+", default=[1, 2, 3, 5, 8, 12], help="passages of composed")
    options.add_argument("--composer", help="how states are placed side by side; default: the engine's")
    options.add_argument("--max-tokens", type=int, default=16)
    options.add_argument("--batch", type=int, default=16, help="questions whose answers are decoded side by side")
    options.add_argument("--store", type=Path, metavar="FOLDER", help="keep the memory here, and use what is there")
    options.add_argument("--seed", type=int, default=0)
    return options.parse_args()


if __name__ == "__main__":
    main()
