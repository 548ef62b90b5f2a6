"""The ways to ask that gates share: cold, the same tokens read, injected, composed, and classic RAG's prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nnm_core.evaluation.gates.core import Ask
from nnm_core.evaluation.rag import plain_prompt
from nnm_core.model.prompt import SEPARATOR
from nnm_core.records import Memory, Message, Mode, Policy

COLD, RAG, SAME, NNM, COMPOSED, RANDOM = "cold", "rag", "rag same order", "nnm", "composed", "random"


@dataclass(frozen=True, slots=True)
class Layout:
    """How classic RAG's prompts are laid out.

    Attributes:
        system: the engine's system prompt.
        template: of the user turn, with ``{context}`` and ``{question}``; None takes NNM's own layout, as plain text.
    """

    system: str | None
    template: str | None = None

    def classic(self, question: str, texts: Sequence[str], names: Sequence[str], seconds: float = 0.0) -> Ask:
        """Passages pasted into a user turn that is tokenised in one piece, as a chain without NNM sends it."""
        prompt = plain_prompt(question, texts, self.system)
        if self.template is not None:
            body = self.template.replace("{question}", question).replace("{context}", SEPARATOR.join(texts))
            prompt = [*prompt[:-1], Message("user", body)]
        return Ask(tuple(prompt), mode="bare", given=tuple(texts), names=tuple(names), seconds=seconds)


def cold(question: str) -> Ask:
    """The question alone."""
    return Ask(question, mode="bare")


def same_order(question: str, memories: Sequence[Memory], seconds: float = 0.0) -> Ask:
    """Token for token the prompt of the injecting arms, read as text: their control."""
    return _with(question, memories, "read", "exact", None, seconds)


def injected(question: str, memories: Sequence[Memory], seconds: float = 0.0) -> Ask:
    """States where that is exact, the rest read: the same greedy tokens as `same_order`."""
    return _with(question, memories, "inject", "exact", None, seconds)


def composed(question: str, memories: Sequence[Memory], composer: str | None, seconds: float = 0.0) -> Ask:
    """All states injected, also those that were not computed together."""
    return _with(question, memories, "inject", "fast", composer, seconds)


def _with(
    question: str, memories: Sequence[Memory], mode: Mode, policy: Policy, composer: str | None, seconds: float
) -> Ask:
    return Ask(
        question,
        tuple(memories),
        mode,
        policy,
        composer,
        given=tuple(memory.text for memory in memories),
        names=tuple(memory.id for memory in memories),
        seconds=seconds,
    )
