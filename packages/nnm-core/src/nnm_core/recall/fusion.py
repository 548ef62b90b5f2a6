"""Putting rankings of different kinds together, with every part kept so that a score can be explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nnm_core.errors import InvalidInputError

FusionMethod = Literal["rrf", "rsf"]
Ranking = Sequence[tuple[str, float]]
"""(id, score) pairs, best first, ids distinct."""


@dataclass(frozen=True, slots=True)
class FusedHit:
    """One id with its fused score and what went into it.

    Attributes:
        id: of the point.
        score: fused, higher is better.
        parts: for each ranking that has the id, ``name`` (its own score) and ``name_rank`` (1 is best).
    """

    id: str
    score: float
    parts: Mapping[str, float] = field(default_factory=dict)


def fuse(
    rankings: Mapping[str, Ranking],
    weights: Mapping[str, float],
    *,
    method: FusionMethod = "rsf",
    rrf_k: float = 60.0,
    limit: int | None = None,
) -> list[FusedHit]:
    """Fuse named rankings by their weights.

    ``rrf``: sum_r w_r / (k + rank_r), reciprocal-rank fusion (Cormack et al. 2009). ``rsf``: sum_r w_r * s_r with each
    ranking's scores moved to [0, 1] by its own best and worst (relative-score fusion). An id that a ranking does not
    have gets nothing from it. A ranking of weight 0 (or without a weight) gives no score and brings in no id; its parts
    are still shown on ids that others brought in. Ties are broken by id, so that the order is always the same.

    Raises:
        InvalidInputError: a negative weight or an unknown method.
    """
    if any(weight < 0 for weight in weights.values()):
        raise InvalidInputError("Fusion weights must not be negative.")
    if method not in ("rrf", "rsf"):
        raise InvalidInputError(f"Unknown fusion {method!r}.", hint='Use "rrf" or "rsf".')
    scores: dict[str, float] = {}
    for name, ranking in rankings.items():
        weight = weights.get(name, 0.0)
        if weight == 0:
            continue
        gains = relative_scores([s for _, s in ranking]) if method == "rsf" else reciprocal_ranks(ranking, rrf_k)
        for (key, _), gain in zip(ranking, gains, strict=True):
            scores[key] = scores.get(key, 0.0) + weight * gain
    order = sorted(scores, key=lambda key: (-scores[key], key))[:limit]
    parts = explain(rankings)
    return [FusedHit(key, scores[key], parts[key]) for key in order]


def reciprocal_ranks(ranking: Ranking, rrf_k: float = 60.0) -> list[float]:
    """1 / (k + rank) for ranks from 1, scaled by k + 1 so that the best gets 1."""
    return [(rrf_k + 1) / (rrf_k + rank) for rank in range(1, len(ranking) + 1)]


def relative_scores(scores: Sequence[float]) -> list[float]:
    """Scores moved to [0, 1] by their minimum and maximum; all 1 when they are all the same."""
    if not scores:
        return []
    low, high = min(scores), max(scores)
    return [(score - low) / (high - low) for score in scores] if high > low else [1.0] * len(scores)


def explain(rankings: Mapping[str, Ranking]) -> dict[str, dict[str, float]]:
    """Per id its own score and rank in every ranking that has it."""
    parts: dict[str, dict[str, float]] = {}
    for name, ranking in rankings.items():
        for rank, (key, score) in enumerate(ranking, start=1):
            parts.setdefault(key, {}).update({name: float(score), f"{name}_rank": float(rank)})
    return parts
