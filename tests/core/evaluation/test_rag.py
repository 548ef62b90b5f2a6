"""Classic RAG finds what its formulas say, and reads what it finds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.core.tiny import tiny_reader

from nnm_core import NNM
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.embedders import EmbeddingRetriever, embeddings_of, minilm, minilm_is_installed
from nnm_core.evaluation.rag import BM25Retriever, ClassicRag, best, default_retriever

TEXTS = ["The bins are collected on Tuesday.", "Maria leads the Falcon project.", "The key hangs behind the door."]


def test_bm25_is_its_formula() -> None:
    retriever = BM25Retriever(k1=0.9, b=0.4)
    retriever.index(["a b b", "a c", "d"])
    (first, score), (second, other), *_ = retriever.search("b a", 3)
    idf_a, idf_b = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    norms = [0.9 * (0.6 + 0.4 * length / 2) for length in (3, 2)]
    assert (first, second) == (0, 1)
    assert score == pytest.approx(idf_a * 1 / (1 + norms[0]) + idf_b * 2 / (2 + norms[0]), rel=1e-5)
    assert other == pytest.approx(idf_a * 1 / (1 + norms[1]), rel=1e-5)


def test_best_breaks_ties_by_place() -> None:
    assert [place for place, _ in best(np.asarray([1, 3, 3, 2], dtype=np.float32), 3)] == [1, 2, 3]


@pytest.mark.skipif(not minilm_is_installed(), reason="needs the extra 'demo'")
def test_minilm_finds_meaning_without_shared_words() -> None:
    retriever = EmbeddingRetriever(minilm())
    retriever.index(TEXTS)
    (place, score), *_ = retriever.search("garbage pickup day", 3)
    assert TEXTS[place] == TEXTS[0]
    assert -1.0 <= score <= 1.0
    ((same, one),) = retriever.search(TEXTS[1], 1)
    assert same == 1
    assert one == pytest.approx(1.0, abs=1e-5)
    assert retriever.bytes_vectors == len(TEXTS) * 384 * 4
    retriever.close()


class Letters:
    """LangChain's embedder interface: one dimension a letter."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [[float(text.lower().count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def test_any_embeddings_object_is_an_embedder_and_indexing_replaces() -> None:
    retriever = EmbeddingRetriever(Letters())
    with pytest.raises(InvalidInputError, match="nothing to search"):
        retriever.search("zzz", 1)
    retriever.index(["aaa", "bbb", "ccc"])
    assert retriever.search("b", 1)[0] == (1, pytest.approx(1.0))
    retriever.index(["bbb", "zzz"])
    assert [place for place, _ in retriever.search("z", 2)] == [1, 0]
    assert retriever.name == "Letters, Qdrant"
    retriever.close()


def test_an_embedder_that_does_not_exist_is_named() -> None:
    with pytest.raises(InvalidInputError, match="no/such-embedder"):
        embeddings_of("no/such-embedder")


def test_without_minilm_bm25_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nnm_core.evaluation.embedders.minilm_is_installed", lambda: False)
    assert isinstance(default_retriever(), BM25Retriever)
    with pytest.raises(InvalidInputError, match="demo"):
        minilm()


class SlowRetriever:
    """Always the same order; its clock is the one of the test."""

    name = "slow"

    def index(self, texts: Any) -> None:
        self.count = len(texts)

    def search(self, query: str, k: int) -> list[tuple[int, float]]:
        return [(2, 0.5), (0, 0.25)][:k]


def test_the_arm_reads_the_retrieved_texts_in_nnms_own_layout() -> None:
    with NNM.open(tiny_reader(), None) as engine:
        memories = engine.add(TEXTS, ids=["a", "b", "c"])
        answer = ClassicRag.over(engine, SlowRetriever(), memories).answer("Where is it?", k=2, max_tokens=4)
        same = engine.answer("Where is it?", memories=["c", "a"], mode="read", max_tokens=4)
    assert answer.token_ids == same.token_ids
    assert [(hit.memory.id, hit.score) for hit in answer.hits] == [("c", 0.5), ("a", 0.25)]
    assert answer.receipt.tokens_injected == 0
    assert answer.receipt.tokens_read == same.receipt.tokens_read


def test_the_time_of_the_retrieval_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with NNM.open(tiny_reader(), None) as engine:
        rag = ClassicRag.over(engine, SlowRetriever(), engine.add(TEXTS))
        times = iter([100.0, 107.0])
        monkeypatch.setattr("nnm_core.evaluation.rag.time.perf_counter", lambda: next(times, 0.0))
        receipt = rag.answer("Where is it?", k=1, max_tokens=1).receipt
    # The clock stood still for the engine, so what is left is the retrieval.
    assert receipt.seconds_to_first_token == pytest.approx(7.0)
    assert receipt.seconds_total == pytest.approx(7.0)
