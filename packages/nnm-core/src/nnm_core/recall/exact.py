"""Exact scoring of sparse vectors by the formula of the index: for tuning on a sample, for tests and for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from nnm_core.embedding.tokens import SparseVector


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
