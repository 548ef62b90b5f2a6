"""Scoring short answers as SQuAD does (Rajpurkar et al. 2016, section 6), and whether a gold answer is contained."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without punctuation, articles and extra white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, golds: Iterable[str]) -> float:
    """1.0 if the answer equals one of the gold answers after `normalise`, else 0.0."""
    return float(normalise(answer) in {normalise(gold) for gold in golds})


def f1(answer: str, golds: Iterable[str]) -> float:
    """Harmonic mean of word precision and recall against the gold answer that fits best, 0..1."""
    return max((_f1(normalise(answer).split(), normalise(gold).split()) for gold in golds), default=0.0)


def contains_answer(answer: str, golds: Iterable[str]) -> bool:
    """Whether the words of one of the gold answers stand in the answer, in order and together."""
    said = f" {normalise(answer)} "
    return any(f" {wanted} " in said for wanted in map(normalise, golds) if wanted)


def _f1(said: list[str], wanted: list[str]) -> float:
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    if not common:
        return 0.0
    precision, recall = common / len(said), common / len(wanted)
    return 2 * precision * recall / (precision + recall)
