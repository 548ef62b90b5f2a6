"""Does re-ranking on states name the place that answers, and does it know when nothing does?

Passages of a question-answering file are added to a memory, heads and weights are tuned on their own sentences, and
questions of three kinds are searched for with ``rerank=True``:

* answerable: their passage is in the memory. Does the best hit's span hold a gold answer? Controls: a window of as many
  characters at a random place of the same passage, and the passage's beginning.
* unanswerable (SQuAD 2.0): written to look as if the passage answered them.
* absent: answerable ones whose passage is not in the memory.

How well a part of the best hit's score tells the answerable ones from the others is the area under the ROC curve: the
probability that it is higher for a random answerable question than for a random other one (Hanley & McNeil 1982).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nnm_core.engine import NNM
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.answers import contains_answer
from nnm_core.evaluation.datasets import Question, QuestionSet
from nnm_core.evaluation.statistics import Interval, bootstrap
from nnm_core.records import Hit

Floats = NDArray[np.float64]
Tell = Callable[[str], None]
KINDS = ("answerable", "unanswerable", "absent")
WORDS = "sparse"
SIGNALS = ("likelihood", "attention", WORDS)
"""Parts of the best hit that may say whether it answers; ``sparse``, BM25, is the control that needs no state."""


@dataclass(frozen=True)
class CitationSet:
    """What is asked of what.

    Attributes:
        passages: id -> text, in the memory.
        questions: by kind.
    """

    passages: Mapping[str, str]
    questions: Mapping[str, Sequence[Question]]


@dataclass(frozen=True)
class Found:
    """What a question found.

    Attributes:
        question: what was asked.
        hit: the best one.
        right: whether it is a passage of the question.
    """

    question: Question
    hit: Hit
    right: bool


@dataclass(frozen=True)
class SpanFigures:
    """How often what is cited holds a gold answer, over answerable questions whose passage came first.

    Attributes:
        right: share of the answerable questions whose own passage is the best hit.
        named: the span that the states name.
        random: a window of the same length, at a random place (its expectation).
        beginning: the first characters of the same number.
        share: mean length of the span in parts of the passage.
    """

    right: Interval
    named: Interval
    random: Interval
    beginning: Interval
    share: float


def draw(data: QuestionSet, passages: int, questions: int, *, seed: int = 0) -> CitationSet:
    """`passages` passages at random, and up to `questions` questions of each kind.

    Raises:
        InvalidInputError: no passage would be left out, or no question would be left.
    """
    if not 0 < passages < len(data.passages):
        raise InvalidInputError(
            f"{data.name} has {len(data.passages)} passages; {passages} cannot be drawn so that some are left out.",
            hint="Ask for fewer passages.",
        )
    generator = random.Random(seed)  # noqa: S311 - a repeatable sample
    kept = set(generator.sample(sorted(data.passages), passages))
    groups = (
        [q for q in data.questions if kept.intersection(q.passages)],
        [q for q in data.unanswerable if kept.intersection(q.passages)],
        [q for q in data.questions if q.passages and not kept.intersection(q.passages)],
    )
    chosen = {
        kind: generator.sample(group, min(questions, len(group))) for kind, group in zip(KINDS, groups, strict=True)
    }
    if not chosen["answerable"]:
        raise InvalidInputError(f"{data.name}: no question is about the passages that were drawn.")
    return CitationSet({key: text for key, text in data.passages.items() if key in kept}, chosen)


def ask(engine: NNM, data: CitationSet, *, depth: int = 8, tell: Tell = lambda _: None) -> dict[str, list[Found]]:
    """Add the passages to the empty `engine`, tune it, and search for every question.

    Args:
        engine: with nothing in it.
        data: of `draw`.
        depth: candidates that the question is read over.
        tell: told what is going on.
    """
    tell(f"reading {len(data.passages)} passages")
    engine.add(list(data.passages.values()), ids=list(data.passages))
    tell("choosing heads and weights on own sentences")
    engine.tune()
    found: dict[str, list[Found]] = {}
    for kind, questions in data.questions.items():
        tell(f"{kind}: {len(questions)} questions")
        found[kind] = []
        for question in questions:
            hits = engine.search(question.text, k=depth, rerank=True)
            if hits:
                found[kind].append(Found(question, hits[0], hits[0].memory.id in question.passages))
    return found


def span_figures(found: Sequence[Found]) -> SpanFigures | None:
    """Figures of answerable questions; None where no span was named (`tune` had too few sentences to find heads)."""
    named = [f for f in found if f.right and f.hit.span is not None]
    if not named:
        return None
    held: dict[str, list[float]] = {"named": [], "random": [], "beginning": []}
    shares = []
    for one in named:
        assert one.hit.span is not None
        text, (start, stop) = one.hit.memory.text, one.hit.span
        width = stop - start
        places = [contains_answer(text[i : i + width], one.question.answers) for i in range(len(text) - width + 1)]
        held["named"].append(float(contains_answer(text[start:stop], one.question.answers)))
        held["random"].append(float(np.mean(places)))
        held["beginning"].append(float(places[0]))
        shares.append(width / len(text))
    return SpanFigures(
        right=bootstrap([float(f.right) for f in found]),
        named=bootstrap(held["named"]),
        random=bootstrap(held["random"]),
        beginning=bootstrap(held["beginning"]),
        share=float(np.mean(shares)),
    )


def signals(found: Sequence[Found]) -> dict[str, Floats]:
    """Per signal one number a question; those that not every hit has are left out. Without a shared word BM25 is 0."""
    parts = [{WORDS: 0.0, **f.hit.parts} for f in found]
    return {
        name: np.array([own[name] for own in parts]) for name in SIGNALS if parts and all(name in own for own in parts)
    }


def auc(positive: Floats, negative: Floats) -> float:
    """Probability that a positive is above a negative, ties counting half.

    Raises:
        InvalidInputError: one side is empty.
    """
    if not len(positive) or not len(negative):
        raise InvalidInputError("The area under a ROC curve needs values of both kinds.")
    return float(_areas(positive, negative))


def auc_interval(positive: Floats, negative: Floats, *, draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """The area with its 95 % bootstrap interval, both kinds drawn anew."""
    area = auc(positive, negative)
    generator = np.random.default_rng(seed)
    drawn = [generator.choice(values, (draws, len(values))) for values in (positive, negative)]
    low, high = np.quantile(_areas(*drawn), [0.025, 0.975])
    return area, float(low), float(high)


def _areas(positive: Floats, negative: Floats) -> Floats:
    """The areas of each row: Mann and Whitney's U over the number of pairs."""
    from scipy.stats import mannwhitneyu

    above = mannwhitneyu(positive, negative, axis=-1, method="asymptotic").statistic
    areas: Floats = above / (positive.shape[-1] * negative.shape[-1])
    return areas


def abstain_figures(found: Mapping[str, Sequence[Found]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Kind -> signal -> (area, low, high), of telling the answerable questions from those of that kind."""
    known = signals(found.get("answerable", ()))
    return {
        kind: {
            name: auc_interval(known[name], values) for name, values in signals(found[kind]).items() if name in known
        }
        for kind in KINDS[1:]
        if found.get(kind)
    }
