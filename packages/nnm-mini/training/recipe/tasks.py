"""The measured cases: SQuAD dev, unanswerable questions, needles and facts in wordings that training never used."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from recipe.corpus import Document
from recipe.facts import Generator, digits


@dataclass(frozen=True)
class Case:
    """Passages, a question and its gold answers (none: it should be declined)."""

    passages: tuple[str, ...]
    question: str
    golds: tuple[str, ...]


def squad(path: Path, answerable: bool = True) -> list[Case]:
    """All questions of a file in the official SQuAD layout that can (or can not) be answered."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        articles = json.load(file)["data"]
    return [
        Case((paragraph["context"].strip(),), qa["question"].strip(), tuple(answer["text"] for answer in qa["answers"]))
        for article in articles
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
        if (not qa.get("is_impossible", False)) == answerable
    ]


def with_distractors(cases: Sequence[Case], count: int, seed: int = 1) -> list[Case]:
    """Every case with `count` passages of other cases that do not hold a gold answer's passage, in random order."""
    rng = Random(seed)
    pool = sorted({case.passages[0] for case in cases})
    out = []
    for case in cases:
        others: list[str] = []
        while len(others) < count:
            other = rng.choice(pool)
            if other != case.passages[0] and other not in others:
                others.append(other)
        others.insert(rng.randrange(count + 1), case.passages[0])
        out.append(Case(tuple(others), case.question, case.golds))
    return out


def closed_book(cases: Sequence[Case]) -> list[Case]:
    """The questions without any passage."""
    return [Case((), case.question, case.golds) for case in cases]


NEEDLE_WORDINGS = (
    ("Anyone who wants into {p} has to punch in {c} on the keypad.", "What has to be punched in to get into {p}?"),
    ("According to the caretaker, {c} is what unlatches {p}.", "What unlatches {p} according to the caretaker?"),
    ("A sticker beside {p} reads {c}.", "What does the sticker beside {p} read?"),
    ("For {p} the combination was changed to {c}.", "To what was the combination for {p} changed?"),
    ("The PIN that guards {p} happens to be {c}.", "Which PIN guards {p}?"),
)
NEEDLE_PLACES = [
    "the film archive",
    "the east pavilion",
    "the bell tower",
    "the seed bank",
    "the harbour office",
    "the puppet theatre",
    "the ice house",
    "the map room",
    "the weather station",
    "the tram depot",
]


def needles(documents: Sequence[Document], count: int = 100, seed: int = 7) -> list[Case]:
    """A 6-digit code hidden in 2,500-8,000 characters of a held-out article, in wordings and places never trained
    on."""
    rng = Random(seed)
    long = [document for document in documents if len(document.text) > 2500]
    out = []
    for number in range(count):
        text = long[number % len(long)].text[: rng.randint(2500, 8000)]
        parts = re.split(r"(?<=[.!?]) ", text[: text.rfind(". ") + 1] or text)
        code, place = digits(rng, 6), rng.choice(NEEDLE_PLACES)
        statement, question = rng.choice(NEEDLE_WORDINGS)
        parts.insert(rng.randrange(1, max(2, len(parts))), statement.format(p=place, c=code))
        out.append(Case((" ".join(parts),), question.format(p=place), (code,)))
    return out


def held_out_facts(count: int = 1000, seed: int = 11) -> list[Case]:
    """Questions about notes of 4-12 facts; names, statement wordings and question wordings were never trained on."""
    rng = Random(seed)
    generator = Generator(rng, held_out=True)
    out: list[Case] = []
    while len(out) < count:
        text, facts = generator.document(rng.randint(4, 12))
        out += [Case((text,), fact.question, (fact.answer,)) for fact in facts[:4]]
    return out[:count]
