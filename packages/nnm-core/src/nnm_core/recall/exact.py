"""Exact scoring by the formulas of the index: for tuning on a sample of documents, for tests and for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.pairs import SelfLabel
from nnm_core.embedding.tokens import SparseEncoder
from nnm_core.embedding.whitening import SufficientStatistics, Whitening
from nnm_core.recall.fusion import Ranking
from nnm_core.storage.index import SparseVector

Vectors = NDArray[np.float32]


class ExactSparse:
    """All documents in one matrix; scores are sum_t q_t * IDF(t) * w(t, d) with Qdrant's and Lucene's IDF.

    Args:
        documents: sparse vectors of the documents, in order.
    """

    def __init__(self, documents: Sequence[SparseVector]) -> None:
        self.count = len(documents)
        indices = np.concatenate([vector.indices for vector in documents]) if documents else np.zeros(0, np.int64)
        values = np.concatenate([vector.values for vector in documents]) if documents else np.zeros(0, np.float32)
        offsets = np.cumsum([0, *(len(vector.indices) for vector in documents)])
        self._terms, columns = np.unique(indices, return_inverse=True)
        matrix = sparse.csr_matrix((values, columns, offsets), shape=(self.count, len(self._terms)))
        holding = np.bincount(columns, minlength=len(self._terms))
        self._idf = np.log1p((self.count - holding + 0.5) / (holding + 0.5))
        self._by_term = matrix.tocsc()

    def idf(self, indices: NDArray[np.int64]) -> NDArray[np.float64]:
        """IDF of term ids; that of a term in no document for unknown ones."""
        place, known = self._find(indices)
        unknown = np.log1p((self.count + 0.5) / 0.5)
        return np.where(known, self._idf[place] if len(self._idf) else unknown, unknown)

    def scores(self, query: SparseVector) -> NDArray[np.float64]:
        """Scores of all documents, [documents]."""
        place, known = self._find(query.indices)
        place = place[known]
        weights = query.values[known] * self._idf[place]
        return np.asarray(self._by_term[:, place] @ weights, dtype=np.float64).ravel()

    def score_of(self, query: SparseVector, document: SparseVector) -> float:
        """The score that `document`, which need not be in the collection, would have in it."""
        shared, mine, its = np.intersect1d(query.indices, document.indices, return_indices=True)
        return float((query.values[mine] * document.values[its] * self.idf(shared)).sum())

    def _find(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        place = np.searchsorted(self._terms, indices)
        place = np.minimum(place, max(len(self._terms) - 1, 0))
        known = self._terms[place] == indices if len(self._terms) else np.zeros(len(indices), bool)
        return place, known


def top(scores: NDArray[np.floating], names: Sequence[str], limit: int) -> Ranking:
    """The best `limit` documents with a score above the worst possible, ties by name."""
    order = np.lexsort((np.array(names), -scores))[:limit]
    return [(names[index], float(scores[index])) for index in order]


@dataclass
class SparseSide:
    """The documents' sparse vectors with an exact scorer."""

    names: list[str]
    encoder: SparseEncoder
    scorer: ExactSparse

    @classmethod
    def of(
        cls,
        documents: Mapping[str, str],
        encoder: SparseEncoder,
        expected: Sequence[Mapping[str, float] | None] | None = None,
    ) -> SparseSide:
        """Encode all documents, with the words that are `expected` in each; the mean length is theirs."""
        encoder = encoder.with_average_length(encoder.average_length(list(documents.values())))
        more = expected or [None] * len(documents)
        vectors = [encoder.document(text, words) for text, words in zip(documents.values(), more, strict=True)]
        return cls(list(documents), encoder, ExactSparse(vectors))

    def rank(self, text: str, limit: int, *, expected: Mapping[str, float] | None = None) -> Ranking:
        """Best documents that share a term with the text or with the words that are `expected` in it."""
        found = top(self.scorer.scores(self.encoder.query(text, expected)), self.names, limit)
        return [(name, score) for name, score in found if score > 0]

    def trial(self, label: SelfLabel, limit: int) -> Ranking:
        """The ranking for an own sentence, with its document scored as if the sentence were not in it."""
        query = self.encoder.query(label.query)
        scores = self.scorer.scores(query)
        scores[label.document] = self.scorer.score_of(query, self.encoder.document(label.rest))
        return _with_gold(scores, self.names, label.document, limit)


@dataclass
class DenseSide:
    """The documents' whitened vectors with exact cosine search."""

    names: list[str]
    embedder: KVEmbedder
    whitening: Whitening
    vectors: Vectors

    @classmethod
    def of(cls, names: Sequence[str], embedder: KVEmbedder, raw: Vectors, *, whiten: bool = True) -> DenseSide:
        """Fit the whitening on the documents' raw vectors, [documents, dim]."""
        statistics = SufficientStatistics(embedder.dim)
        statistics.add(raw)
        whitening = Whitening.fit(statistics) if whiten else Whitening.identity(embedder.dim)
        return cls(list(names), embedder, whitening, whitening.transform(raw))

    def rank_all(self, raw_queries: Vectors, limit: int) -> list[Ranking]:
        """One ranking a raw query vector."""
        scores = self.whitening.transform(raw_queries) @ self.vectors.T
        return [top(row, self.names, limit) for row in scores]

    def trials(self, labels: Sequence[SelfLabel], limit: int) -> list[Ranking]:
        """Rankings for own sentences, with each one's document embedded without it."""
        queries = self.whitening.transform(self.embedder.encode([label.query for label in labels], "query"))
        rests = self.whitening.transform(self.embedder.encode([label.rest for label in labels], "context"))
        rankings: list[Ranking] = []
        for label, query, rest in zip(labels, queries, rests, strict=True):
            scores = self.vectors @ query
            scores[label.document] = rest @ query
            rankings.append(_with_gold(scores, self.names, label.document, limit))
        return rankings


def eight_bits(vectors: Vectors) -> Vectors:
    """Vectors [n, dim] as one signed byte a number and one scale a vector would give them back."""
    scale = np.abs(vectors).max(axis=1, keepdims=True).clip(min=1e-12) / 127
    rounded: Vectors = (np.round(vectors / scale) * scale).astype(np.float32)
    return rounded


def _with_gold(scores: NDArray[np.floating], names: Sequence[str], gold: int, limit: int) -> Ranking:
    """The best documents; the right one is put last where it is not among them, with its own score."""
    found = list(top(scores, names, limit))
    if names[gold] not in {name for name, _ in found}:
        found[-1:] = [(names[gold], float(scores[gold]))]
    return found
