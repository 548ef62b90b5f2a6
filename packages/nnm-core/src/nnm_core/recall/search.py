"""First-stage search: query text -> vectors -> two prefetches in the index -> one fused, explained ranking."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nnm_core.errors import InvalidInputError
from nnm_core.recall.dialogue import Ask, Asking, answer_now
from nnm_core.recall.fusion import FusedHit, FusionMethod, Ranking, fuse
from nnm_core.storage.index import SparseVector

Vector = NDArray[np.float32]


class Scored(Protocol):
    """A point that an index found: `id` and `score`, higher is better."""

    @property
    def id(self) -> str:
        """The point's id."""
        ...

    @property
    def score(self) -> float:
        """Its similarity."""
        ...


class SearchIndex(Protocol):
    """The two calls of a vector index that a search needs."""

    def search_dense(self, vector: Any, *, limit: int, filter: Any = None) -> Sequence[Scored]:
        """Nearest points by the dense vector, best first."""
        ...

    def search_sparse(self, vector: Any, *, limit: int, filter: Any = None) -> Sequence[Scored]:
        """Best points by the sparse vector, best first."""
        ...


@dataclass(frozen=True)
class SearchSettings:
    """How the two prefetches are put together; stored with the collection.

    Attributes:
        weights: weight of ``dense`` and ``sparse``. By default the sparse ranking alone: `tune_weights` gives the
            dense one a say once the collection's own documents have shown that it helps.
        method: relative-score (``rsf``) or reciprocal-rank (``rrf``) fusion.
        prefetch: how many points each ranking brings in, at least; four times the wanted number if that is more.
        rrf_k: the constant of reciprocal-rank fusion.
    """

    weights: Mapping[str, float] = field(default_factory=lambda: {"sparse": 1.0, "dense": 0.0})
    method: FusionMethod = "rsf"
    prefetch: int = 100
    rrf_k: float = 60.0

    def with_weights(self, **weights: float) -> SearchSettings:
        """The same settings with other weights."""
        return replace(self, weights={**self.weights, **weights})

    def to_dict(self) -> dict[str, Any]:
        """JSON-like values; `SearchSettings(**values)` reads them back."""
        return {**asdict(self), "weights": dict(self.weights)}


class Searcher:
    """Searches one index.

    Args:
        index: where the points are.
        dense: query text -> whitened dense vector [dim]; None leaves the dense ranking out.
        sparse: query text -> sparse vector.
        tokens: query text -> token vectors [n, token_dim] that the index scores the best candidates anew with; None
            where it keeps no token vectors.
        settings: see `SearchSettings`.
    """

    def __init__(
        self,
        index: SearchIndex,
        *,
        dense: Callable[[str], Vector] | None,
        sparse: Callable[[str], SparseVector],
        tokens: Callable[[str], Vector] | None = None,
        settings: SearchSettings | None = None,
    ) -> None:
        self._index = index
        self._dense = dense
        self._sparse = sparse
        self._tokens = tokens
        self.settings = settings or SearchSettings()

    def search(self, text: str, limit: int = 10, *, filter: Any = None, vector: Vector | None = None) -> list[FusedHit]:
        """The best points for a query text, best first.

        When fewer documents than asked for share a word with the query, the dense ranking fills the list up whatever
        its weight, behind the others and with scores below 0: a guess by meaning is better than nothing.

        Args:
            text: the query.
            limit: how many at most.
            filter: what the index understands; it holds for both prefetches.
            vector: the query's dense vector, whitened, if it has been made already.

        Raises:
            InvalidInputError: an empty query or a limit below 1.
        """
        return answer_now(self.searching(text, limit, filter=filter, vector=vector), self._index)

    def searching(
        self, text: str, limit: int = 10, *, filter: Any = None, vector: Vector | None = None
    ) -> Asking[list[FusedHit]]:
        """`search` as a dialogue, for an index that may have to be awaited."""
        if not text.strip():
            raise InvalidInputError("The query is empty.")
        if limit < 1:
            raise InvalidInputError("At least one hit must be asked for.")
        rankings = yield from self._rankings(text, max(self.settings.prefetch, 4 * limit), filter, vector)
        weights = dict(self.settings.weights)
        if not rankings["sparse"]:
            weights = {"dense": 1.0}
        hits = fuse(rankings, weights, method=self.settings.method, rrf_k=self.settings.rrf_k)
        if self._tokens is not None and weights.get("tokens", 0) > 0:
            hits = yield from self._rescored(self._tokens(text), hits[: self.settings.prefetch], weights["tokens"])
        hits = hits[:limit]
        return hits + _fill(hits, rankings.get("dense", ()), limit - len(hits))

    def _rescored(self, asked: Vector, hits: list[FusedHit], weight: float) -> Asking[list[FusedHit]]:
        """The candidates with the token level's say: MaxSim beside the fused score, both from 0 to 1."""
        if not hits or not len(asked):
            return hits
        options = {"ids": [hit.id for hit in hits], "limit": len(hits)}
        (found,) = yield [Ask("rescore_tokens", asked, options)]
        parts = {hit.id: hit.parts for hit in hits}
        first = [(hit.id, hit.score) for hit in hits]
        both = fuse({"first": first, "tokens": _ranking(found)}, {"first": 1.0, "tokens": weight}, method="rsf")
        shown = ("tokens", "tokens_rank")
        return [
            FusedHit(hit.id, hit.score, {**parts[hit.id], **{k: v for k, v in hit.parts.items() if k in shown}})
            for hit in both
        ]

    def _rankings(self, text: str, limit: int, filter: Any, vector: Vector | None) -> Asking[dict[str, Ranking]]:
        words = self._sparse(text)
        if vector is None and self._dense is not None:
            vector = self._dense(text)
        options = {"limit": limit, "filter": filter}
        asks = {"sparse": Ask("search_sparse", words, options)} if len(words.indices) else {}
        if vector is not None:
            asks["dense"] = Ask("search_dense", vector, options)
        found = yield list(asks.values())
        return {"sparse": []} | {name: _ranking(points) for name, points in zip(asks, found, strict=True)}


def _fill(hits: Sequence[FusedHit], dense: Ranking, missing: int) -> list[FusedHit]:
    """Up to `missing` further hits of the dense ranking, scored by cosine - 1."""
    known = {hit.id for hit in hits}
    rest = [(rank, key, score) for rank, (key, score) in enumerate(dense, start=1) if key not in known]
    return [
        FusedHit(key, min(score - 1.0, 0.0), {"dense": score, "dense_rank": float(rank)})
        for rank, key, score in rest[: max(missing, 0)]
    ]


def _ranking(points: Sequence[Scored]) -> Ranking:
    """(id, score) pairs, best first, ties by id: an index may return equal scores in any order."""
    return sorted(((str(point.id), float(point.score)) for point in points), key=lambda pair: (-pair[1], pair[0]))
