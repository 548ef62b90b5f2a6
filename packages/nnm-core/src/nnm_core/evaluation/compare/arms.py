"""The ways to answer that are compared: the same model, the same decoding, the same prompt layout in all of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.compare.questions import Question
from nnm_core.evaluation.rag import ClassicRag, TextRetriever, retrieve_and_read
from nnm_core.records import Answer, Memory, Policy

if TYPE_CHECKING:
    from nnm_core.engine import NNM

Ask = Callable[[Question], Answer]

LABELS = {
    "bare": "bare model",
    "rag": "classic RAG",
    "rag_recall": "RAG, our recall",
    "read": "NNM's prompt, read",
    "nnm": "NNM exact",
    "nnm_again": "NNM exact, again",
    "composed": "NNM composed",
    "random": "NNM, random memories",
}
EXPLANATIONS = {
    "bare": "the question alone",
    "rag": "passages found by {retriever}, their text read in the prompt",
    "rag_recall": "passages found by NNM, their text read in the prompt",
    "read": "token for token NNM's prompt, read as text: the control of the exact tier",
    "nnm": "passages found by NNM; states injected where that is exact, the rest read (first use)",
    "nnm_again": "the same question once more: everything but the question is injected",
    "composed": "states of passages that were read apart, injected side by side (policy fast)",
    "random": "states of passages that do not answer the question: what injection does by itself",
}


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """How the arms answer.

    Attributes:
        k: passages or memories for each question, in every arm but the bare one.
        max_tokens: the longest answer.
        policy: what the arm ``nnm`` may inject.
        composer: of the composed arm; None takes the default one.
        seed: of the random memories.
    """

    k: int = 4
    max_tokens: int = 24
    policy: Policy = "exact"
    composer: str | None = None
    seed: int = 0


def make_arms(
    engine: NNM,
    memories: Sequence[Memory],
    retriever: TextRetriever,
    settings: ArmSettings,
    names: Iterable[str] = tuple(LABELS),
) -> dict[str, Ask]:
    """The ways to answer, by name.

    Args:
        engine: holds `memories`.
        memories: what can be found.
        retriever: already holds the texts of `memories`, in this order.
        settings: how they answer.
        names: which arms.

    Raises:
        InvalidInputError: a name is unknown.
    """
    known = _Arms(engine, memories, retriever, settings).all()
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInputError(f"There is no arm {unknown[0]!r}.", hint=f"Arms: {', '.join(known)}.")
    return {name: known[name] for name in names}


def keeper(engine: NNM, memories: Iterable[Memory]) -> Callable[[], None]:
    """A function that drops the placed states of `memories` from RAM, so that an arm does not live on the one before.

    Chains that an exact answer has left behind would make a composed one exact, and every later one quick.
    """
    from nnm_core.injection.prefill import memory_point

    points = frozenset(memory_point(memory.namespace, memory.id, memory.version) for memory in memories)
    return lambda: engine._tree.forget(points)


class _Arms:
    def __init__(
        self, engine: NNM, memories: Sequence[Memory], retriever: TextRetriever, settings: ArmSettings
    ) -> None:
        self.engine, self.memories, self.settings = engine, memories, settings
        self.rag = ClassicRag(engine, retriever, memories)
        self.chance = random.Random(settings.seed)  # noqa: S311 - a reproducible choice, no secret
        self.decoding: dict[str, Any] = {"max_tokens": settings.max_tokens}
        self.recall: dict[str, Any] = {"k": settings.k, **self.decoding}
        self.fresh = keeper(engine, memories)

    def all(self) -> dict[str, Ask]:
        """Every arm. Those of first use start without states in RAM; ``nnm_again`` follows ``nnm``."""
        return {
            "bare": lambda question: self.engine.answer(question.question, mode="bare", **self.decoding),
            "rag": lambda question: self.rag.answer(question.question, **self.recall),
            "rag_recall": self.recalled_text,
            "read": lambda question: self.engine.answer(question.question, mode="read", **self.recall),
            "nnm": lambda question: self.injected(question, self.settings.policy),
            "nnm_again": self.again,
            "composed": lambda question: self.injected(question, "fast"),
            "random": self.at_random,
        }

    def recalled_text(self, question: Question) -> Answer:
        """Classic RAG with NNM's search."""
        asked, k = question.question, self.settings.k
        return retrieve_and_read(self.engine, asked, lambda: self.engine.search(asked, k), **self.decoding)

    def injected(self, question: Question, policy: Policy) -> Answer:
        """NNM, states loaded from the store."""
        self.fresh()
        options: dict[str, Any] = (
            {"composer": self.settings.composer} if policy == "fast" and self.settings.composer else {}
        )
        return self.engine.answer(question.question, policy=policy, **self.recall, **options)

    def again(self, question: Question) -> Answer:
        """NNM, everything but the question injected."""
        # Where the arm before has left them the states are in RAM already; asking twice makes sure of it.
        answer = self.engine.answer(question.question, policy="exact", **self.recall)
        if "read" in answer.receipt.memories.values():
            answer = self.engine.answer(question.question, policy="exact", **self.recall)
        return answer

    def at_random(self, question: Question) -> Answer:
        """Memories that do not answer the question, as far as it is known which one does."""
        self.fresh()
        others = [memory for memory in self.memories if memory.id != question.passage]
        chosen = self.chance.sample(others, min(self.settings.k, len(others)))
        return self.engine.answer(question.question, memories=chosen, policy="fast", **self.decoding)
