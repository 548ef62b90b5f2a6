"""What every gate is made of: cases, arms, items, and a loop that asks every case in every arm.

A gate asks unique cases, each once in each arm, greedily, in one process. Nothing is cut: a prompt that does not fit
raises. What came back is kept item by item, with the exact token counts of the receipt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from nnm_core.errors import InvalidInputError
from nnm_core.records import Answer, Memory, Message, Mode, Policy

if TYPE_CHECKING:
    from nnm_core.engine import NNM

Tell = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""


def silent(what: str, done: int, total: int) -> None:
    """A `Tell` that says nothing."""


@dataclass(frozen=True, slots=True)
class Case:
    """One unique thing to ask.

    Attributes:
        id: unique within the gate.
        question: what is asked.
        golds: answers that count as right.
        labels: what the case can be grouped by: length, depth, category, number of memories ...
        data: what the gate's own arms need.
    """

    id: str
    question: str
    golds: tuple[str, ...]
    labels: Mapping[str, str | int | float] = field(default_factory=dict)
    data: Any = None


@dataclass(frozen=True, slots=True)
class Ask:
    """How one arm asks one case.

    Attributes:
        prompt: a question, or a chat prompt.
        memories: in this order.
        mode, policy, composer: as in `NNM.stream`.
        given: the texts that the model was given, injected or read.
        names: their ids.
        seconds: that finding them took; they are part of the time to the first token.
    """

    prompt: str | tuple[Message, ...]
    memories: tuple[Memory, ...] = ()
    mode: Mode = "inject"
    policy: Policy = "exact"
    composer: str | None = None
    given: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    seconds: float = 0.0


Arm = Callable[[Case], Ask]


@dataclass(frozen=True, slots=True)
class Item:
    """One case in one arm.

    Attributes:
        arm: its name.
        case: what was asked.
        answer: what came back; its receipt has the exact token counts.
        scores: metric -> value; those of yes or no are 0.0 or 1.0.
        given: ids of the memories or passages that the model was given.
    """

    arm: str
    case: Case
    answer: Answer
    scores: Mapping[str, float]
    given: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For JSON: one flat record."""
        return {
            "arm": self.arm,
            "id": self.case.id,
            "question": self.case.question,
            "golds": self.case.golds,
            **self.case.labels,
            "answer": self.answer.text,
            "token_ids": self.answer.token_ids,
            "scores": self.scores,
            "memories": self.given,
            "receipt": self.answer.receipt,
        }


Score = Callable[[Case, Ask, Answer], Mapping[str, float]]


def unique(cases: Sequence[Case]) -> Sequence[Case]:
    """`cases`, checked.

    Raises:
        InvalidInputError: there are none, or one occurs twice: repetitions would count as evidence.
    """
    if not cases:
        raise InvalidInputError("There is nothing to ask.", hint="Give more data, or a larger --limit.")
    seen: set[str] = set()
    for case in cases:
        if case.id in seen:
            raise InvalidInputError(f"The case {case.id!r} occurs twice.", hint="Every case counts once.")
        seen.add(case.id)
    return cases


def chosen(arms: Mapping[str, Arm], names: Sequence[str] | None) -> dict[str, Arm]:
    """The arms with these names, in their own order; all for None.

    Raises:
        InvalidInputError: a name is unknown.
    """
    unknown = [name for name in names or () if name not in arms]
    if unknown:
        raise InvalidInputError(f"There is no arm {unknown[0]!r} here.", hint=f"Arms: {', '.join(arms)}.")
    return {name: arm for name, arm in arms.items() if names is None or name in names}


def ask_all(
    engine: NNM,
    arms: Mapping[str, Arm],
    cases: Sequence[Case],
    score: Score,
    *,
    max_tokens: int,
    batch: int = 1,
    tell: Tell = silent,
) -> list[Item]:
    """Ask every case in every arm, arm by arm within a batch of cases, so that a busy machine slows all arms alike.

    Args:
        engine: answers.
        arms: name -> how to ask.
        cases: unique ones.
        score: what is said of an answer.
        max_tokens: the longest answer.
        batch: cases whose answers are decoded side by side; prompts are read or loaded one by one all the same.
        tell: told of the progress.

    Raises:
        InvalidInputError: a case occurs twice.
        ContextOverflowError: a prompt does not fit; nothing is ever cut.
    """
    items: list[Item] = []
    unique(cases)
    for start in range(0, len(cases), batch):
        tell("Asking", start, len(cases))
        some = cases[start : start + batch]
        by_arm = [_ask_arm(engine, name, arm, some, score, max_tokens) for name, arm in arms.items()]
        items += [item for row in zip(*by_arm, strict=True) for item in row]
    tell("Asking", len(cases), len(cases))
    return items


def _ask_arm(engine: NNM, name: str, arm: Arm, cases: Sequence[Case], score: Score, max_tokens: int) -> list[Item]:
    from nnm_core.evaluation.gates.answers import answers

    asks = [arm(case) for case in cases]
    found = [_with_search(ask, answer) for ask, answer in zip(asks, answers(engine, asks, max_tokens), strict=True)]
    return [
        Item(name, case, answer, score(case, ask, answer), ask.names)
        for case, ask, answer in zip(cases, asks, found, strict=True)
    ]


def _with_search(ask: Ask, answer: Answer) -> Answer:
    """The answer, its times with those of finding the memories."""
    receipt = replace(
        answer.receipt,
        seconds_to_first_token=answer.receipt.seconds_to_first_token + ask.seconds,
        seconds_total=answer.receipt.seconds_total + ask.seconds,
    )
    return replace(answer, receipt=receipt)
