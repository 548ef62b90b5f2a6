"""Questions with gold answers and the passages that they are about: what every question-answering format becomes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import normalise


@dataclass(frozen=True, slots=True)
class Question:
    """One unique question.

    Attributes:
        id: unique in its set.
        text: what is asked.
        answers: gold answers, at least one, each once; none in `QuestionSet.unanswerable`.
        passages: ids of the passages that answer it, best first; empty where the format has none.
        category: of formats that sort their questions; empty otherwise.
    """

    id: str
    text: str
    answers: tuple[str, ...]
    passages: tuple[str, ...] = ()
    category: str = ""


@dataclass(frozen=True)
class QuestionSet:
    """Questions and passages of one file.

    Attributes:
        name: of file or hub set.
        passages: id -> text.
        questions: unique ones.
        left_out: reason -> how many questions of the file are not here, and why.
        unanswerable: questions that the file says its passage does not answer; they count as left out.
    """

    name: str
    passages: Mapping[str, str]
    questions: tuple[Question, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)
    unanswerable: tuple[Question, ...] = ()

    def sample(self, count: int | None, *, seed: int = 0) -> QuestionSet:
        """`count` questions drawn without replacement, in the file's order; all passages stay."""
        if count is None or count >= len(self.questions):
            return self
        chosen = set(random.Random(seed).sample(range(len(self.questions)), count))  # noqa: S311 - repeatable sample
        return replace(self, questions=tuple(q for i, q in enumerate(self.questions) if i in chosen))

    def only(self, keep: Iterable[str]) -> QuestionSet:
        """The questions with these ids, in the file's order."""
        ids = set(keep)
        return replace(self, questions=tuple(q for q in self.questions if q.id in ids))


class Collector:
    """Gathers passages and questions of a file, checks them, and counts what it leaves out."""

    def __init__(self, name: str, *, hint: str) -> None:
        """Args: name: of the set; hint: what the format looks like, for errors."""
        self._name, self._hint = name, hint
        self._passages: dict[str, str] = {}
        self._questions: dict[str, Question] = {}
        self._seen: set[tuple[str, tuple[str, ...]]] = set()
        self._left_out: Counter[str] = Counter()
        self._unanswerable: list[Question] = []

    def passage(self, passage_id: str, text: str, where: str) -> str:
        """Take a passage in; returns its id.

        Raises:
            InvalidInputError: another text has this id already.
        """
        if self._passages.setdefault(passage_id, text) != text:
            raise InvalidInputError(f"{where}: two passages have the id {passage_id!r}.", hint=self._hint)
        return passage_id

    def question(self, question: Question, where: str) -> None:
        """Take a question in; one that repeats text and passages of an earlier one is left out.

        Raises:
            InvalidInputError: its id is taken, it is empty, or it names an unknown passage.
        """
        if question.id in self._questions:
            raise InvalidInputError(f"{where}: a second question has the id {question.id!r}.", hint=self._hint)
        if not question.text.strip():
            raise InvalidInputError(f"{where}: the question is empty.", hint=self._hint)
        for passage in question.passages:
            if passage not in self._passages:
                raise InvalidInputError(f"{where}: there is no passage {passage!r}.", hint=self._hint)
        answers = distinct(question.answers)
        if not answers:
            self.leave_out("without an answer")
            return
        key = (normalise(question.text), question.passages)
        if key in self._seen:
            self.leave_out("asked twice about the same passage")
            return
        self._seen.add(key)
        self._questions[question.id] = replace(question, text=" ".join(question.text.split()), answers=answers)

    def unanswerable(self, question: Question) -> None:
        """Take in a question that its passage does not answer: not one of the set's questions, but kept beside them."""
        self._unanswerable.append(replace(question, text=" ".join(question.text.split())))
        self.leave_out("marked as impossible to answer")

    def leave_out(self, reason: str) -> None:
        """Count a question that cannot be used."""
        self._left_out[reason] += 1

    def done(self) -> QuestionSet:
        """The set.

        Raises:
            InvalidInputError: there is no question in it.
        """
        if not self._questions:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self._left_out.items())
            raise InvalidInputError(
                f"{self._name}: no question that can be asked{f' ({reasons})' if reasons else ''}.", hint=self._hint
            )
        asked = tuple(self._questions.values())
        return QuestionSet(self._name, self._passages, asked, dict(self._left_out), tuple(self._unanswerable))


def distinct(answers: Sequence[str]) -> tuple[str, ...]:
    """Answers that say something, each once, in order."""
    return tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
