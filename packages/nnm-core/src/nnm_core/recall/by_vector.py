"""Search by a vector that somebody else made, by words alone, or by both with a given weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.recall.dialogue import Ask, Asking
from nnm_core.recall.fusion import FusedHit, Ranking, explain, fuse
from nnm_core.recall.search import Vector
from nnm_core.storage.index import SparseVector

PREFETCH = 100


def searching_parts(
    *,
    dense: Vector | None,
    sparse: SparseVector | None,
    alpha: float,
    limit: int,
    filter: Any = None,
) -> Asking[list[FusedHit]]:
    """The best points, best first, as a dialogue with the index.

    Args:
        dense: the vector to compare with, [dim]; needed unless `alpha` is 0.
        sparse: the words to compare with; needed unless `alpha` is 1.
        alpha: weight of the dense ranking against the sparse one. At 1 and 0 there is one ranking and the scores are
            its own (cosine, BM25); between them they are fused (relative scores, 0 to 1).
        limit: how many at most.
        filter: what the index understands; it holds for both rankings.

    Raises:
        InvalidInputError: `alpha` is not between 0 and 1.
    """
    if not 0 <= alpha <= 1:
        raise InvalidInputError(f"alpha is {alpha}.", hint="0 searches by words alone, 1 by vectors alone.")
    reach = limit if alpha in (0, 1) else max(PREFETCH, 4 * limit)
    rankings: dict[str, Ranking] = {}
    options = {"limit": reach, "filter": filter}
    asks: dict[str, Ask] = {}
    if alpha > 0 and dense is not None:
        asks["dense"] = Ask("search_dense", dense, options)
    if alpha < 1 and sparse is not None and len(sparse.indices):
        asks["sparse"] = Ask("search_sparse", sparse, options)
    found = yield list(asks.values())
    for name, points in zip(asks, found, strict=True):
        rankings[name] = [(hit.id, hit.score) for hit in points]
    if alpha in (0, 1):
        return _as_they_are(rankings, limit)
    return fuse(rankings, {"dense": alpha, "sparse": 1 - alpha}, method="rsf", limit=limit)


def _as_they_are(rankings: Mapping[str, Ranking], limit: int) -> list[FusedHit]:
    parts = explain(rankings)
    return [FusedHit(key, score, parts[key]) for ranking in rankings.values() for key, score in ranking[:limit]]
