"""Answer scores: exact match and F1 as in the official SQuAD script, and whether an answer declines."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence


def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals one of the gold answers."""
    return float(any(normalise(prediction) == normalise(gold) for gold in golds))


def f1(prediction: str, golds: Sequence[str]) -> float:
    """The best token F1 over the gold answers."""
    return max((_f1(normalise(prediction).split(), normalise(gold).split()) for gold in golds), default=0.0)


def _f1(prediction: list[str], gold: list[str]) -> float:
    common = sum((Counter(prediction) & Counter(gold)).values())
    if not common:
        return float(prediction == gold)
    precision, recall = common / len(prediction), common / len(gold)
    return 2 * precision * recall / (precision + recall)


def declines(prediction: str) -> bool:
    """Whether the answer is "I don't know."."""
    return "dont know" in normalise(prediction)


def summary(predictions: Sequence[str], golds: Sequence[Sequence[str]]) -> dict[str, float]:
    """EM, F1 and the share of declined answers in percent, and the number of cases."""
    count = max(1, len(predictions))
    return {
        "em": round(100 * sum(map(exact, predictions, golds)) / count, 2),
        "f1": round(100 * sum(map(f1, predictions, golds)) / count, 2),
        "declined": round(100 * sum(map(declines, predictions)) / count, 2),
        "cases": len(predictions),
    }
