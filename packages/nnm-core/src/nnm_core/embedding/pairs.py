"""Questions that a collection asks itself: a sentence is taken out of a document and has to find the rest of it.

The inverse cloze task (Lee et al. 2019) needs no labels and no second model, so everything that has to be chosen for
a collection (layers, weights, heads) can be chosen on its own documents.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

# A full stop, question or exclamation mark (also the ideographic ones) with what may close behind it, or a line break.
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[^\W\d_a-z]|[\"'(\[])|(?<=[\u3002\uff01\uff1f])|\n+")


@dataclass(frozen=True, slots=True)
class SelfLabel:
    """One pseudo-query.

    Attributes:
        document: index of the document that it was taken from.
        query: one sentence of it.
        rest: the document without that sentence.
    """

    document: int
    query: str
    rest: str


def sentences(text: str) -> list[str]:
    """Sentences and headlines of a text, in order, by punctuation and line breaks."""
    return [part.strip() for part in _END.split(text) if part and part.strip()]


def self_labels(texts: Sequence[str], count: int, *, seed: int = 0) -> list[SelfLabel]:
    """Up to `count` pseudo-queries, at most one a document, from documents with at least three sentences.

    The sentence has 5 to 40 words (4 to 120 characters in scripts without blanks) and the rest at least as many.
    """
    generator = random.Random(seed)  # noqa: S311 - a reproducible sample, no secret
    order = list(range(len(texts)))
    generator.shuffle(order)
    found: list[SelfLabel] = []
    for index in order:
        if len(found) >= count:
            break
        parts = sentences(texts[index])
        good = [i for i, part in enumerate(parts) if _fits(part)]
        if len(parts) < 3 or not good:
            continue
        chosen = generator.choice(good)
        rest = " ".join(parts[:chosen] + parts[chosen + 1 :])
        if len(rest) >= len(parts[chosen]):
            found.append(SelfLabel(index, parts[chosen], rest))
    return found


def _fits(sentence: str) -> bool:
    words = len(sentence.split())
    return 5 <= words <= 40 or (words < 5 and 4 <= len(sentence) <= 120 and not sentence.isascii())
