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
        same_as: the arm that had asked the very same before, whose answer this is; empty if it was asked for this arm.
    """

    arm: str
    case: Case
    answer: Answer
    scores: Mapping[str, float]
    given: tuple[str, ...] = ()
    same_as: str = ""

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
            "same_as": self.same_as,
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
        asked = _Asked(engine, cases[start : start + batch], score, max_tokens)
        by_arm = [asked.arm(name, arm) for name, arm in arms.items()]
        items += [item for row in zip(*by_arm, strict=True) for item in row]
    tell("Asking", len(cases), len(cases))
    return items


class _Asked:
    """Some cases, and what has been answered to them so far: the same ask is not put twice.

    Decoding is greedy, so two arms that ask the very same (a retriever found the passage that the oracle gives) would
    get the same answer twice; the second one's item says whose it is.
    """

    def __init__(self, engine: NNM, cases: Sequence[Case], score: Score, max_tokens: int) -> None:
        self._engine, self._cases, self._score, self._max_tokens = engine, cases, score, max_tokens
        self._known: dict[tuple[Any, ...], tuple[str, Answer]] = {}

    def arm(self, name: str, arm: Arm) -> list[Item]:
        """The items of one arm, in the order of the cases."""
        from nnm_core.evaluation.gates.answers import answers

        asks = [arm(case) for case in self._cases]
        keys = [(case.id, *_key(ask)) for case, ask in zip(self._cases, asks, strict=True)]
        new = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in self._known}
        found = answers(self._engine, list(new.values()), self._max_tokens)
        self._known.update({key: (name, answer) for key, answer in zip(new, found, strict=True)})
        items = []
        for case, ask, key in zip(self._cases, asks, keys, strict=True):
            owner, answer = self._known[key]
            answer = _with_search(ask, answer)
            shared = "" if owner == name else owner
            items.append(Item(name, case, answer, self._score(case, ask, answer), ask.names, shared))
        return items


def _key(ask: Ask) -> tuple[Any, ...]:
    """All that an answer depends on."""
    memories = tuple((memory.id, memory.version) for memory in ask.memories)
    return ask.prompt, memories, ask.mode, ask.policy, ask.composer


def _with_search(ask: Ask, answer: Answer) -> Answer:
    """The answer, its times with those of finding the memories."""
    receipt = replace(
        answer.receipt,
        seconds_to_first_token=answer.receipt.seconds_to_first_token + ask.seconds,
        seconds_total=answer.receipt.seconds_total + ask.seconds,
    )
    return replace(answer, receipt=receipt)
