"""The multi-memory gate: two to ten memories in one prompt, of which one or two are needed for the answer.

Notes are generated: each is about another person's locker. Where one is needed it holds the code; where two are
needed one says whose locker has which number, and the other which code that number has. The other memories are notes
of the same kind about other people, so that the right one has to be told from its likes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import contains_answer, exact_match
from nnm_core.evaluation.gates.asks import COLD, COMPOSED, NNM, RANDOM, SAME, cold, composed, injected, same_order
from nnm_core.evaluation.gates.core import Arm, Ask, Case, Tell, ask_all, chosen, silent
from nnm_core.evaluation.gates.corpus import remember
from nnm_core.evaluation.gates.haystack import Haystack
from nnm_core.evaluation.gates.result import (
    GateResult,
    at_floor,
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

_FIRST = (
    *("Ada", "Bruno", "Carla", "Dmitri", "Elin", "Farid", "Greta", "Hugo", "Iris", "Jonas", "Kirsten", "Liam"),
    *("Mona", "Nadia", "Oscar", "Petra", "Quentin", "Rosa", "Sven", "Thea", "Umar", "Vera", "Wim", "Yara"),
)
_LAST = (
    *("Abel", "Brandt", "Costa", "Dahl", "Evers", "Falk", "Grau", "Holm", "Ivers", "Jansen", "Keller", "Lind"),
    *("Moser", "Novak", "Ortiz", "Paulsen", "Quist", "Reiter", "Sommer", "Tanner", "Ulrich", "Vogt"),
)


@dataclass(frozen=True, slots=True)
class MultiSettings:
    """Which prompts are asked.

    Attributes:
        sizes: numbers of memories in a prompt.
        needed: how many of them are needed: 1, 2, or both.
        cases: prompts of each size and number needed.
        words: words of haystack text around each fact; 0 leaves the bare notes.
        max_tokens: the longest answer.
        seed: of names, codes and orders.
        batch: cases whose answers are decoded side by side.
        arms: only these, by name; None for all.
        composer: of the composed arm; None takes the default one.
    """

    sizes: tuple[int, ...] = (2, 4, 6, 8, 10)
    needed: tuple[int, ...] = (1, 2)
    cases: int = 20
    words: int = 0
    max_tokens: int = 16
    seed: int = 0
    batch: int = 1
    arms: tuple[str, ...] | None = None
    composer: str | None = None


def make_cases(settings: MultiSettings, haystack: Haystack | None = None) -> list[Case]:
    """Prompts of every size and number needed; the data of a case are its notes, in order.

    Raises:
        InvalidInputError: a size or a number needed is out of range, or words are wanted without a haystack.
    """
    most = min(len(_FIRST), len(_LAST))
    if not settings.sizes or not 2 <= min(settings.sizes) <= max(settings.sizes) <= most:
        raise InvalidInputError(f"A prompt has 2 to {most} memories, not {settings.sizes}.", hint="Change --sizes.")
    if not settings.needed or not set(settings.needed) <= {1, 2}:
        raise InvalidInputError(f"One or two memories are needed, not {settings.needed}.", hint="Change --needed.")
    if settings.words and haystack is None:
        raise InvalidInputError("There is no text to put around the facts.", hint="Give one with --data.")
    chance = random.Random(settings.seed)  # noqa: S311 - reproducible notes, no secret
    return [
        _case(settings, size, needed, number, chance, haystack)
        for needed in settings.needed
        for size in settings.sizes
        for number in range(settings.cases)
    ]


def _case(
    settings: MultiSettings, size: int, needed: int, number: int, chance: random.Random, haystack: Haystack | None
) -> Case:
    names = [f"{a} {b}" for a, b in zip(chance.sample(_FIRST, size), chance.sample(_LAST, size), strict=True)]
    codes = [str(code) for code in chance.sample(range(100_000, 1_000_000), size)]
    lockers = [str(locker) for locker in chance.sample(range(11, 100), size)]
    if needed == 1:
        notes = [f"The code of {name}'s locker is {code}." for name, code in zip(names, codes, strict=True)]
    else:
        owners = [f"{name} has locker number {locker}." for name, locker in zip(names, lockers, strict=True)]
        opens = [f"Locker number {locker} opens with {code}." for locker, code in zip(lockers, codes, strict=True)]
        notes = [note for pair in zip(owners, opens, strict=True) for note in pair][:size]
    gold = notes[:needed]
    chance.shuffle(notes)
    places = [notes.index(note) for note in gold]
    texts = tuple(_surrounded(note, settings.words, chance, haystack) for note in notes)
    labels = {"memories": size, "needed": needed, "place": min(places)}
    question = f"What is the code of {names[0]}'s locker?"
    return Case(f"{needed}/{size}/{number}", question, (codes[0],), labels, texts)


def _surrounded(note: str, words: int, chance: random.Random, haystack: Haystack | None) -> str:
    if not words or haystack is None:
        return note
    sentences = haystack.document(words * 6, chance)
    place = chance.randrange(len(sentences) + 1)
    return " ".join([*sentences[:place], note, *sentences[place:]])


def run(
    engine: Engine, settings: MultiSettings, haystack: Haystack | None = None, *, tell: Tell = silent
) -> GateResult:
    """Ask about one person among several.

    Args:
        engine: opened with ``state_cache=0``, so that no arm lives on another's work.
        settings: which prompts.
        haystack: text around the facts, if `settings.words` is not 0.
        tell: told of the progress.

    Raises:
        InvalidInputError: sizes or numbers are out of range.
        ContextOverflowError: a prompt does not fit the model.
    """
    cases = make_cases(settings, haystack)
    texts = {f"{case.id}#{place}": text for case in cases for place, text in enumerate(case.data)}
    memories = remember(engine, texts, searchable=False, tell=tell)
    arms = chosen(_arms(memories, cases, settings), settings.arms)
    items = ask_all(engine, arms, cases, score, max_tokens=settings.max_tokens, batch=settings.batch, tell=tell)
    checks = [
        same_tokens(items, NNM, SAME),
        injected_something(items, COMPOSED),
        at_floor(items, RANDOM, COLD, "found"),
    ]
    return GateResult(
        "multi",
        "found",
        summarise(items),
        compare(items, [(NNM, SAME), (COMPOSED, SAME), (RANDOM, COLD)], "found"),
        kept(checks),
        items,
        grouped(items, ["memories", "needed"], "found"),
        {"prompts": len(cases), **asdict(settings)},
    )


def score(case: Case, ask: Ask, answer: Answer) -> Mapping[str, float]:
    """Whether the code stands in the answer, and whether it is the answer."""
    return {"found": float(contains_answer(answer.text, case.golds)), "em": exact_match(answer.text, case.golds)}


def _arms(memories: Mapping[str, Memory], cases: Sequence[Case], settings: MultiSettings) -> dict[str, Arm]:
    following = {case.id: other for case, other in zip(cases, [*cases[1:], cases[0]], strict=True)}

    def of(case: Case) -> list[Memory]:
        return [memories[f"{case.id}#{place}"] for place in range(len(case.data))]

    return {
        COLD: lambda case: cold(case.question),
        SAME: lambda case: same_order(case.question, of(case)),
        COMPOSED: lambda case: composed(case.question, of(case), settings.composer),
        NNM: lambda case: injected(case.question, of(case)),
        # The notes of the next prompt: the same kind, other people.
        RANDOM: lambda case: composed(case.question, of(following[case.id]), settings.composer),
    }
