"""Search by a vector that somebody else made, by words alone, or by both with a given weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nnm_core.errors import InvalidInputError
from nnm_core.recall.fusion import FusedHit, Ranking, explain, fuse
from nnm_core.recall.search import SearchIndex, Vector
from nnm_core.storage.index import SparseVector

PREFETCH = 100


def search_parts(
    index: SearchIndex,
    *,
    dense: Vector | None,
    sparse: SparseVector | None,
    alpha: float,
    limit: int,
    filter: Any = None,
) -> list[FusedHit]:
    """The best points, best first.

    Args:
        index: where they are.
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
    if alpha > 0 and dense is not None:
        found = index.search_dense(dense, limit=reach, filter=filter)
        rankings["dense"] = [(hit.id, hit.score) for hit in found]
    if alpha < 1 and sparse is not None:
        words = index.search_sparse(sparse, limit=reach, filter=filter) if len(sparse.indices) else []
        rankings["sparse"] = [(hit.id, hit.score) for hit in words]
    if alpha in (0, 1):
        return _as_they_are(rankings, limit)
    return fuse(rankings, {"dense": alpha, "sparse": 1 - alpha}, method="rsf", limit=limit)


def _as_they_are(rankings: Mapping[str, Ranking], limit: int) -> list[FusedHit]:
    parts = explain(rankings)
    return [FusedHit(key, score, parts[key]) for ranking in rankings.values() for key, score in ranking[:limit]]
