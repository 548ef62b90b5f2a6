from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.errors import InvalidInputError
from nnm_core.recall.search import Searcher, SearchSettings

TEXTS = {
    "bins": "the bins are collected on monday",
    "bus": "the bus leaves at noon",
    "cat": "the cat sleeps on the bins",
}


@dataclass(frozen=True)
class Point:
    id: str
    score: float


class ExactIndex:
    """Holds everything in dictionaries and notes what it was asked."""

    def __init__(self) -> None:
        self.encoder = SparseEncoder(None, SparseSettings(gram_weight=0))
        self.dense = {"bins": [1.0, 0.0], "bus": [0.0, 1.0], "cat": [0.6, 0.8]}
        self.calls: list[tuple[str, int, Any]] = []

    def search_dense(self, vector: Any, *, limit: int, filter: Any = None) -> Sequence[Point]:
        self.calls.append(("dense", limit, filter))
        found = [Point(key, float(np.dot(vector, other))) for key, other in self.dense.items()]
        return sorted(found, key=lambda point: -point.score)[:limit]

    def search_sparse(self, vector: Any, *, limit: int, filter: Any = None) -> Sequence[Point]:
        self.calls.append(("sparse", limit, filter))
        query = dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))
        found = []
        for key, text in TEXTS.items():
            document = self.encoder.document(text)
            score = sum(query.get(i, 0) * v for i, v in zip(document.indices.tolist(), document.values, strict=True))
            if score > 0:
                found.append(Point(key, float(score)))
        return sorted(found, key=lambda point: -point.score)[:limit]


def searcher(**weights: float) -> tuple[Searcher, ExactIndex]:
    index = ExactIndex()
    settings = SearchSettings().with_weights(**weights)
    dense = lambda text: np.array([0.0, 1.0], np.float32)  # noqa: E731
    return Searcher(index, dense=dense, sparse=index.encoder.query, settings=settings), index


def test_by_default_an_untried_dense_vector_cannot_hurt() -> None:
    engine, _ = searcher()
    hits = engine.search("monday bins", 2)
    assert [hit.id for hit in hits] == ["bins", "cat"]
    assert set(hits[0].parts) == {"sparse", "sparse_rank", "dense", "dense_rank"}


def test_weights_bring_the_dense_ranking_in() -> None:
    engine, _ = searcher(dense=5.0)
    assert engine.search("monday bins", 3)[0].id == "bus"


def test_the_dense_ranking_fills_up_what_shares_no_word_with_the_query() -> None:
    engine, _ = searcher()
    hits = engine.search("monday bins", 3)
    assert [hit.id for hit in hits] == ["bins", "cat", "bus"]
    assert hits[2].score <= 0 <= hits[1].score
    assert hits[2].parts == {"dense": 1.0, "dense_rank": 1.0}


def test_a_query_without_known_words_is_answered_by_meaning() -> None:
    engine, _ = searcher()
    assert engine.search("departure", 1)[0].id == "bus"
    assert engine.search("?!", 1)[0].id == "bus"


def test_filter_and_limit_reach_both_prefetches() -> None:
    engine, index = searcher()
    engine.search("bins", 200, filter={"kind": "note"})
    assert index.calls == [("sparse", 800, {"kind": "note"}), ("dense", 800, {"kind": "note"})]


def test_without_a_dense_encoder_only_words_are_used() -> None:
    index = ExactIndex()
    engine = Searcher(index, dense=None, sparse=index.encoder.query)
    assert [hit.id for hit in engine.search("bus", 2)] == ["bus"]
    assert engine.search("departure", 2) == []


@pytest.mark.parametrize(("text", "limit"), [("", 1), (" \n", 1), ("x", 0)])
def test_empty_queries_and_limits_are_refused(text: str, limit: int) -> None:
    with pytest.raises(InvalidInputError):
        searcher()[0].search(text, limit)


def test_settings_survive_a_mapping() -> None:
    settings = SearchSettings(weights={"sparse": 1.0, "dense": 0.25}, method="rrf")
    assert SearchSettings(**settings.to_dict()) == settings
