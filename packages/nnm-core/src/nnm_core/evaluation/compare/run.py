"""The whole comparison: remember the documents, ask every question in every arm, measure what it cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from nnm_core.errors import ContextOverflowError, InvalidInputError
from nnm_core.evaluation.benchmark import environment, inject_always
from nnm_core.evaluation.compare.arms import LABELS, ArmSettings, Ask, keeper, make_arms
from nnm_core.evaluation.compare.items import Item
from nnm_core.evaluation.compare.questions import Question
from nnm_core.evaluation.compare.summary import summarise
from nnm_core.evaluation.rag import TextRetriever, default_retriever
from nnm_core.records import Answer, Memory

if TYPE_CHECKING:
    from nnm_core.engine import NNM

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

PROBED = ("rag", "nnm_again", "composed")


@dataclass(frozen=True, slots=True)
class CompareSettings:
    """What is compared.

    Attributes:
        answers: how the arms answer.
        arms: which of `arms.LABELS`.
        lengths: passages of the prompts whose time to first token is measured; empty measures none.
        probes: questions asked at each length.
    """

    answers: ArmSettings = field(default_factory=ArmSettings)
    arms: tuple[str, ...] = tuple(LABELS)
    lengths: tuple[int, ...] = (1, 2, 4, 8)
    probes: int = 3


@dataclass(frozen=True)
class Comparison:
    """What came out.

    Attributes:
        arms: name -> figures (`summary.summarise`).
        config: with what it was made.
        items: every question in every arm.
        latency: arm -> rows of ``passages``, ``tokens`` (of the prompt), ``seconds`` (median to the first token).
        left_out: questions that no arm counts, and why.
    """

    arms: Mapping[str, Mapping[str, Any]]
    config: Mapping[str, Any]
    items: Sequence[Item]
    latency: Mapping[str, Sequence[Mapping[str, float]]]
    left_out: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: ``arms``, ``config``, ``latency``, ``left_out``, ``items``."""
        return {
            "arms": self.arms,
            "config": self.config,
            "latency": self.latency,
            "left_out": self.left_out,
            "items": [item.to_dict() for item in self.items],
        }


def compare(
    engine: NNM,
    memories: Sequence[Memory],
    questions: Sequence[Question],
    *,
    retriever: TextRetriever | None = None,
    settings: CompareSettings | None = None,
    ingest_seconds: float = 0.0,
    tell: Tell | None = None,
) -> Comparison:
    """Ask all questions in all arms, side by side in one process.

    Args:
        engine: holds `memories`; its store should hold nothing else.
        memories: what can be found.
        questions: unique ones.
        retriever: of classic RAG: `EmbeddingRetriever` of any embedder; by default MiniLM, or BM25 without it.
        settings: arms, passages a question, lengths.
        ingest_seconds: what `engine.add` took, for the break-even.
        tell: told of the progress.

    Raises:
        InvalidInputError: no questions, no memories, or no question that fits the model's context.
    """
    if not memories or not questions:
        raise InvalidInputError("There is nothing to compare.", hint="Give at least one document and one question.")
    with ExitStack() as stack:
        stack.callback(setattr, engine, "planner", engine.planner)
        inject_always(engine)
        found = retriever
        if found is None:
            found = default_retriever()
            stack.callback(found.close)
        told = tell or (lambda *_: None)
        return _compare(engine, memories, questions, found, settings or CompareSettings(), ingest_seconds, told)


def _compare(
    engine: NNM,
    memories: Sequence[Memory],
    questions: Sequence[Question],
    found: TextRetriever,
    chosen: CompareSettings,
    ingest_seconds: float,
    told: Tell,
) -> Comparison:
    started = time.perf_counter()
    found.index([memory.text for memory in memories])
    index_seconds = time.perf_counter() - started
    arms = make_arms(engine, memories, found, chosen.answers, chosen.arms)
    _warm_up(engine, memories, questions, found)
    left_out: dict[str, str] = {}
    items = []
    for done, row in enumerate(ask_all(arms, questions, left_out), start=1):
        items += row
        told("Asking", done, len(questions))
    if not items:
        raise InvalidInputError(
            f"No question fits: {next(iter(left_out.values()))}", hint="Use fewer passages (-k) or shorter ones."
        )
    fitting = [question for question in questions if question.id not in left_out]
    latency = _latency(engine, memories, fitting, found, chosen, told)
    stored = bytes_stored(engine, memories, found)
    times = {"rag": index_seconds, "nnm": ingest_seconds}
    config = {
        **environment(engine.model),
        **_described(chosen.answers, questions, items, left_out),
        "retriever": found.name,
        "passages": len(memories),
        "ingest_seconds": ingest_seconds,
        "index_seconds": index_seconds,
        "bytes": stored,
    }
    figures = {name: summarise(items, name, stored=stored, ingest=times) for name in arms}
    return Comparison(figures, config, items, latency, left_out)


def _described(
    answers: ArmSettings, questions: Sequence[Question], items: Sequence[Item], left_out: Mapping[str, str]
) -> dict[str, Any]:
    return {
        **asdict(answers),
        "composer": next((item.answer.receipt.composer for item in items if item.arm == "composed"), ""),
        "questions": len(questions) - len(left_out),
        "questions_left_out": len(left_out),
        "questions_generated": all(question.generated for question in questions),
        "questions_with_gold": sum(bool(question.answers) for question in questions),
    }


def ask_all(
    arms: Mapping[str, Ask], questions: Sequence[Question], left_out: dict[str, str] | None = None
) -> Iterator[list[Item]]:
    """Ask each question in all arms, one after the other, so that a busy machine slows all of them alike.

    A question whose prompt does not fit in one arm counts in none; it is named in `left_out`, or raised without it.

    Yields:
        the items of a question.
    """
    for question in questions:
        try:
            yield [Item(name, question, ask(question)) for name, ask in arms.items()]
        except ContextOverflowError as error:
            if left_out is None:
                raise
            left_out[question.id] = str(error.args[0])
            yield []


def bytes_stored(engine: NNM, memories: Sequence[Memory], retriever: TextRetriever) -> dict[str, int]:
    """What the two sides keep: the text both; vectors each its own; states NNM alone."""
    vectors = engine.vectors([memory.id for memory in memories])
    return {
        "text": sum(len(memory.text.encode()) for memory in memories),
        "rag_vectors": int(getattr(retriever, "bytes_vectors", 0)),
        "nnm_vectors": sum(vector.nbytes for vector in vectors if vector is not None),
        "nnm_states": int(engine.stats()["bytes_states"]),
    }


def _warm_up(engine: NNM, memories: Sequence[Memory], questions: Sequence[Question], retriever: TextRetriever) -> None:
    """Pay beforehand for what only the first call of a process pays for, with a memory that answers no question."""
    asked = {question.passage for question in questions}
    spare = next((memory for memory in memories if memory.id not in asked), memories[0])
    retriever.search("warm up", 1)
    engine.search("warm up", 1)
    for mode in ("bare", "read", "inject"):
        try:
            engine.answer("What is this about?", memories=[spare], mode=mode, max_tokens=2)
        except ContextOverflowError:
            continue
    keeper(engine, memories)()


def _latency(
    engine: NNM,
    memories: Sequence[Memory],
    questions: Sequence[Question],
    retriever: TextRetriever,
    settings: CompareSettings,
    tell: Tell,
) -> dict[str, list[dict[str, float]]]:
    """Median time to the first token over the length of the prompt; lengths that do not fit are left out."""
    names = [name for name in PROBED if name in settings.arms] if settings.lengths else []
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    lengths = [k for k in settings.lengths if k <= len(memories)]
    asked = questions[: settings.probes]
    for done, k in enumerate(lengths, start=1):
        one = ArmSettings(k=k, max_tokens=1, composer=settings.answers.composer, seed=settings.answers.seed)
        arms = make_arms(engine, memories, retriever, one, names)
        try:
            items = [item for row in ask_all(arms, asked) for item in row]
        except ContextOverflowError:
            break
        for name in names:
            answers = [item.answer for item in items if item.arm == name]
            rows[name].append(
                {
                    "passages": k,
                    "tokens": statistics.fmean(map(_prompt_tokens, answers)),
                    "seconds": statistics.median(answer.receipt.seconds_to_first_token for answer in answers),
                }
            )
        tell("Timing", done, len(lengths))
    return rows


def _prompt_tokens(answer: Answer) -> int:
    return answer.receipt.tokens_read + answer.receipt.tokens_injected
