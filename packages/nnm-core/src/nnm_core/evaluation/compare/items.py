"""One question in one arm, and what can be said about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nnm_core.evaluation.answers import contains_answer, exact_match, f1
from nnm_core.evaluation.compare.questions import Question
from nnm_core.records import Answer


@dataclass(frozen=True, slots=True)
class Item:
    """One question in one arm.

    Attributes:
        arm: its name.
        question: what was asked.
        answer: what came back, with its receipt; its hits are the passages that were given.
    """

    arm: str
    question: Question
    answer: Answer

    @property
    def right(self) -> bool:
        """Whether a gold answer stands in the answer."""
        return contains_answer(self.answer.text, self.question.answers)

    @property
    def exact_match(self) -> float:
        """1.0 if the answer is a gold answer, as SQuAD counts it."""
        return exact_match(self.answer.text, self.question.answers)

    @property
    def f1(self) -> float:
        """Overlap of words with the best gold answer, as SQuAD counts it."""
        return f1(self.answer.text, self.question.answers)

    @property
    def given(self) -> str:
        """The text that the model was given, as passages or as states."""
        return "\n\n".join(hit.memory.text for hit in self.answer.hits)

    @property
    def gold_given(self) -> bool:
        """Whether a gold answer stands in what was given: the most that reading can make of it."""
        return contains_answer(self.given, self.question.answers)

    @property
    def supported(self) -> bool:
        """Whether the answer itself stands in what was given; a bare or invented answer is not supported."""
        return contains_answer(self.given, [self.answer.text])

    @property
    def found(self) -> bool:
        """Whether the passage that answers the question was given."""
        return bool(self.question.passage) and any(hit.memory.id == self.question.passage for hit in self.answer.hits)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "arm": self.arm,
            "id": self.question.id,
            "question": self.question.question,
            "gold": self.question.answers,
            "answer": self.answer.text,
            "right": self.right,
            "exact_match": self.exact_match,
            "f1": self.f1,
            "gold_given": self.gold_given,
            "supported": self.supported,
            "passage_found": self.found,
            "memories": [hit.memory.id for hit in self.answer.hits],
            "receipt": self.answer.receipt,
        }
