"""Weights and heads chosen without labels: own sentences of the collection must find their documents.

`nnm_core.embedding.pairs` takes a sentence out of a document; the document without it is the one right answer among the
collection's other documents. Everything here maximises the mean reciprocal rank of such trials by trying a small grid.
One rule keeps it honest: the smallest say wins that is as good as the best one within some standard errors of the
paired difference: two for the dense vector, so that a weak one ends up with weight 0 and the hybrid is the sparse
ranking; one for the witnesses of the states, which are worth their risk more often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError
from nnm_core.recall.attention_scores import Head
from nnm_core.recall.fusion import FusionMethod, Ranking, fuse
from nnm_core.recall.rerank import Evidence, combine

GRID = (0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class FirstStageTrial:
    """One own sentence and what the rankings say.

    Attributes:
        gold: id of the document that the sentence was taken from.
        rankings: ``sparse`` and ``dense``, best first; the gold document scored without the sentence.
    """

    gold: str
    rankings: Mapping[str, Ranking]


@dataclass(frozen=True)
class RerankTrial:
    """One own sentence, the candidates of the first stage and what their states say.

    Attributes:
        gold: id of the document without the sentence; its state was made without it too.
        first: fused first-stage score by candidate.
        evidence: by candidate, all heads noted.
    """

    gold: str
    first: Mapping[str, float]
    evidence: Mapping[str, Evidence]


@dataclass(frozen=True)
class Choice:
    """Weights, and what they are worth on the trials.

    Attributes:
        weights: chosen.
        score: mean reciprocal rank with them.
        baseline: without any say of the new witnesses.
        trials: number of own sentences.
        tried: every weighting that was tried and its mean reciprocal rank.
    """

    weights: Mapping[str, float]
    score: float
    baseline: float
    trials: int
    tried: tuple[tuple[Mapping[str, float], float], ...]


def tune_first_stage(
    trials: Sequence[FirstStageTrial], *, method: FusionMethod = "rsf", grid: Sequence[float] = GRID
) -> Choice:
    """The dense ranking's weight beside ``sparse`` = 1.

    Raises:
        InvalidInputError: no trials.
    """

    def ranks(weights: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array(
            [_reciprocal([hit.id for hit in fuse(t.rankings, weights, method=method)], t.gold) for t in trials]
        )

    return _choose(ranks, {"sparse": 1.0}, ("dense",), grid, len(trials), errors=2.0)


def tune_rerank(trials: Sequence[RerankTrial], heads: Sequence[int], *, grid: Sequence[float] = GRID) -> Choice:
    """The weights of ``likelihood`` and ``attention`` beside ``first`` = 1.

    Args:
        trials: with evidence of all heads.
        heads: columns of that evidence that count, as `best_heads` gives them; none leaves attention out.

    Raises:
        InvalidInputError: no trials.
    """
    kept = [
        (
            t.gold,
            t.first,
            {key: evidence.of_heads(heads) for key, evidence in t.evidence.items()},
        )
        for t in trials
    ]

    def ranks(weights: Mapping[str, float]) -> NDArray[np.float64]:
        return np.array(
            [_reciprocal([key for key, _, _ in combine(first, seen, weights)], gold) for gold, first, seen in kept]
        )

    names = ("likelihood", "attention") if len(heads) else ("likelihood",)
    return _choose(ranks, {"first": 1.0}, names, grid, len(trials), errors=1.0)


def head_scores(trials: Sequence[RerankTrial]) -> NDArray[np.float64]:
    """For each head, alone, the mean reciprocal rank of the right document among the candidates, [heads].

    Raises:
        InvalidInputError: no trials, or evidence without heads.
    """
    if not trials or not all(len(e.attention) for t in trials for e in t.evidence.values()):
        raise InvalidInputError("Head scores need trials with the evidence of all heads.")
    total = np.zeros(len(next(iter(trials[0].evidence.values())).attention))
    for trial in trials:
        right = trial.evidence[trial.gold].attention
        others = np.stack([e.attention for key, e in trial.evidence.items() if key != trial.gold])
        total += 1 / (1 + (others >= right).sum(axis=0))
    return total / len(trials)


def best_heads(scores: NDArray[np.float64], count: int = 8) -> list[int]:
    """Columns of the best heads, best first."""
    return [int(index) for index in np.argsort(-scores, kind="stable")[:count]]


def head_name(column: int, heads_per_layer: int) -> Head:
    """(layer, head) of a column of the evidence of all heads."""
    return divmod(column, heads_per_layer)


def _choose(
    ranks: Callable[[Mapping[str, float]], NDArray[np.float64]],
    base: Mapping[str, float],
    names: Sequence[str],
    grid: Sequence[float],
    trials: int,
    *,
    errors: float,
) -> Choice:
    if trials == 0:
        raise InvalidInputError(
            "There is nothing to tune on.", hint="At least some documents need three sentences or more."
        )
    options = sorted(product(grid, repeat=len(names)), key=lambda says: (sum(says), says))
    found = [ranks({**base, **dict(zip(names, says, strict=True))}) for says in options]
    means = [float(values.mean()) for values in found]
    best = found[int(np.argmax(means))]
    chosen = next(i for i, values in enumerate(found) if not _better(best, values, errors))
    weights = [{**base, **dict(zip(names, says, strict=True))} for says in options]
    return Choice(weights[chosen], means[chosen], means[0], trials, tuple(zip(weights, means, strict=True)))


def _better(left: NDArray[np.float64], right: NDArray[np.float64], errors: float) -> bool:
    """Whether `left` is better by more than so many standard errors of the paired difference."""
    difference = left - right
    return bool(difference.mean() > errors * difference.std() / np.sqrt(len(difference)))


def _reciprocal(order: Sequence[str], gold: str) -> float:
    return 1 / (1 + order.index(gold)) if gold in order else 0.0
