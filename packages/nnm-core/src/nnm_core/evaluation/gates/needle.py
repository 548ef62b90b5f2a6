"""The needle gate: one sentence with a code in a long document, at every depth and length.

``read`` reads the document, ``nnm`` has its state injected (the same tokens), ``composed`` has the document cut into
several memories that were read apart, and ``read pieces`` reads just those: the control of composing. Documents are
never cut short: one that does not fit the model raises.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import contains_answer, exact_match
from nnm_core.evaluation.gates.asks import COLD, COMPOSED, NNM, cold, composed, injected, same_order
from nnm_core.evaluation.gates.core import Arm, Ask, Case, Item, Tell, ask_all, chosen, silent
from nnm_core.evaluation.gates.corpus import remember
from nnm_core.evaluation.gates.haystack import Haystack
from nnm_core.evaluation.gates.result import (
    GateResult,
    compare,
    grouped,
    injected_something,
    kept,
    same_tokens,
    summarise,
)
from nnm_core.records import Answer, Memory

if TYPE_CHECKING:
    from nnm_core.engine import NNM as Engine

READ, READ_PIECES = "read", "read pieces"
# What is hidden, and what is asked for it. The thing is different in every document.
WORDINGS = (
    ("The access code of the {thing} is {code}.", "What is the access code of the {thing}?"),
    ("Whoever wants to open the {thing} has to type {code}.", "What has to be typed to open the {thing}?"),
    ("The {thing} was given the number {code}.", "Which number was given to the {thing}?"),
    ("The caretaker wrote down that the {thing} is locked with {code}.", "With what is the {thing} locked?"),
    ("The register lists the {thing} under the number {code}.", "Under which number is the {thing} listed?"),
)
_COLOURS = ("red", "green", "blue", "yellow", "grey", "white", "brown", "purple", "silver", "orange", "black", "pink")
_THINGS = ("boathouse", "greenhouse", "wine cellar", "bell tower", "workshop", "stable", "archive", "pump station")


@dataclass(frozen=True, slots=True)
class NeedleSettings:
    """Which documents are asked.

    Attributes:
        lengths: of documents, in characters.
        cases: documents of each length.
        depths: places of the needle, spread evenly from the beginning to the end.
        pieces: memories that a document is cut into for the composed arm.
        max_tokens: the longest answer.
        seed: of documents, codes and wordings.
        batch: cases whose answers are decoded side by side.
        arms: only these, by name; None for all.
        composer: of the composed arm; None takes the default one.
    """

    lengths: tuple[int, ...] = (2500, 5000, 8000)
    cases: int = 100
    depths: int = 10
    pieces: int = 4
    max_tokens: int = 16
    seed: int = 0
    batch: int = 1
    arms: tuple[str, ...] | None = None
    composer: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """A document with a needle, whole and in pieces."""

    whole: str
    pieces: tuple[str, ...]


def make_cases(haystack: Haystack, settings: NeedleSettings) -> list[Case]:
    """`settings.cases` documents of every length, each with its own text, place, thing and six-digit code."""
    chance = random.Random(settings.seed)  # noqa: S311 - reproducible documents, no secret
    codes = chance.sample(range(100_000, 1_000_000), settings.cases * len(settings.lengths))
    cases = []
    for length in settings.lengths:
        for number in range(settings.cases):
            depth = number % settings.depths
            cases.append(_case(haystack, settings, length, depth, str(codes.pop()), chance, number))
    return cases


def _case(
    haystack: Haystack, settings: NeedleSettings, length: int, depth: int, code: str, chance: random.Random, number: int
) -> Case:
    needle, question = chance.choice(WORDINGS)
    thing = f"{chance.choice(_COLOURS)} {chance.choice(_THINGS)}"
    needle, question = needle.format(thing=thing, code=code), question.format(thing=thing)
    sentences = haystack.document(length - len(needle) - 1, chance)
    share = depth / (settings.depths - 1) if settings.depths > 1 else 0.5
    place = round(share * len(sentences))
    sentences = [*sentences[:place], needle, *sentences[place:]]
    document = Document(" ".join(sentences), tuple(cut_evenly(sentences, settings.pieces)))
    labels = {"length": length, "depth": round(share, 3)}
    return Case(f"{length}/{number}", question, (code,), labels, document)


def cut_evenly(sentences: Sequence[str], pieces: int) -> list[str]:
    """Sentences joined to at most `pieces` texts of about the same number of characters."""
    total = sum(len(sentence) for sentence in sentences)
    parts: list[list[str]] = [[]]
    seen = 0
    for sentence in sentences:
        if parts[-1] and len(parts) < pieces and seen >= total * len(parts) / pieces:
            parts.append([])
        parts[-1].append(sentence)
        seen += len(sentence)
    return [" ".join(part) for part in parts]


def longest(engine: Engine, haystack: Haystack, *, reserve: int = 160) -> int:
    """Characters of the longest document that fits the model's context, by a sample of the haystack, with some spare.

    Args:
        reserve: tokens kept free for the rest of the prompt and the answer.
    """
    sample = " ".join(haystack.sentences[:400])
    tokens = len(engine.model.tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"])
    room = int(0.9 * (engine.model.context_limit - reserve))
    return max(1, room * len(sample) // max(tokens, 1))


def run(engine: Engine, haystack: Haystack, settings: NeedleSettings, *, tell: Tell = silent) -> GateResult:
    """Hide and ask.

    Args:
        engine: opened with ``state_cache=0``, so that no arm lives on another's work.
        haystack: what needles are hidden in.
        settings: which documents.
        tell: told of the progress.

    Raises:
        InvalidInputError: the haystack is too short.
        ContextOverflowError: a document does not fit the model; nothing is ever cut short.
    """
    if settings.pieces < 2 or settings.cases < 1 or settings.depths < 1 or not settings.lengths:
        raise InvalidInputError("There is nothing to hide.", hint="At least 1 case, 1 depth, 1 length and 2 pieces.")
    cases = make_cases(haystack, settings)
    memories = _memories(engine, cases, settings, tell)
    arms = chosen(_arms(memories, settings), settings.arms)
    items = ask_all(engine, arms, cases, score, max_tokens=settings.max_tokens, batch=settings.batch, tell=tell)
    checks = [same_tokens(items, NNM, READ), injected_something(items, NNM), injected_something(items, COMPOSED)]
    return GateResult(
        "needle",
        "found",
        summarise(items),
        compare(items, [(NNM, READ), (COMPOSED, READ_PIECES), (COMPOSED, READ)], "found"),
        kept(checks),
        items,
        grouped(items, ["length", "depth"], "found"),
        {"documents": len(cases), "wordings": len(WORDINGS), **asdict(settings)},
    )


def score(case: Case, ask: Ask, answer: Answer) -> Mapping[str, float]:
    """Whether the code stands in the answer, and whether it is the answer."""
    return {"found": float(contains_answer(answer.text, case.golds)), "em": exact_match(answer.text, case.golds)}


def grid(items: Sequence[Item], arm: str) -> dict[tuple[int, float], float]:
    """(length, depth) -> share of needles that the arm found."""
    cells: dict[tuple[int, float], list[float]] = {}
    for item in items:
        if item.arm == arm:
            key = (int(item.case.labels["length"]), float(item.case.labels["depth"]))
            cells.setdefault(key, []).append(item.scores["found"])
    return {key: sum(found) / len(found) for key, found in sorted(cells.items())}


def _memories(engine: Engine, cases: Sequence[Case], settings: NeedleSettings, tell: Tell) -> dict[str, Memory]:
    """States of what is needed: nothing is searched for, so no vectors are made."""
    texts: dict[str, str] = {}
    for case in cases:
        document: Document = case.data
        if settings.arms is None or {READ, NNM} & set(settings.arms):
            texts[case.id] = document.whole
        if settings.arms is None or {READ_PIECES, COMPOSED} & set(settings.arms):
            texts |= {f"{case.id}#{place}": piece for place, piece in enumerate(document.pieces)}
    return remember(engine, texts, searchable=False, tell=tell)


def _arms(memories: Mapping[str, Memory], settings: NeedleSettings) -> dict[str, Arm]:
    def pieces(case: Case) -> list[Memory]:
        return [memories[f"{case.id}#{place}"] for place in range(len(case.data.pieces))]

    return {
        COLD: lambda case: cold(case.question),
        READ: lambda case: same_order(case.question, [memories[case.id]]),
        NNM: lambda case: injected(case.question, [memories[case.id]]),
        READ_PIECES: lambda case: same_order(case.question, pieces(case)),
        COMPOSED: lambda case: composed(case.question, pieces(case), settings.composer),
    }
