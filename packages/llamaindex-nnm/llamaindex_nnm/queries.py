"""What each query mode of a vector store asks of the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode

from nnm_core import Hit, InvalidInputError

if TYPE_CHECKING:
    from nnm_core import NNM

Recall = Literal["engine", "vector"]
_CANDIDATES = 100
_HYBRID = 0.5


def run(
    nnm: NNM,
    query: VectorStoreQuery,
    condition: Mapping[str, Any] | None,
    *,
    native: bool,
    recall: Recall,
    scope: str,
    mmr_threshold: float | None = None,
    mmr_prefetch_k: int | None = None,
) -> list[Hit]:
    """The hits of a query, best first, leased to `scope`.

    Args:
        nnm: the engine.
        query: mode, vector, text and numbers.
        condition: the filter, in the engine's form.
        native: the namespace holds the engine's own vectors.
        recall: what the default mode does on native vectors.
        scope: who may inject the hits.
        mmr_threshold: 1 is relevance alone, 0 diversity alone.
        mmr_prefetch_k: how many candidates are looked at for diversity.

    Raises:
        InvalidInputError: an unsupported mode, or what the mode needs is missing.
    """
    text, vector, k = query.query_str or "", query.query_embedding, query.similarity_top_k
    if query.mode == VectorStoreQueryMode.DEFAULT:
        as_engine = native and recall == "engine" and bool(text.strip())
        if not as_engine and vector is None:
            _need(text if native else "", "a query embedding")
        return nnm.search(text, k, condition, scope=scope, vector=vector, alpha=None if as_engine else 1.0)
    if query.mode == VectorStoreQueryMode.SPARSE:
        _need(text, "a query text")
        return nnm.search(text, query.sparse_top_k or k, condition, scope=scope, alpha=0.0)
    if query.mode == VectorStoreQueryMode.HYBRID:
        _need(text, "a query text")
        alpha = _HYBRID if query.alpha is None else query.alpha
        return nnm.search(text, query.hybrid_top_k or k, condition, scope=scope, vector=vector, alpha=alpha)
    if query.mode == VectorStoreQueryMode.MMR:
        threshold = query.mmr_threshold if mmr_threshold is None else mmr_threshold
        reach = max(mmr_prefetch_k or max(_CANDIDATES, 4 * k), k)
        return _diverse(nnm, query, condition, threshold, reach, scope)
    raise InvalidInputError(
        f"Query mode {query.mode.value!r} is not supported.", hint="Use default, mmr, sparse or hybrid."
    )


def _need(given: str, what: str) -> None:
    if not given.strip():
        raise InvalidInputError(f"This query mode needs {what}.")


def _diverse(
    nnm: NNM,
    query: VectorStoreQuery,
    condition: Mapping[str, Any] | None,
    threshold: float | None,
    reach: int,
    scope: str,
) -> list[Hit]:
    """Maximal marginal relevance as LlamaIndex itself computes it, over the nearest candidates."""
    if query.query_embedding is None:
        raise InvalidInputError("This query mode needs a query embedding.")
    # Candidates are only looked at; a scope of their own keeps them from being injected.
    found = nnm.search("", reach, condition, scope=f"{scope}\x00candidates", vector=query.query_embedding, alpha=1.0)
    hits = {hit.memory.id: hit for hit in found}
    raw = {key: row for key, row in zip(hits, nnm.vectors(list(hits)), strict=True) if row is not None}
    if not raw:
        return []
    compared = nnm.comparable(list(raw.values()))
    scores, ids = get_top_k_mmr_embeddings(
        query_embedding=nnm.comparable([query.query_embedding])[0].tolist(),
        embeddings=compared.tolist(),
        similarity_top_k=query.similarity_top_k,
        embedding_ids=list(raw),
        mmr_threshold=threshold,
    )
    chosen = [Hit(hits[key].memory, float(score), hits[key].parts) for key, score in zip(ids, scores, strict=True)]
    nnm.leases.take((hit.memory for hit in chosen), scope=scope)
    return chosen
