"""How well do composers put memories side by side, on real questions?

    python benchmarks/composition.py --data dev-v1.1.json --json out/composition.json --plot out/composition.png
    python benchmarks/composition.py --data dev-v1.1.json --model FOLDER --memories 4 --questions 100 --composers guided

Every question of a SQuAD file is asked of its own passage among others, the right one at a random place, so that it is
seldom the first (which is exact). Two settings: one passage is needed; and two, where the question is the second of a
conversation whose first one (answered rightly) was about another of the passages, so that one composition has to serve
both. The arms:

read         all passages are read as text, in the same token order: what composing wants to reach
bare         the question alone (where one passage is needed)
random       as many passages, none of them the right one, are read (likewise)
own sinks    every passage was read alone, without the chat's beginning, so that its first tokens are sinks of their own
concatenate  every passage's state, read behind the chat's beginning, is moved to its place: where composing starts
...          every other composer
fused        (``--neighbours 2``) concatenation of states that were computed behind the memory's nearest passages of the
             file, as by `NNM.fuse`; and the default composer over these

`recovery` is (composer - concatenate) / (read - concatenate), with a paired bootstrap interval over the questions.
Answers are greedy and made in batches on one board; the time to the first token is measured apart, on single prompts
with their states in RAM, in turns (``--repeats 0``: not at all, where other programs run beside this one).
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.settings import EmbeddingSettings
from nnm_core.embedding.whitening import SufficientStatistics, Whitening
from nnm_core.evaluation.answers import exact_match, f1
from nnm_core.evaluation.benchmark import environment, parser, side_by_side, timed
from nnm_core.evaluation.datasets import Question, QuestionSet, load_questions
from nnm_core.evaluation.report import write_json
from nnm_core.evaluation.statistics import bootstrap, paired_bootstrap
from nnm_core.injection.compose import Composer, Composition, composer, names
from nnm_core.injection.compose.board import Board
from nnm_core.injection.compose.guided import Guided
from nnm_core.injection.compose.parallel import Parallel
from nnm_core.injection.compose.parallel import side_by_side as parallel_plan
from nnm_core.injection.compose.repair import Repair
from nnm_core.injection.plan import Plan, make_plan, read_plan
from nnm_core.injection.prefill import prefill
from nnm_core.model.batching import padded_batches
from nnm_core.model.load import LoadedModel, ModelSettings, load_model
from nnm_core.model.prompt import DEFAULT_SYSTEM, QUESTION_HEADER, PromptFormat, PromptMessage, Segment, question_prompt
from nnm_core.records import Memory
from nnm_core.states.capture import EMPTY, capture, place
from nnm_core.states.fused import capture_behind
from nnm_core.states.state import PlacedState, State

PLACES_PER_BATCH = {"cpu": 6144, "cuda": 98304}
SETTINGS = ("one needed", "two needed")
READ, BARE, RANDOM, OWN, NAIVE = "read", "bare", "random", "own sinks", "concatenate"
FUSED, FUSED_DEFAULT = "fused", f"fused + {Guided.name}"
DRAWS = 10_000
Said = tuple[str, float, float]


@dataclass(frozen=True)
class Prompt:
    """A question, the memories before it, its gold answers, and perhaps a question that was answered before.

    `strangers` are as many memories without the right one.
    """

    question: str
    memories: tuple[Memory, ...]
    golds: tuple[str, ...]
    strangers: tuple[Memory, ...]
    earlier: Question | None = None

    def messages(self, memories: Sequence[Memory], system: str | None) -> list[PromptMessage]:
        """The chat prompt with these memories in front of the first question."""
        if self.earlier is None:
            return question_prompt(self.question, memories, system)
        return [
            *question_prompt(self.earlier.text, memories, system),
            PromptMessage("assistant", (self.earlier.answers[0],)),
            PromptMessage("user", (QUESTION_HEADER + self.question,)),
        ]


@dataclass
class Outcome:
    """What one arm said to every prompt: answers, the share of the memories' tokens that was computed again, and the
    divergence of its first token's distribution from that of reading, in nats.
    """

    answers: list[str]
    shares: list[float]
    kl: list[float]


def main() -> None:
    """Measure, print, save."""
    options = parser(str(__doc__).splitlines()[0], repeats=5)
    options.add_argument("--data", type=Path, required=True, help="a SQuAD file, or a folder with dev-v1.1.json[.gz]")
    options.add_argument("--memories", type=int, nargs="+", default=[2, 4, 8], help="passages of a prompt")
    options.add_argument("--questions", type=int, default=335, help="how many, drawn once for all arms")
    options.add_argument("--composers", nargs="+", default=list(names()), choices=names(), help="default: all")
    options.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    options.add_argument("--ratio", type=float, default=0.15, help="share of the memories' tokens to compute again")
    options.add_argument("--max-tokens", type=int, default=16)
    options.add_argument("--neighbours", type=int, default=0, help="nearest passages behind which states are fused")
    options.add_argument("--places", type=int, default=None, help="tokens of a batch at most, padding included")
    options.add_argument("--dtype", default="float32")
    options.add_argument("--seed", type=int, default=0)
    arguments = options.parse_args()
    console = Console(file=sys.stderr if str(arguments.json) == "-" else sys.stdout, width=132)
    torch.set_grad_enabled(False)
    data = load_questions(_file(arguments.data))
    model = load_model(arguments.model, ModelSettings(device=arguments.device, dtype=arguments.dtype))
    chosen = ("memories", "questions", "composers", "settings", "ratio", "max_tokens", "seed", "repeats", "neighbours")
    config = environment(model) | {"data": data.name} | {k: getattr(arguments, k) for k in chosen}
    report: dict[str, Any] = {"arms": {}, "config": config}
    bench = Bench(model, arguments.composers, arguments.ratio, arguments.max_tokens, places=arguments.places)
    if arguments.neighbours:
        bench.neighbours = nearest(model, data.passages, arguments.neighbours)
    for count in arguments.memories:
        for setting in arguments.settings:
            prompts = list(draw(data, arguments.questions, count, two=setting == SETTINGS[1], seed=arguments.seed))
            started = time.perf_counter()
            rows = measured(bench.run(prompts), prompts)
            if setting == SETTINGS[0] and arguments.repeats:
                add_times(rows, bench.first_token(prompts[:: max(1, len(prompts) // 4)][:4], arguments.repeats))
            report["arms"] |= {f"{name}, {count} memories, {setting}": row for name, row in rows.items()}
            console.print(table(rows, f"{count} memories, {setting}, {len(prompts)} questions: {model.name}"))
            console.print(f"{time.perf_counter() - started:.0f} s; reading passages: {bench.seconds}")
            config["ingest_seconds"] = bench.seconds
            if str(arguments.json) != "-":  # what is measured is kept if the rest is stopped
                write_json(arguments.json, report)
    if str(arguments.json) == "-":
        write_json(arguments.json, report)
    if arguments.plot:
        save_plot(report, arguments.plot)


def _file(path: Path) -> Path:
    return (
        path / "dev-v1.1.json"
        if path.is_dir() and (path / "dev-v1.1.json").exists()
        else (path / "dev-v1.1.json.gz" if path.is_dir() else path)
    )


def draw(data: QuestionSet, count: int, size: int, *, two: bool, seed: int) -> Iterator[Prompt]:
    """The same questions whatever the size: each with its passage at a random place among others of the file.

    With two needed, the question asked before is the next one that is about another passage.
    """
    generator = random.Random(seed)  # noqa: S311  # a repeatable choice, no secret
    asked = [question for question in data.sample(count, seed=seed).questions if question.passages]
    generator.shuffle(asked)
    for number, question in enumerate(asked):
        earlier = _partner(asked, number) if two else None
        gold = [question.passages[0], *([earlier.passages[0]] if earlier else [])]
        others = generator.sample([key for key in data.passages if key not in gold], 2 * size - len(gold))
        placed = [*gold, *others[: size - len(gold)]]
        generator.shuffle(placed)
        yield Prompt(
            question.text,
            tuple(Memory(key, data.passages[key]) for key in placed),
            question.answers,
            tuple(Memory(key, data.passages[key]) for key in others[-size:]),
            earlier,
        )


def _partner(asked: Sequence[Question], number: int) -> Question:
    others = (asked[(number + step) % len(asked)] for step in range(1, len(asked)))
    return next(question for question in others if question.passages != asked[number].passages)


def nearest(model: LoadedModel, passages: Mapping[str, str], count: int) -> dict[str, list[tuple[str, str]]]:
    """For each passage the (key, text) of those nearest to it, the nearest last, by the engine's own vectors."""
    keys = list(passages)
    raw = KVEmbedder(model, EmbeddingSettings() if model.intervenes else EmbeddingSettings(route="off")).encode(
        [passages[key] for key in keys], "context"
    )
    statistics_of = SufficientStatistics(raw.shape[1])
    statistics_of.add(raw)
    vectors = Whitening.fit(statistics_of).transform(raw)
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    best = np.argsort(likeness, axis=1)[:, -count:]
    return {key: [(keys[index], passages[keys[index]]) for index in row] for key, row in zip(keys, best, strict=True)}


class Bench:
    """Answers prompts with every arm, in batches.

    States are kept in RAM by hand, as the engine's store would: each passage behind the canonical left context.
    """

    def __init__(
        self,
        model: LoadedModel,
        chosen: Sequence[str],
        ratio: float,
        max_tokens: int,
        *,
        system: str | None = DEFAULT_SYSTEM,
        places: int | None = None,
    ) -> None:
        self.model, self.max_tokens, self.system = model, max_tokens, system
        self.fused_composer = replace(Guided(), ratio=ratio)
        self.composers = [composer(name) for name in dict.fromkeys((NAIVE, *chosen))]
        self.composers = [replace(c, ratio=ratio) if isinstance(c, Repair) else c for c in self.composers]
        refused = [reason for c in self.composers if (reason := c.refusal(model))]
        if refused:
            raise SystemExit("; ".join(refused))
        self._format = PromptFormat(model.tokenizer)
        self._left_ids = self._format.left_context(system)
        self._left = place(model, capture(model, [self._left_ids])[0], 0)
        self._states: dict[str, State] = {}
        self._alone: dict[str, State] = {}
        self._fused: dict[str, State] = {}
        # What `nearest` gives; without it no states are fused.
        self.neighbours: Mapping[str, Sequence[tuple[str, str]]] = {}
        # Reading the passages alone, and behind their neighbours.
        self.seconds = {"alone": 0.0, "fused": 0.0}
        self._reading: Tensor | None = None
        self._budget = places or PLACES_PER_BATCH.get(model.device.type, PLACES_PER_BATCH["cpu"])

    def run(self, prompts: Sequence[Prompt]) -> dict[str, Outcome]:
        """Every arm's outcome, in the order of the prompts."""
        self._ingest({memory.id: memory.text for prompt in prompts for memory in prompt.memories})
        found: dict[str, dict[int, Said]] = {}
        lengths = [sum(len(memory.text) // 4 + 4 for memory in prompt.memories) + 80 for prompt in prompts]
        for batch in track(list(padded_batches(lengths, self._budget)), "Answering", transient=True):
            for name, answers in self._batch([prompts[index] for index in batch]):
                found.setdefault(name, {}).update(zip(batch, answers, strict=True))
        return {
            name: Outcome(*(list(side) for side in zip(*(rows[i] for i in range(len(prompts))), strict=True)))
            for name, rows in found.items()
        }

    def _ingest(self, texts: Mapping[str, str]) -> None:
        """Read passages that are not there yet."""
        new = {key: self._format.memory_ids(text) for key, text in texts.items() if key not in self._states}
        rows = list(new.items())
        for batch in track(
            list(padded_batches([len(ids) for _, ids in rows], self._budget)), "Reading", transient=True
        ):
            for kept, left in ((self._states, self._left), (self._alone, EMPTY)):
                began = time.perf_counter()
                states = capture(self.model, [rows[index][1] for index in batch], left)
                kept.update(zip((rows[index][0] for index in batch), states, strict=True))
                self.seconds["alone"] += self._since(began) if kept is self._states else 0.0
        if self.neighbours:
            self._fuse(rows)

    def _fuse(self, rows: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Read passages once more, behind their neighbours, as `NNM.fuse` does."""
        texts = [(*(self._format.memory_ids(text) for _, text in self.neighbours[key]), ids) for key, ids in rows]
        lengths = [sum(map(len, row)) for row in texts]
        for batch in track(list(padded_batches(lengths, self._budget)), "Reading behind neighbours", transient=True):
            began = time.perf_counter()
            states = capture_behind(self.model, [texts[index] for index in batch], self._left)
            self._fused.update(zip((rows[index][0] for index in batch), states, strict=True))
            self.seconds["fused"] += self._since(began)

    def _since(self, began: float) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    def _batch(self, prompts: Sequence[Prompt]) -> Iterator[tuple[str, list[Said]]]:
        """Arm by arm; reading comes first, since the others are compared with it."""
        self._reading = None
        controls = () if prompts[0].earlier else ((BARE, ""), (RANDOM, "strangers"))
        for name, given in ((READ, "memories"), *controls):
            segments = [self._segments(prompt, getattr(prompt, given) if given else ()) for prompt in prompts]
            yield name, self._answers(self._board([read_plan(row) for row in segments]), None)
        segments = [self._segments(prompt, prompt.memories) for prompt in prompts]
        alone = self._board([make_plan(row, "fast", self._only_left, self._own_sinks) for row in segments])
        yield OWN, self._answers(alone, None)
        plans = [self.plan(row) for row in segments]
        laid = self._board(plans)
        side = None
        for chosen in self.composers:
            if isinstance(chosen, Parallel):
                side = side or self._board([parallel_plan(self._work(plan, 0)) for plan in plans])
                yield chosen.name, self._answers(side, chosen)
            else:
                yield chosen.name, self._answers(Board.stack([laid]), chosen)
        if self.neighbours:
            fused = self._board([make_plan(row, "fast", self._exact, self._moved_fused) for row in segments])
            yield FUSED, self._answers(Board.stack([fused]), None)
            yield FUSED_DEFAULT, self._answers(fused, self.fused_composer)

    def _segments(self, prompt: Prompt, memories: Sequence[Memory]) -> list[Segment]:
        return self._format.segments(prompt.messages(memories, self.system))

    def plan(self, segments: Sequence[Segment]) -> Plan:
        """The plan of ``policy="fast"``: the first memory is exact, the others are moved to their places."""
        return make_plan(segments, "fast", self._exact, self._moved)

    def _exact(self, segment: Segment, left: str, start: int) -> PlacedState | None:
        if segment.ids == self._left_ids:
            return self._left
        state = self._stored(segment)
        return place(self.model, state, start) if state is not None and state.left == left else None

    def _only_left(self, segment: Segment, left: str, start: int) -> PlacedState | None:
        return self._left if segment.ids == self._left_ids else None

    def _own_sinks(self, segment: Segment, start: int) -> PlacedState | None:
        if segment.memory is None:
            return None
        return place(self.model, self._alone[segment.memory.id].head(len(segment.ids)), start)

    def _moved(self, segment: Segment, start: int) -> PlacedState | None:
        state = self._stored(segment)
        return None if state is None else place(self.model, state, start)

    def _moved_fused(self, segment: Segment, start: int) -> PlacedState | None:
        if segment.memory is None:
            return None
        return place(self.model, self._fused[segment.memory.id].head(len(segment.ids)), start)

    def _stored(self, segment: Segment) -> State | None:
        return None if segment.memory is None else self._states[segment.memory.id].head(len(segment.ids))

    def _work(self, plan: Plan, room: int) -> Composition:
        return Composition(self.model, plan, room, self._stored)

    def _board(self, plans: Sequence[Plan]) -> Board:
        return Board.stack([Board.of_plan(self.model, plan, self.max_tokens) for plan in plans])

    def _answers(self, board: Board, chosen: Any) -> list[Said]:
        if isinstance(chosen, Repair | Parallel):
            logits, again = chosen.arrange(board)
        else:
            again = torch.zeros_like(board.unread)
            logits = board.compute(again)
        tokens = board.mask_of(board.spans).sum(1).clamp_min(1)
        shares = (again.sum(1).double() / tokens).tolist()
        likely = logits.float().log_softmax(-1)
        self._reading = likely if self._reading is None else self._reading
        kl = (self._reading.exp() * (self._reading - likely)).sum(-1).tolist()
        return list(zip(self._decode(board, logits), shares, kl, strict=True))

    def _decode(self, board: Board, logits: Tensor) -> list[str]:
        """Greedy answers of all rows together."""
        model = self.model
        stops = torch.tensor(sorted(model.eos_token_ids), device=logits.device)
        places, token = board.lengths.clone(), logits.argmax(-1)
        said = [token]
        over = torch.isin(token, stops)
        while len(said) < self.max_tokens and not bool(over.all()):
            token = board.extend(token, places)
            places = places + 1
            said.append(token)
            over |= torch.isin(token, stops)
        answers = []
        for row in torch.stack(said, 1).tolist():
            end = next((index for index, token in enumerate(row) if token in model.eos_token_ids), len(row))
            answers.append(str(model.tokenizer.decode(row[:end], skip_special_tokens=True)).strip())
        return answers

    def first_token(self, prompts: Sequence[Prompt], repeats: int) -> dict[str, list[float]]:
        """Seconds to the first token of single prompts with their states in RAM, arms in turns."""
        segments = [self._segments(prompt, prompt.memories) for prompt in prompts]

        def read(turn: int) -> None:
            prefill(self.model, read_plan(segments[turn % len(segments)]), room=1)[1].argmax().item()

        def compose(turn: int, chosen: Composer) -> None:
            plan = self.plan(segments[turn % len(segments)])
            chosen.prefill(self._work(plan, 1)).logits.argmax().item()

        arms: dict[str, Any] = {READ: lambda turn: timed(lambda: read(turn))}
        for chosen in self.composers:
            arms[chosen.name] = lambda turn, c=chosen: timed(lambda: compose(turn, c))
        side_by_side(arms, 1)  # warm up
        return side_by_side(arms, repeats)


def measured(outcomes: Mapping[str, Outcome], prompts: Sequence[Prompt]) -> dict[str, dict[str, Any]]:
    """One row an arm: means, intervals, paired differences, recovery."""
    scores = {
        name: np.array(
            [(exact_match(a, p.golds), f1(a, p.golds)) for p, a in zip(prompts, outcome.answers, strict=True)]
        )
        for name, outcome in outcomes.items()
    }
    return {name: _row(name, outcomes, scores) for name in outcomes}


def _row(name: str, outcomes: Mapping[str, Outcome], scores: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    em, f = scores[name].T
    row: dict[str, Any] = {
        "em": bootstrap(em),
        "f1": bootstrap(f),
        "f1_minus_read": paired_bootstrap(f, scores[READ][:, 1]),
        "f1_minus_concatenate": paired_bootstrap(f, scores[NAIVE][:, 1]),
        "same_answer_as_read": statistics.mean(
            float(a == b) for a, b in zip(outcomes[name].answers, outcomes[READ].answers, strict=True)
        ),
        "share_recomputed": statistics.mean(outcomes[name].shares),
        "kl": bootstrap(np.array(outcomes[name].kl)),
        "questions": len(em),
    }
    if name not in (READ, BARE, RANDOM, OWN, NAIVE):
        row |= {
            f"recovery_{key}": recovery(scores[name][:, i], scores[NAIVE][:, i], scores[READ][:, i])
            for i, key in enumerate(("em", "f1"))
        }
    return row


def recovery(ours: NDArray[Any], naive: NDArray[Any], read: NDArray[Any]) -> dict[str, float | None]:
    """How much of the way from concatenation to reading, with a 95 % interval; None where there is no way to go."""
    draws = np.random.default_rng(0).integers(0, len(ours), (DRAWS, len(ours)))
    gained, possible = (ours - naive)[draws].mean(1), (read - naive)[draws].mean(1)
    if (read - naive).mean() <= 0:
        return {"mean": None, "low": None, "high": None}
    ratios = gained[possible > 0] / possible[possible > 0]
    low, high = np.quantile(ratios, [0.025, 0.975])
    return {"mean": float((ours - naive).mean() / (read - naive).mean()), "low": float(low), "high": float(high)}


def add_times(rows: dict[str, dict[str, Any]], times: Mapping[str, Sequence[float]]) -> None:
    """Put the time to the first token into the rows: of reading over the arm's, median of the turns."""
    for name, seconds in times.items():
        rows[name]["seconds_to_first_token"] = statistics.median(seconds)
        pairs = zip(times[READ], seconds, strict=True)
        rows[name]["read_over_this"] = statistics.median(read / own for read, own in pairs)


def table(rows: Mapping[str, Mapping[str, Any]], title: str) -> Table:
    """One row an arm.

    `same`: answers that are those of reading; `KL`: of the first token; `again`: the share recomputed; `TTFT`: that of
    reading over the arm's.
    """
    shown = Table(title=title)
    for column in ("arm", "EM", "F1 [95 %]", "F1 - read", "same", "KL", "again", "recovery EM", "recovery F1", "TTFT"):
        shown.add_column(column, justify="left" if column == "arm" else "right")
    for name, row in rows.items():
        span = row["f1"]
        less = row["f1_minus_read"]
        shown.add_row(
            name,
            f"{100 * row['em'].mean:.1f}",
            f"{100 * span.mean:.1f} [{100 * span.low:.1f}, {100 * span.high:.1f}]",
            "" if name == READ else f"{100 * less.mean:+.1f} [{100 * less.low:+.1f}, {100 * less.high:+.1f}]",
            f"{100 * row['same_answer_as_read']:.0f} %",
            f"{row['kl'].mean:.3f}",
            f"{100 * row['share_recomputed']:.1f} %",
            *(_percent(row.get(f"recovery_{key}")) for key in ("em", "f1")),
            f"{row['read_over_this']:.2f} x" if "read_over_this" in row else "",
        )
    return shown


def _percent(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return ""
    if found["mean"] is None or found["low"] is None or found["high"] is None:
        return "no gap"
    return f"{100 * found['mean']:.0f} [{100 * found['low']:.0f}, {100 * found['high']:.0f}] %"


def save_plot(report: Mapping[str, Any], target: Path) -> None:
    """F1 of every arm over the number of memories, one needed."""
    from matplotlib.figure import Figure

    counts = report["config"]["memories"]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    panel = figure.subplots()
    arms = dict.fromkeys(key.rsplit(", ", 2)[0] for key in report["arms"])
    for name in arms:
        rows = [report["arms"].get(f"{name}, {count} memories, {SETTINGS[0]}") for count in counts]
        if name in (BARE, RANDOM, OWN) or not all(rows):
            continue
        means = [100 * row["f1"].mean for row in rows if row]
        strong = name in (READ, NAIVE)
        panel.plot(counts, means, "o-" if strong else "o--", linewidth=2.4 if strong else 1.3, label=name)
    panel.set_xscale("log", base=2)
    panel.set_xticks(counts, [str(count) for count in counts])
    panel.set_xlabel("memories in the prompt")
    panel.set_title(f"F1 on {report['config']['questions']} questions: {report['config']['model']}", loc="left")
    panel.grid(color="#e6eaee", linewidth=0.8)
    if panel.lines:
        panel.legend(frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)


if __name__ == "__main__":
    main()
