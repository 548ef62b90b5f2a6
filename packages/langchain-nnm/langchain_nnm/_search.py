"""Searches of a vector store, run on an engine: options, filling up, variety, and what a score means."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from langchain_nnm._engine import scope_of
from nnm_core import Hit, InvalidInputError


@dataclass(frozen=True)
class EngineSearch:
    """Searches one engine.

    Attributes:
        nnm: the open engine.
        foreign: another embedder's vectors are stored and compared.
        alpha: 1 ranks by vectors alone, 0 by words alone; None leaves it to the engine.
        scope: who may inject what is found.
    """

    nnm: Any
    foreign: bool = False
    alpha: float | None = None
    scope: str = ""

    def search(
        self,
        query: str,
        vector: list[float] | None,
        k: int,
        *,
        filter: Any = None,
        alpha: float | None = None,
        scope: str | None = None,
        **unknown: Any,
    ) -> list[Hit]:
        """The `k` best memories, each leased.

        Where fewer than `k` share a word with the query, the nearest by vector follow, with score 0: stores are
        expected to give what they have.
        """
        asked = self._asked(query, vector, k, alpha, filter=filter, scope=scope, **unknown)
        try:
            hits: list[Hit] = self.nnm.search(**asked)
        except InvalidInputError:
            if self._empty(vector):
                return []
            raise
        return hits if _enough(hits, asked) else _filled(hits, self.nnm.search(**asked | {"alpha": 1}), k)

    async def asearch(
        self,
        query: str,
        vector: list[float] | None,
        k: int,
        *,
        alpha: float | None = None,
        **options: Any,
    ) -> list[Hit]:
        """As `search`: awaited where the engine's index is on a server, else off the event loop."""
        asked = self._asked(query, vector, k, alpha, **options)
        try:
            hits: list[Hit] = await self.nnm.asearch(**asked)
        except InvalidInputError:
            if await asyncio.to_thread(self._empty, vector):
                return []
            raise
        return hits if _enough(hits, asked) else _filled(hits, await self.nnm.asearch(**asked | {"alpha": 1}), k)

    def _asked(
        self,
        query: str,
        vector: list[float] | None,
        k: int,
        alpha: float | None,
        *,
        filter: Any = None,
        scope: str | None = None,
        **unknown: Any,
    ) -> dict[str, Any]:
        refuse_unknown(unknown)
        return {
            "query": query,
            "k": k,
            "filter": filter,
            "scope": scope_of(self.scope, None) if scope is None else scope,
            "vector": vector,
            "alpha": self.alpha if alpha is None else alpha,
        }

    def _empty(self, vector: list[float] | None) -> bool:
        """Whether the namespace has not learnt yet how long another embedder's vectors are."""
        return vector is not None and next(self.nnm.find(), None) is None

    def relevance(self, alpha: float | None) -> Callable[[float], float]:
        """What turns a score of such a search into a number between 0 and 1."""
        alpha = self.alpha if alpha is None else alpha
        if alpha == 0:
            return lambda words: words / (1 + words)
        if alpha == 1 or (alpha is None and self.foreign):
            return lambda cosine: min(1.0, max(0.0, (cosine + 1) / 2))
        return lambda fused: min(1.0, max(0.0, fused))

    def diverse(self, hits: list[Hit], k: int, lambda_mult: float) -> list[Hit]:
        """`k` of the hits that are relevant and differ from each other."""
        if not hits:
            return []
        top = max(1.0, *(hit.score for hit in hits), 1.0)
        chosen = diverse([hit.score / top for hit in hits], self._likeness(hits), k=k, lambda_mult=lambda_mult)
        return [hits[index] for index in chosen]

    def _likeness(self, hits: list[Hit]) -> list[list[float]]:
        vectors = self.nnm.vectors([hit.memory.id for hit in hits])
        known = [index for index, vector in enumerate(vectors) if vector is not None]
        likeness = [[0.0] * len(hits) for _ in hits]
        if known:
            units = self.nnm.comparable([vectors[index] for index in known])
            for row, cosines in zip(known, (units @ units.T).tolist(), strict=True):
                for column, cosine in zip(known, cosines, strict=True):
                    likeness[row][column] = cosine
        return likeness


def _enough(hits: list[Hit], asked: dict[str, Any]) -> bool:
    return len(hits) >= asked["k"] or asked["vector"] is not None or asked["alpha"] is not None


def _filled(hits: list[Hit], nearest: list[Hit], k: int) -> list[Hit]:
    seen = {hit.memory.id for hit in hits}
    more = [Hit(hit.memory, 0.0, hit.parts) for hit in nearest if hit.memory.id not in seen]
    return [*hits, *more[: k - len(hits)]]


def diverse(
    relevance: Sequence[float], likeness: Sequence[Sequence[float]], *, k: int, lambda_mult: float
) -> list[int]:
    """Pick `k` of n, one after the other: argmax of ``lambda * relevance - (1 - lambda) * max likeness to the picked``.

    Carbonell and Goldstein 1998. With ``lambda_mult`` 1 the order is that of relevance, with 0 only variety counts.

    Args:
        relevance: n scores, at most 1.
        likeness: [n, n] cosines.
        k: how many at most.
        lambda_mult: between 0 and 1.

    Raises:
        InvalidInputError: `lambda_mult` is not between 0 and 1.
    """
    if not 0 <= lambda_mult <= 1:
        raise InvalidInputError(f"lambda_mult is {lambda_mult}.", hint="1 is relevance alone, 0 variety alone.")
    picked: list[int] = []
    waiting = list(range(len(relevance)))
    while waiting and len(picked) < k:

        def gain(index: int) -> float:
            repeated = max((likeness[index][other] for other in picked), default=0.0)
            return lambda_mult * relevance[index] - (1 - lambda_mult) * repeated

        # The first pick is the most relevant one whatever lambda is; ties go to the better ranked.
        best = max(waiting, key=gain) if picked else max(waiting, key=lambda index: relevance[index])
        waiting.remove(best)
        picked.append(best)
    return picked


def refuse_unknown(options: dict[str, Any], *, allowed: tuple[str, ...] = ()) -> None:
    """Raise `InvalidInputError` for options that nothing understands: a misspelt filter must not find everything."""
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise InvalidInputError(
            f"{', '.join(unknown)}: not an option of NNMVectorStore.",
            hint="Searches take filter, alpha and scope.",
        )
