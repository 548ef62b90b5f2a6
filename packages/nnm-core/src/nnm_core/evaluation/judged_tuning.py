"""Re-ranking heads, weights and depth chosen on judged queries: for collections that have some, as a training split.

Beside the choice on own sentences (`nnm_core.recall.tuning`), which needs no judgement, this one maximises mean nDCG@10
of the judged queries. The queries that a result is reported on must not be among them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError
from nnm_core.recall.fusion import Ranking
from nnm_core.recall.rerank import Evidence, standardised, witness_scores
from nnm_core.recall.tuning import GRID

Floats = NDArray[np.float64]
_AT = 10
_DISCOUNTS = 1 / np.log2(np.arange(2, _AT + 2))


@dataclass(frozen=True)
class JudgedChoice:
    """What was chosen, and what it is worth on the queries that it was chosen on.

    Attributes:
        weights: of ``first``, ``likelihood`` and ``attention``.
        heads: columns of the evidence's attention that count, best first.
        depth: candidates to re-rank.
        score: mean nDCG@10 with all that.
        baseline: of the first stage.
        queries: how many.
        tried: (depth, number of heads, best score) of everything else.
    """

    weights: Mapping[str, float]
    heads: tuple[int, ...]
    depth: int
    score: float
    baseline: float
    queries: int
    tried: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class _Query:
    """One judged query: its candidates in the first stage's order.

    Attributes:
        first: score by candidate that has evidence.
        evidence: by candidate.
        grades: of the candidates with evidence; `behind` of the others.
        ideal: the highest DCG@10 that there is.
    """

    first: Mapping[str, float]
    evidence: Mapping[str, Evidence]
    grades: Mapping[str, int]
    behind: tuple[int, ...]
    ideal: float

    @classmethod
    def of(cls, ranking: Ranking, evidence: Mapping[str, Evidence], judged: Mapping[str, int]) -> _Query:
        first = {name: score for name, score in ranking if name in evidence}
        best = sorted(judged.values(), reverse=True)[:_AT]
        return cls(
            first,
            evidence,
            {name: judged.get(name, 0) for name in first},
            tuple(judged.get(name, 0) for name, _ in ranking if name not in first),
            float(np.dot(best, _DISCOUNTS[: len(best)])),
        )

    def witnesses(self, heads: Sequence[int], depth: int) -> Floats:
        """``first``, ``likelihood`` and ``attention`` of the first candidates, standardised, [3, candidates]."""
        names = list(self.first)[:depth]
        found = witness_scores(names, self.first, {name: self.evidence[name].of_heads(heads) for name in names})
        nothing = np.zeros(len(names))
        return np.stack([standardised(found.get(w, nothing)) for w in ("first", "likelihood", "attention")])

    def ndcgs(self, totals: Floats) -> Floats:
        """nDCG@10 [rows] when the first candidates are ordered by each row of `totals`, [rows, candidates]."""
        grades = list(self.grades.values())
        read, rest = np.array(grades[: totals.shape[1]], np.float64), [*grades[totals.shape[1] :], *self.behind]
        ordered = read[np.argsort(-totals, axis=1, kind="stable")]
        ordered = np.hstack([ordered, np.tile(np.array(rest, np.float64), (len(totals), 1))])[:, :_AT]
        gained: Floats = ordered @ _DISCOUNTS[: ordered.shape[1]] / self.ideal
        return gained


def tune_on_judgements(
    first: Mapping[str, Ranking],
    evidence: Mapping[str, Mapping[str, Evidence]],
    qrels: Mapping[str, Mapping[str, int]],
    *,
    depths: Sequence[int] = (10, 20, 50, 100),
    heads: Sequence[int] = (1, 2, 4, 8),
    grid: Sequence[float] = GRID,
) -> JudgedChoice:
    """The best heads, weights and depth: a grid over weights for each depth and for the best 1, 2, 4 ... heads alone.

    Args:
        first: first-stage rankings, best first.
        evidence: of their first candidates, best with all heads noted.
        qrels: judgements of the same queries.
        depths: those beyond the evidence count as all of it.
        heads: numbers of heads to try.
        grid: weights to try for ``likelihood`` and ``attention``, beside ``first`` = 1.

    Raises:
        InvalidInputError: no query has evidence.
    """
    queries = [_Query.of(first[q], evidence[q], qrels[q]) for q in first if evidence.get(q)]
    if not queries:
        raise InvalidInputError("There is no judged query with evidence to tune on.")
    order = _heads_alone(queries)
    counts = sorted({min(count, len(order)) for count in heads})
    says = np.array(sorted(product((1.0,), grid, grid if len(order) else (0.0,)), key=sum))  # of equals the smallest
    deepest = max(len(query.first) for query in queries)
    options: list[tuple[float, int, tuple[int, ...], Floats]] = []
    for depth, count in product(sorted({min(depth, deepest) for depth in depths}), counts):
        chosen = tuple(order[:count])
        scores = np.mean([q.ndcgs(says @ q.witnesses(chosen, depth)) for q in queries], axis=0)
        options.append((float(scores.max()), depth, chosen, says[int(scores.argmax())]))
    score, depth, chosen, weights = max(options, key=lambda option: option[0])
    return JudgedChoice(
        dict(zip(("first", "likelihood", "attention"), weights.tolist(), strict=True)),
        chosen,
        depth,
        score,
        float(np.mean([q.ndcgs(np.array([list(q.first.values())]))[0] for q in queries])),
        len(queries),
        tuple((depth, len(chosen), score) for score, depth, chosen, _ in options),
    )


def _heads_alone(queries: Sequence[_Query]) -> list[int]:
    """All heads by the mean nDCG@10 that each would give alone, best first."""
    totals = [
        query.ndcgs(np.stack([query.evidence[name].attention for name in query.first]).astype(np.float64).T)
        for query in queries
        if query.first
    ]
    return [int(column) for column in np.argsort(-np.mean(totals, axis=0), kind="stable")]
