"""What does a codec cost: quality, bytes, time? One table.

    python benchmarks/codecs.py --data path/to/squad --questions 300 --json codecs.json --plot codecs.png
    python benchmarks/codecs.py --data path/to/squad --model path/to/model --device cuda --dtype bfloat16

`--data` is a SQuAD file, or a folder with dev-v1.1.json (either may be compressed). Every question is asked about its
own passage; arms differ only in where the passage's keys and values come from:

read         the prompt is read, as in ordinary RAG: what every other arm is compared with
native, ...  the passage's state, encoded and decoded again by that codec, is injected; the question is read
bare         the question alone: what the model knows anyway
random       the native state of another passage: what any passage would do

EM and F1 as in SQuAD; differences to `read` with 95 % intervals (paired bootstrap over questions); `same` is the share
of answers that are token for token those of reading; KL is that of the first answer token. Encoding and loading are
timed on one memory of `--tokens` tokens, all codecs in turns: from RAM, and from mapped files in the page cache,
until the state stands in the model's cache (``--repeats 0``: not at all, where other programs run beside this one).
`--codecs native int8:keep=0.5` measures states with fewer tokens. With ``--seconds`` no further batch of questions is
asked after so long; batches come in random order, so that what was asked is a fair sample.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import exact_match, f1
from nnm_core.evaluation.behind import Answers, Prompt, answers_behind
from nnm_core.evaluation.benchmark import environment, parser, side_by_side, spread, texts_of_length, timed
from nnm_core.evaluation.datasets import Question, load_questions
from nnm_core.evaluation.report import write_json
from nnm_core.evaluation.statistics import bootstrap, paired_bootstrap
from nnm_core.injection.prefill import load
from nnm_core.model.batching import padded_batches
from nnm_core.model.load import LoadedModel, ModelSettings, load_model
from nnm_core.model.prompt import DEFAULT_SYSTEM, PromptFormat, question_prompt
from nnm_core.records import Memory
from nnm_core.state_store import StateStore
from nnm_core.states.cache import PlacedCache
from nnm_core.states.capture import capture, place
from nnm_core.states.codecs import Codec, Reader, make_codec, manifest_of
from nnm_core.states.state import PlacedState, State
from nnm_core.storage.blobs import open_blobs

MAX_TOKENS = 16
CODECS = ("native", "int8", "int4", "residual-int8")
BATCH = {"cuda": 256, "cpu": 8}


@dataclass(frozen=True)
class Asked:
    """A question with the tokens of its prompt: before the passage, the passage, behind it; and alone."""

    question: Question
    passage: str
    memory: tuple[int, ...]
    suffix: tuple[int, ...]
    bare: tuple[int, ...]


@dataclass
class Arm:
    """What came out, question by question."""

    em: list[float] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    same: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)


class Experiment:
    """One model, one data set, several codecs."""

    def __init__(self, model: LoadedModel, codecs: Sequence[Codec]) -> None:
        self.model, self.codecs = model, list(codecs)
        self.format = PromptFormat(model.tokenizer)
        self.left_ids = self.format.left_context(DEFAULT_SYSTEM)
        self.left = place(model, capture(model, [self.left_ids])[0], 0)
        self.reader = Reader(model, lambda: self.left)
        self.blobs = open_blobs(None)
        self.spare: dict[str, PlacedState] = {}
        names = ["read", *(codec.name for codec in self.codecs), "bare", "random"]
        self.arms = {name: Arm() for name in names}
        self.errors = {codec.name: [0.0, 0.0] for codec in self.codecs}
        layers = {codec.residual_layer for codec in self.codecs} - {None}
        self.residual_layer = next(iter(layers), None)

    def prepare(self, rows: Sequence[Asked]) -> None:
        """Keep two passages at hand, so that every batch has another one to inject at random."""
        unique = {row.passage: row.memory for row in rows}
        if len(unique) < 2:
            raise InvalidInputError("All questions are about one passage; there is no other to inject.")
        states = self.states(dict(list(unique.items())[:2]))
        self.spare = {name: place(self.model, state, self.left.length) for name, state in states.items()}

    def ask(self, question: Question, text: str) -> Asked:
        """Cut the prompt as the engine does."""
        memory = Memory(id=question.passages[0], text=text)
        segments = self.format.segments(question_prompt(question.text, [memory], DEFAULT_SYSTEM))
        at = next(index for index, segment in enumerate(segments) if segment.memory is not None)
        alone = self.format.segments(question_prompt(question.text, [], DEFAULT_SYSTEM))
        suffix = tuple(token for segment in segments[at + 1 :] for token in segment.ids)
        bare = tuple(token for segment in alone for token in segment.ids)
        return Asked(question, memory.id, tuple(segments[at].ids), suffix, bare)

    def run(self, rows: Sequence[Asked]) -> None:
        """One batch through all arms."""
        unique = {row.passage: row.memory for row in rows}
        states = self.states(unique)
        read = self.answer([Prompt((), (*self.left_ids, *row.memory, *row.suffix)) for row in rows])
        self.count("read", rows, read, read)
        placed: dict[str, PlacedState] = {}
        for codec in self.codecs:
            now = {
                name: place(self.model, self.coded(codec, state), self.left.length) for name, state in states.items()
            }
            placed = placed or now
            prompts = [Prompt((self.left, now[row.passage]), row.suffix) for row in rows]
            self.count(codec.name, rows, self.answer(prompts), read)
        self.count("bare", rows, self.answer([Prompt((), row.bare) for row in rows]), read)
        others = self.spare | placed
        names = list(others)
        other = dict(zip(names, [*names[1:], names[0]], strict=True))
        prompts = [Prompt((self.left, others[other[row.passage]]), row.suffix) for row in rows]
        self.count("random", rows, self.answer(prompts), read)

    def states(self, unique: Mapping[str, tuple[int, ...]]) -> dict[str, State]:
        """Read each passage once."""
        names = list(unique)
        found: dict[str, State] = {}
        for batch in padded_batches([len(unique[name]) for name in names], 65536 if self.on_gpu else 4096):
            rows = [unique[names[index]] for index in batch]
            made = capture(self.model, rows, self.left, residual_layer=self.residual_layer)
            found |= {names[index]: state for index, state in zip(batch, made, strict=True)}
        return found

    def coded(self, codec: Codec, state: State) -> State:
        """There and back, with the error noted."""
        store = StateStore(self.blobs, codec, self.reader)
        decoded = codec.decode(store.encoded(state), manifest_of(state, codec, ""), self.reader)
        assert decoded is not None  # all states stand behind the reader's left context
        state = state if decoded.kept is None else state.only(decoded.kept)
        worst = self.errors[codec.name]
        for side, (a, b) in enumerate(
            zip(zip(*decoded.layers, strict=True), zip(*state.layers, strict=True), strict=True)
        ):
            worst[side] = max(worst[side], _largest_error(a, b))
        return decoded

    def answer(self, prompts: Sequence[Prompt]) -> Answers:
        """Greedy answers."""
        return answers_behind(self.model, prompts, max_tokens=MAX_TOKENS)

    def count(self, name: str, rows: Sequence[Asked], got: Answers, read: Answers) -> None:
        """Score one arm of a batch."""
        arm = self.arms[name]
        target, ours = read.logits.log_softmax(-1), got.logits.log_softmax(-1)
        arm.kl += torch.nn.functional.kl_div(ours, target, log_target=True, reduction="none").sum(-1).tolist()
        for row, ids, theirs in zip(rows, got.token_ids, read.token_ids, strict=True):
            text = str(self.model.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
            arm.em.append(100 * exact_match(text, row.question.answers))
            arm.f1.append(100 * f1(text, row.question.answers))
            arm.same.append(100.0 * (ids == theirs))

    @property
    def on_gpu(self) -> bool:
        """Whether the model is on a GPU."""
        return self.model.device.type == "cuda"


def _largest_error(ours: Sequence[Tensor], own: Sequence[Tensor]) -> float:
    """RMS error over RMS value of the worst layer; the GPU is waited for once."""
    errors = [(a.float() - b.float()).norm() / b.float().norm() for a, b in zip(ours, own, strict=True)]
    return float(torch.stack(errors).max())


def main() -> None:
    """Run, print, save."""
    options = _options()
    model = load_model(options.model, ModelSettings(device=options.device, dtype=options.dtype))
    codecs = [make_codec(name) for name in options.codecs]
    for codec in codecs:
        codec.check(model)
    experiment = Experiment(model, codecs)
    started = time.perf_counter()
    if options.data:
        asked = _questions(experiment, options.data, options.questions, options.seed)
        size = options.batch or BATCH.get(model.device.type, 8)
        for rows in track(batches(asked, size, options.seed), "Asking", transient=True):
            experiment.run(rows)
            if time.perf_counter() - started > options.seconds:
                break
    config = (
        environment(model)
        | {"data": options.data and Path(options.data).name, "questions": len(experiment.arms["read"].em)}
        | {"tokens": options.tokens, "repeats": options.repeats, "max_tokens": MAX_TOKENS, "seed": options.seed}
        | {"quality_seconds": round(time.perf_counter() - started, 1)}
    )
    report = {"arms": arm_reports(experiment, {}, options.tokens), "config": config}
    if options.repeats:
        if str(options.json) != "-":  # the answers are kept if the times are not finished
            write_json(options.json, report)
        times = measure(experiment, options.tokens, options.repeats)
        report["arms"] = arm_reports(experiment, times, options.tokens)
    write_json(options.json, report)
    Console(file=sys.stderr if str(options.json) == "-" else sys.stdout, width=170).print(table(report))
    if options.plot:
        save_plot(report, options.plot)


def _options() -> Any:
    options = parser(str(__doc__).splitlines()[0], repeats=9)
    options.add_argument("--data", default=None, help="SQuAD file or folder; without it only bytes and times")
    options.add_argument("--questions", type=int, default=None, help="how many; all if left out")
    options.add_argument("--codecs", nargs="+", default=list(CODECS), help="which, the first one lossless")
    options.add_argument("--dtype", default=None, help="float32, bfloat16, float16; chosen for you if left out")
    options.add_argument("--batch", type=int, default=None, help="questions at once")
    options.add_argument("--tokens", type=int, default=1024, help="tokens of the memory that is timed")
    options.add_argument("--seconds", type=float, default=float("inf"), help="ask no further batch after so long")
    options.add_argument("--seed", type=int, default=0, help="of the choice of questions")
    return options.parse_args()


def batches(asked: Sequence[Asked], size: int, seed: int) -> list[Sequence[Asked]]:
    """Neighbours together, since their passages are of like length; the batches in random order."""
    found = [asked[start : start + size] for start in range(0, len(asked), size)]
    random.Random(seed).shuffle(found)  # noqa: S311 - a repeatable order, no secret
    return found


def _questions(experiment: Experiment, data: str, count: int | None, seed: int) -> list[Asked]:
    """Whole passages in random order until there are `count` questions, then sorted so that little is padded."""
    source = Path(data)
    loaded = load_questions(source / "dev-v1.1.json" if source.is_dir() else source)
    about: dict[str, list[Question]] = {}
    for question in loaded.questions:
        about.setdefault(question.passages[0], []).append(question)
    names = sorted(about)
    random.Random(seed).shuffle(names)  # noqa: S311 - a repeatable choice, no secret
    chosen = [question for name in names for question in about[name]][:count]
    # Two passages, asked about or not, so that there is always another one.
    experiment.prepare([experiment.ask(about[name][0], loaded.passages[name]) for name in names[:2]])
    asked = [experiment.ask(question, loaded.passages[question.passages[0]]) for question in chosen]
    return sorted(asked, key=lambda row: (len(row.memory), row.passage))


def measure(experiment: Experiment, tokens: int, repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """Seconds to encode and to load one memory, codec by codec; and to read it, for comparison."""
    model = experiment.model
    ids = experiment.format.memory_ids(texts_of_length(model, tokens, 1)[0])[:tokens]
    state = capture(model, [ids], experiment.left, residual_layer=experiment.residual_layer)[0]
    arms: dict[str, Callable[[int], float]] = {}
    with tempfile.TemporaryDirectory(prefix="nnm-codecs-") as folder:
        for codec in experiment.codecs:
            arms |= _timings(experiment, codec, state, Path(folder))
        arms["read read"] = lambda _: _timed(model, lambda: capture(model, [ids], experiment.left))
        side_by_side(arms, 2)
        found = side_by_side(arms, repeats)
    times: dict[str, dict[str, dict[str, float]]] = {}
    for name, values in found.items():
        arm, _, what = name.rpartition(" ")
        times.setdefault(arm, {})[what] = spread(values)
    return times


def _timings(experiment: Experiment, codec: Codec, state: State, folder: Path) -> dict[str, Callable[[int], float]]:
    model = experiment.model
    writer = StateStore(experiment.blobs, codec, experiment.reader)
    arms: dict[str, Callable[[int], float]] = {
        f"{codec.name} encode": lambda _: _timed(model, lambda: writer.encoded(state))
    }
    for place_name in ("ram", "disk"):
        blobs = open_blobs(None if place_name == "ram" else folder / codec.name.replace(":", "-"))
        store = StateStore(blobs, codec, experiment.reader)
        store.put("memory", state)

        arms[f"{codec.name} {place_name}"] = partial(_timed_fetch, experiment, store)
    return arms


def _timed_fetch(experiment: Experiment, store: StateStore, repeat: int) -> float:
    """Seconds from the stored state to the model's cache."""
    model = experiment.model

    def fetch() -> None:
        found = store.get("memory", lambda: True)
        assert found is not None  # it has just been stored
        left = experiment.left
        cache = PlacedCache(model.layers, capacity=left.length + len(found.token_ids))
        load(cache, left)
        load(cache, place(model, found, left.length))
        cache.arrive()

    return _timed(model, fetch)


@torch.inference_mode()
def _timed(model: LoadedModel, work: Callable[[], Any]) -> float:
    def waited() -> None:
        work()
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    return timed(waited)


def arm_reports(
    experiment: Experiment, times: Mapping[str, Mapping[str, Mapping[str, float]]], tokens: int
) -> dict[str, dict[str, Any]]:
    """`arm_report` of every arm."""
    return {name: arm_report(experiment, name, times.get(name), tokens) for name in experiment.arms}


def arm_report(
    experiment: Experiment, name: str, times: Mapping[str, Mapping[str, float]] | None, tokens: int
) -> dict[str, Any]:
    """Everything about one arm."""
    arm, read = experiment.arms[name], experiment.arms["read"]
    report: dict[str, Any] = {"seconds": dict(times or {})}
    codec = next((codec for codec in experiment.codecs if codec.name == name), None)
    if codec is not None:
        report["bytes_per_token"] = codec.bytes_per_token(experiment.model, tokens)
        report["lossless"] = codec.lossless
    if codec is not None and arm.em:
        report["error"] = dict(zip(("key", "value"), experiment.errors[name], strict=True))
    if arm.em:
        report |= {"em": bootstrap(arm.em), "f1": bootstrap(arm.f1)}
        report |= {"same": sum(arm.same) / len(arm.same), "kl": sum(arm.kl) / len(arm.kl)}
        report["f1_minus_read"] = paired_bootstrap(arm.f1, read.f1)
        report["em_minus_read"] = paired_bootstrap(arm.em, read.em)
    return report


def table(report: Mapping[str, Any]) -> Table:
    """One row an arm."""
    config = report["config"]
    title = f"{config['questions']} questions, {config['model']}, {config['device']}, {config['dtype']}"
    shown = Table(title=f"{title}; times for {config['tokens']} tokens")
    heads = ("arm", "EM", "F1", "F1 - read [95 %]", "same %", "KL", "bytes/token", "RMS error k/v")
    for name in (*heads, "encode ms", "RAM ms", "disk ms"):
        shown.add_column(name, justify="left" if name == "arm" else "right")
    for name, row in report["arms"].items():
        shown.add_row(name, *_quality(row), *_size(row), *_times(row))
    return shown


def _quality(row: Mapping[str, Any]) -> Iterator[str]:
    if "f1" not in row:
        yield from ("",) * 5
        return
    gap = row["f1_minus_read"]
    yield from (f"{row['em'].mean:.1f}", f"{row['f1'].mean:.1f}")
    yield f"{gap.mean:+.2f} [{gap.low:+.2f}, {gap.high:+.2f}]"
    yield from (f"{row['same']:.1f}", f"{row['kl']:.5f}")


def _size(row: Mapping[str, Any]) -> Iterator[str]:
    if "bytes_per_token" not in row:
        yield from ("", "")
        return
    yield f"{row['bytes_per_token']:,.0f}"
    yield " / ".join(f"{value:.4f}" for value in row.get("error", {}).values())


def _times(row: Mapping[str, Any]) -> Iterator[str]:
    seconds = row["seconds"]
    if "read" in seconds:
        yield from ("", f"read: {1000 * seconds['read']['median']:.1f}", "")
        return
    for what in ("encode", "ram", "disk"):
        yield f"{1000 * seconds[what]['median']:.2f}" if what in seconds else ""


def save_plot(report: Mapping[str, Any], target: Path) -> None:
    """Bytes against F1, a point a codec, with the interval of the difference to reading."""
    from matplotlib.figure import Figure

    rows = {name: row for name, row in report["arms"].items() if "bytes_per_token" in row and "f1" in row}
    figure = Figure(figsize=(7, 4), layout="constrained")
    panel = figure.subplots()
    for name, row in rows.items():
        gap = row["f1_minus_read"]
        error = [[gap.mean - gap.low], [gap.high - gap.mean]]
        panel.errorbar(row["bytes_per_token"], gap.mean, yerr=error, fmt="o", capsize=3, color="#e07a3f")
        panel.annotate(name, (row["bytes_per_token"], gap.mean), textcoords="offset points", xytext=(7, 5))
    panel.axhline(0, color="#3d7ea6", linewidth=1)
    panel.set_xscale("log")
    panel.set_xlabel("bytes a token")
    panel.set_ylabel("F1 - reading, points")
    panel.grid(color="#e6eaee", linewidth=0.8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=160)


if __name__ == "__main__":
    main()
