"""The conversation gate: long conversations in LoCoMo's format, their turns as memories, questions by category.

Each turn is one memory; each question is asked within its own conversation. Scores are those of LoCoMo (Maharana et
al. 2024, section 4.1): F1 over stemmed words; for multi-hop questions the mean over the comma-separated parts of the
answer; for open-domain ones the part of the answer before the semicolon; adversarial ones are right if the model
declines.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from nnm_core.evaluation.answers import contains_answer, normalise
from nnm_core.evaluation.datasets.locomo import ADVERSARIAL, DECLINES, Conversation
from nnm_core.evaluation.datasets.questions import Question
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
    compare,
    grouped,
    injected_something,
    kept,
    same_tokens,
    summarise,
)
from nnm_core.evaluation.rag import TextRetriever
from nnm_core.records import Answer, Memory

if TYPE_CHECKING:
    from nnm_core.engine import NNM as Engine

EVIDENCE = "evidence read"
# The words of the paper, and those of models that were told to be short.
_DECLINED = (*DECLINES, "don't know", "do not know", "no information", "unknown", "cannot answer", "not said")


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """How conversations are asked about.

    Attributes:
        k: turns found for each question.
        limit: ask a sample of so many unique questions; None asks all.
        max_tokens: the longest answer.
        seed: of the sample and the random turns.
        batch: cases whose answers are decoded side by side.
        arms: only these, by name; None for all.
        composer: of the composed arm; None takes the default one.
    """

    k: int = 8
    limit: int | None = None
    max_tokens: int = 32
    seed: int = 0
    batch: int = 1
    arms: tuple[str, ...] | None = None
    composer: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """Which conversation a case is about, and its question there."""

    conversation: str
    question: Question


def make_cases(conversations: Sequence[Conversation], settings: ConversationSettings) -> list[Case]:
    """The questions of all conversations, or a sample of them."""
    cases = [
        Case(
            question.id,
            question.text,
            question.answers,
            {"category": question.category, "conversation": conversation.id},
            Place(conversation.id, question),
        )
        for conversation in conversations
        for question in conversation.questions.questions
    ]
    if settings.limit is not None and settings.limit < len(cases):
        picked = set(random.Random(settings.seed).sample(range(len(cases)), settings.limit))  # noqa: S311 - repeatable
        cases = [case for place, case in enumerate(cases) if place in picked]
    return cases


def run(
    engine: Engine,
    conversations: Sequence[Conversation],
    retriever: TextRetriever,
    settings: ConversationSettings,
    *,
    tell: Tell = silent,
) -> GateResult:
    """Ask the questions of conversations in every arm.

    Args:
        engine: empty, or with these turns in it; opened with ``state_cache=0``.
        conversations: with their questions.
        retriever: of classic RAG.
        settings: how.
        tell: told of the progress.

    Raises:
        InvalidInputError: there are no questions.
        ContextOverflowError: a prompt does not fit the model.
    """
    cases = make_cases(conversations, settings)
    asked = {case.data.conversation for case in cases}
    turns = {
        f"{conversation.id}/{name}": text
        for conversation in conversations
        if conversation.id in asked
        for name, text in conversation.questions.passages.items()
    }
    memories = remember(engine, turns, metadata=lambda key: {"conversation": key.rsplit("/", 1)[0]}, tell=tell)
    arms = chosen(_Arms(engine, memories, retriever, settings).all(), settings.arms)
    items = ask_all(engine, arms, cases, score, max_tokens=settings.max_tokens, batch=settings.batch, tell=tell)
    checks = [same_tokens(items, NNM, SAME), injected_something(items, NNM)]
    return GateResult(
        "conversation",
        "right",
        summarise(items),
        compare(items, [(NNM, SAME), (NNM, RAG), (COMPOSED, SAME), (COMPOSED, RAG), (RANDOM, COLD)], "right"),
        kept(checks),
        items,
        grouped(items, ["category"], "f1"),
        {
            "conversations": len(asked),
            "turns": len(turns),
            "questions": len(cases),
            "left_out": {c.id: dict(c.questions.left_out) for c in conversations if c.questions.left_out},
            "retriever": retriever.name,
            **asdict(settings),
        },
        "f1",
    )


def score(case: Case, ask: Ask, answer: Answer) -> Mapping[str, float]:
    """``right``: the gold answer stands in the answer, or it declines where it should; ``f1`` as LoCoMo has it."""
    category = str(case.labels["category"])
    if category == ADVERSARIAL:
        right = float(declines(answer.text))
        return {"right": right, "f1": right, "evidence_given": _evidence(case, ask)}
    return {
        "right": float(contains_answer(answer.text, case.golds)),
        "f1": max(category_f1(answer.text, gold, category) for gold in case.golds),
        "evidence_given": _evidence(case, ask),
    }


def declines(text: str) -> bool:
    """Whether an answer says that there is none."""
    said = text.lower().replace("\u2019", "'")
    return any(words in said for words in _DECLINED)


def category_f1(answer: str, gold: str, category: str) -> float:
    """F1 over stemmed words, by the rule of the category."""
    if category == "multi-hop":
        parts = answer.split(",")
        return statistics.fmean(max(_f1(part, wanted) for part in parts) for wanted in gold.split(","))
    return _f1(answer, gold.split(";")[0] if category == "open-domain" else gold)


def _f1(answer: str, gold: str) -> float:
    said, wanted = _stems(answer), _stems(gold)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


def _stems(text: str) -> list[str]:
    words = [word for word in normalise(text).split() if word != "and"]
    return [str(stem) for stem in _stemmer().stemWords(words)]


@cache
def _stemmer() -> Any:
    import Stemmer

    return Stemmer.Stemmer("porter")


def _evidence(case: Case, ask: Ask) -> float:
    """Share of the turns that answer the question among those that were given."""
    place: Place = case.data
    wanted = {f"{place.conversation}/{name}" for name in place.question.passages}
    return len(wanted & set(ask.names)) / len(wanted) if wanted else 0.0


class _Arms:
    def __init__(
        self, engine: Engine, memories: Mapping[str, Memory], retriever: TextRetriever, settings: ConversationSettings
    ) -> None:
        self.engine, self.memories, self.retriever, self.settings = engine, memories, retriever, settings
        self.layout = Layout(engine.system)
        self._indexed = ""
        self._turns: list[Memory] = []
        self._found: dict[str, tuple[list[Memory], float]] = {}

    def all(self) -> dict[str, Arm]:
        return {
            COLD: lambda case: cold(case.question),
            RAG: self._classic,
            SAME: lambda case: same_order(case.question, *self._recalled(case)),
            NNM: lambda case: injected(case.question, *self._recalled(case)),
            COMPOSED: self._composed,
            EVIDENCE: self._evidence,
            RANDOM: self._random,
        }

    def _of(self, case: Case) -> list[Memory]:
        """The turns of the case's conversation; classic RAG's index is made when the conversation changes."""
        name = case.data.conversation
        if self._indexed != name:
            self._turns = [memory for key, memory in self.memories.items() if key.startswith(f"{name}/")]
            self.retriever.index([memory.text for memory in self._turns])
            self._indexed = name
        return self._turns

    def _recalled(self, case: Case) -> tuple[list[Memory], float]:
        if case.id not in self._found:
            started = time.perf_counter()
            mine = {"conversation": case.data.conversation}
            hits = self.engine.search(case.question, self.settings.k, filter=mine)
            self._found[case.id] = [hit.memory for hit in hits], time.perf_counter() - started
        return self._found[case.id]

    def _composed(self, case: Case) -> Ask:
        memories, seconds = self._recalled(case)
        return composed(case.question, memories, self.settings.composer, seconds)

    def _classic(self, case: Case) -> Ask:
        turns = self._of(case)
        started = time.perf_counter()
        places = self.retriever.search(case.question, self.settings.k)
        seconds = time.perf_counter() - started
        found = [turns[place] for place, _ in places]
        return self.layout.classic(case.question, [m.text for m in found], [m.id for m in found], seconds)

    def _evidence(self, case: Case) -> Ask:
        place: Place = case.data
        named = [self.memories[f"{place.conversation}/{name}"] for name in place.question.passages]
        return same_order(case.question, named) if named else cold(case.question)

    def _random(self, case: Case) -> Ask:
        chance = random.Random(f"{self.settings.seed}/{case.id}")  # noqa: S311 - a reproducible choice, no secret
        drawn = without_answer(self._of(case), case.golds, self.settings.k, chance)
        return composed(case.question, drawn, self.settings.composer)
