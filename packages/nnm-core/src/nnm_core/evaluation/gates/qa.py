"""The question-answering gate: does injecting change answers, and does recall find what answers?

With oracle passages every arm has the same passage: ``nnm`` must then write what ``rag same order`` writes, token for
token, and the difference to ``rag`` is only that of tokenising the prompt in one piece. With retrieved passages each
side has what its own retriever found. ``cold`` has nothing, ``random`` has passages without an answer.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import contains_answer, exact_match, f1
from nnm_core.evaluation.datasets.questions import Question, QuestionSet
from nnm_core.evaluation.gates.asks import (
    COLD,
    COMPOSED,
    NNM,
    RAG,
    RANDOM,
    SAME,
    Layout,
    cold,
    composed,
    injected,
    same_order,
)
from nnm_core.evaluation.gates.core import Arm, Ask, Case, Tell, ask_all, chosen, silent
from nnm_core.evaluation.gates.corpus import remember, without_answer
from nnm_core.evaluation.gates.result import (
    GateResult,
    at_floor,
    compare,
    injected_something,
    kept,
    same_tokens,
    summarise,
)
from nnm_core.evaluation.rag import TextRetriever
from nnm_core.records import Answer, Memory

if TYPE_CHECKING:
    from nnm_core.engine import NNM as Engine

Passages = Literal["oracle", "retrieved", "both"]
ORACLE, RETRIEVED = "oracle", "retrieved"


@dataclass(frozen=True, slots=True)
class QASettings:
    """How questions are asked.

    Attributes:
        passages: the passage that answers, those that are found, or both ways.
        k: passages found for each question.
        limit: ask a sample of so many unique questions; None asks all.
        max_tokens: the longest answer.
        seed: of the sample and the random passages.
        batch: cases whose answers are decoded side by side.
        arms: only these, by name; None for all.
        composer: of the composed arm; None takes the default one.
        template: of classic RAG's user turn; None takes NNM's layout.
        searchable: make vectors even if nothing is searched for (with retrieved passages they are made anyway).
    """

    passages: Passages = "both"
    k: int = 3
    limit: int | None = None
    max_tokens: int = 24
    seed: int = 0
    batch: int = 1
    arms: tuple[str, ...] | None = None
    composer: str | None = None
    template: str | None = None
    searchable: bool = False


def run(
    engine: Engine,
    data: QuestionSet,
    retriever: TextRetriever,
    settings: QASettings,
    *,
    tell: Tell = silent,
) -> GateResult:
    """Ask the questions of a set in every arm.

    Args:
        engine: empty, or with these passages in it; opened with ``state_cache=0`` an arm cannot live on another's work.
        data: questions and passages.
        retriever: of classic RAG.
        settings: how.
        tell: told of the progress.

    Raises:
        InvalidInputError: there are no passages, or no questions with passages for the oracle.
        ContextOverflowError: a prompt does not fit the model.
    """
    oracle, retrieved = settings.passages != RETRIEVED, settings.passages != ORACLE
    if not data.passages:
        raise InvalidInputError(f"{data.name} has no passages.", hint="Name a collection to search with --corpus.")
    asked = data.only(question.id for question in data.questions if question.passages) if oracle else data
    asked = asked.sample(settings.limit, seed=settings.seed)
    cases = [Case(q.id, q.text, q.answers, {"category": q.category}, q) for q in asked.questions]
    wanted = data.passages if retrieved else _oracle_passages(data, asked.questions)
    memories = remember(engine, wanted, searchable=retrieved or settings.searchable, tell=tell)
    if retrieved:
        tell("Indexing for classic RAG", 0, 1)
        retriever.index([memory.text for memory in memories.values()])
    arms = chosen(_Arms(engine, memories, retriever, settings).all(), settings.arms)
    items = ask_all(engine, arms, cases, score, max_tokens=settings.max_tokens, batch=settings.batch, tell=tell)
    sides = [side for side, there in ((ORACLE, oracle), (RETRIEVED, retrieved)) if there]
    pairs = [pair for side in sides for pair in _pairs(side)]
    checks = [same_tokens(items, f"{side} {NNM}", f"{side} {SAME}") for side in sides]
    checks += [injected_something(items, f"{side} {NNM}") for side in sides]
    checks.append(at_floor(items, RANDOM, COLD, "em"))
    return GateResult(
        "qa",
        "em",
        summarise(items),
        compare(items, pairs, "em"),
        kept(checks),
        items,
        config={
            "data": data.name,
            "questions": len(cases),
            "questions_in_data": len(data.questions),
            "left_out": data.left_out,
            "passages_held": len(memories),
            "retriever": retriever.name if retrieved else None,
            **asdict(settings),
        },
    )


def score(case: Case, ask: Ask, answer: Answer) -> Mapping[str, float]:
    """Exact match and F1 as SQuAD counts them; whether an answer is contained; whether one was given to read at all."""
    return {
        "em": exact_match(answer.text, case.golds),
        "f1": f1(answer.text, case.golds),
        "contains": float(contains_answer(answer.text, case.golds)),
        "gold_given": float(any(contains_answer(text, case.golds) for text in ask.given)),
    }


def _pairs(side: str) -> list[tuple[str, str]]:
    nnm = f"{side} {NNM}"
    return [
        (nnm, f"{side} {SAME}"),
        (nnm, f"{side} {RAG}"),
        (f"{side} {COMPOSED}", f"{side} {SAME}"),
        (f"{side} {COMPOSED}", f"{side} {RAG}"),
        (nnm, COLD),
        (RANDOM, COLD),
    ]


def _oracle_passages(data: QuestionSet, questions: Sequence[Question]) -> dict[str, str]:
    """The passages of these questions, and some more if there are few, so that random ones can be drawn."""
    names = {question.passages[0]: None for question in questions}
    for name in data.passages:
        if len(names) >= 8:
            break
        names[name] = None
    return {name: data.passages[name] for name in names}


class _Arms:
    """The ways to ask; what one side's retriever found is found once for all arms of that side."""

    def __init__(
        self, engine: Engine, memories: Mapping[str, Memory], retriever: TextRetriever, settings: QASettings
    ) -> None:
        self.engine, self.memories, self.retriever, self.settings = engine, memories, retriever, settings
        self.all_memories = list(memories.values())
        self.layout = Layout(engine.system, settings.template)
        self._found: dict[str, tuple[list[Memory], float]] = {}

    def all(self) -> dict[str, Arm]:
        """By name; ``composed`` comes only where there is more than one memory: one alone is exact."""
        both: dict[str, Arm] = {COLD: lambda case: cold(case.question)}
        if self.settings.passages != RETRIEVED:
            both |= {
                f"{ORACLE} {RAG}": self._oracle(lambda q, m: self.layout.classic(q, [m[0].text], [m[0].id])),
                f"{ORACLE} {SAME}": self._oracle(same_order),
                f"{ORACLE} {NNM}": self._oracle(injected),
            }
        if self.settings.passages != ORACLE:
            both |= {
                f"{RETRIEVED} {RAG}": self._classic,
                f"{RETRIEVED} {SAME}": lambda case: same_order(case.question, *self._recalled(case)),
                f"{RETRIEVED} {NNM}": lambda case: injected(case.question, *self._recalled(case)),
            }
            if self.settings.k > 1:
                both[f"{RETRIEVED} {COMPOSED}"] = self._composed
        both[RANDOM] = self._random
        return both

    def _oracle(self, ask: Callable[[str, list[Memory]], Ask]) -> Arm:
        def arm(case: Case) -> Ask:
            question: Question = case.data
            return ask(case.question, [self.memories[question.passages[0]]])

        return arm

    def _recalled(self, case: Case) -> tuple[list[Memory], float]:
        if case.id not in self._found:
            started = time.perf_counter()
            hits = self.engine.search(case.question, self.settings.k)
            self._found[case.id] = [hit.memory for hit in hits], time.perf_counter() - started
        return self._found[case.id]

    def _composed(self, case: Case) -> Ask:
        memories, seconds = self._recalled(case)
        return composed(case.question, memories, self.settings.composer, seconds)

    def _classic(self, case: Case) -> Ask:
        started = time.perf_counter()
        places = self.retriever.search(case.question, self.settings.k)
        seconds = time.perf_counter() - started
        found = [self.all_memories[place] for place, _ in places]
        return self.layout.classic(case.question, [m.text for m in found], [m.id for m in found], seconds)

    def _random(self, case: Case) -> Ask:
        chance = random.Random(f"{self.settings.seed}/{case.id}")  # noqa: S311 - a reproducible choice, no secret
        count = self.settings.k if self.settings.passages == RETRIEVED else 1
        return injected(case.question, without_answer(self.all_memories, case.golds, count, chance))
