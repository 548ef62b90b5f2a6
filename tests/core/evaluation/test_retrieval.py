"""The experiment's parts agree with what they are made of."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from tests.core.families import loaded

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.embedding.pairs import SelfLabel
from nnm_core.embedding.tokens import SparseEncoder, SparseSettings
from nnm_core.evaluation import retrieval
from nnm_core.evaluation.retrieval import StateSide, fused, reranked
from nnm_core.model.load import LoadedModel
from nnm_core.recall.exact import DenseSide, SparseSide, top
from nnm_core.recall.rerank import Evidence, RerankSettings, StateReranker
from nnm_core.recall.state_pass import StateView
from nnm_core.states.capture import capture
from nnm_core.states.state import PlacedState, State

DOCUMENTS = {
    "bins": "Bins go out on Monday. Paper is collected every second week.",
    "bus": "The bus leaves at noon. It stops at the old mill and at the school.",
    "cat": "A cat sleeps on the wall. It wakes when the bus comes.",
}
LABEL = SelfLabel(1, "It stops at the old mill and at the school.", "The bus leaves at noon.")


def silent(_: str) -> None:
    pass


def sparse_side() -> SparseSide:
    return SparseSide.of(DOCUMENTS, SparseEncoder(None, SparseSettings(gram_weight=0)))


def test_top_is_sorted_and_breaks_ties_by_name() -> None:
    assert top(np.array([1.0, 3.0, 3.0]), ["a", "c", "b"], 2) == [("b", 3.0), ("c", 3.0)]


def test_sparse_ranking_leaves_out_documents_without_a_shared_word() -> None:
    assert [name for name, _ in sparse_side().rank("bus at noon", 9)] == ["bus", "cat"]


def test_a_document_is_found_by_a_word_that_is_expected_in_it() -> None:
    encoder = SparseEncoder(None, SparseSettings(gram_weight=0))
    assert SparseSide.of(DOCUMENTS, encoder).rank("tram", 9) == []
    found = SparseSide.of(DOCUMENTS, encoder, [None, {"tram": 0.4}, {}]).rank("tram", 9)
    assert [name for name, _ in found] == ["bus"]


def test_an_own_sentence_does_not_score_its_own_words_in_its_document() -> None:
    side = sparse_side()
    scores = dict(side.trial(LABEL, 3))
    assert set(scores) == set(DOCUMENTS)
    assert scores["bus"] < dict(side.rank(LABEL.query, 3))["bus"]


def test_the_right_document_is_always_a_candidate() -> None:
    names = [name for name, _ in sparse_side().trial(SelfLabel(0, "The bus at noon.", "x"), 2)]
    assert names[-1] == "bins"
    assert len(names) == 2


def test_dense_trials_use_the_document_without_the_sentence() -> None:
    embedder = KVEmbedder(loaded("qwen3"))
    raw = embedder.encode(list(DOCUMENTS.values()))
    side = DenseSide.of(list(DOCUMENTS), embedder, raw, whiten=False)
    (found,) = side.trials([LABEL], 3)
    query, rest = embedder.encode([LABEL.query], "query")[0], embedder.encode([LABEL.rest])[0]
    assert dict(found)["bus"] == pytest.approx(float(query @ rest), abs=1e-5)
    (plain,) = side.rank_all(embedder.encode([LABEL.query], "query"), 3)
    assert dict(plain)["cat"] == pytest.approx(dict(found)["cat"], abs=1e-6)


def test_evidence_gathered_in_blocks_is_that_of_asking_directly() -> None:
    model = loaded("qwen3")
    candidates = {"q1": [("bus", 2.0), ("cat", 1.0)], "q2": [("bins", 1.0), ("bus", 0.5)]}
    queries = {"q1": "When does the bus leave?", "q2": "When do the bins go out?"}
    settings = RerankSettings(heads=((1, 2),))
    small = StateSide(model, DOCUMENTS, tokens_per_block=1, tokens_per_pass=1)
    found = small.gather(candidates, queries, StateReranker(model, small.left, settings), silent)
    whole = StateSide(model, DOCUMENTS)
    states = dict(zip(DOCUMENTS, whole.states(list(DOCUMENTS.values())), strict=True))
    for query, ranking in candidates.items():
        direct = StateReranker(model, whole.left, settings).evidence(
            queries[query], {name: states[name] for name, _ in ranking}
        )
        assert set(found[query]) == set(direct)
        for name, evidence in direct.items():
            assert found[query][name].likelihood == pytest.approx(evidence.likelihood, abs=2e-4)
            np.testing.assert_allclose(found[query][name].attention, evidence.attention, atol=1e-3)


def test_blocks_and_passes_that_do_not_fit_are_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("qwen3")
    candidates = {"q1": [("bus", 2.0), ("cat", 1.0)], "q2": [("bins", 1.0), ("bus", 0.5)]}
    queries = {"q1": "When does the bus leave?", "q2": "When do the bins go out?"}
    side = StateSide(model, DOCUMENTS)
    whole = side.gather(candidates, queries, StateReranker(model, side.left), silent)
    blocks: list[int] = []
    states = StateSide.states

    def limited(self: StateSide, texts: Sequence[str]) -> list[StateView]:
        if len(texts) > 2:
            raise torch.OutOfMemoryError("no room")
        blocks.append(len(texts))
        return states(self, texts)

    def one_at_a_time(model: LoadedModel, rows: Sequence[Sequence[int]], left: PlacedState) -> list[State]:
        if len(rows) > 1:
            raise torch.OutOfMemoryError("no room")
        return capture(model, rows, left)

    monkeypatch.setattr(StateSide, "states", limited)
    monkeypatch.setattr(retrieval, "capture", one_at_a_time)
    parts = side.gather(candidates, queries, StateReranker(model, side.left), silent)
    assert blocks == [1, 2]
    for query, seen in whole.items():
        assert list(parts[query]) == [name for name, _ in candidates[query]] == list(seen)
        for name, evidence in seen.items():
            assert parts[query][name].likelihood == pytest.approx(evidence.likelihood, abs=2e-4)


@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_blocks_hold_all_documents_once_and_as_many_tokens_as_asked(budget: int) -> None:
    blocks = list(StateSide(loaded("qwen3"), DOCUMENTS, tokens_per_block=budget)._blocks(list(DOCUMENTS)))
    assert [name for block in blocks for name in block] == list(DOCUMENTS)
    assert len(blocks) == {1: 3, 40: 2, 10_000: 1}[budget]


def test_rerank_trials_read_the_document_without_its_sentence() -> None:
    model = loaded("qwen3")
    side = StateSide(model, DOCUMENTS)
    (trial,) = side.trials([LABEL], [[("bus", 2.0), ("cat", 1.0)]], RerankSettings(), silent)
    assert trial.gold == "bus"
    assert trial.first == {"bus": 2.0, "cat": 1.0}
    direct = StateReranker(model, side.left, all_heads=True).evidence(
        LABEL.query, dict(zip(["rest", "cat"], side.states([LABEL.rest, DOCUMENTS["cat"]]), strict=True))
    )
    assert trial.evidence["bus"].likelihood == pytest.approx(direct["rest"].likelihood, abs=2e-4)
    assert trial.evidence["bus"].attention.shape == (16,)


def test_reranked_rankings_keep_everyone_and_fall_in_score() -> None:
    def evidence(value: float) -> Evidence:
        return Evidence(value, np.zeros(0, np.float32), np.zeros(0, np.float32))

    first = {"q": [("a", 3.0), ("b", 2.0), ("c", 1.0), ("d", 0.5)]}
    got = reranked(first, {"q": {"a": evidence(0.0), "b": evidence(1.0)}}, {"likelihood": 1.0})["q"]
    assert [name for name, _ in got] == ["b", "a", "c", "d"]
    assert [score for _, score in got] == sorted((score for _, score in got), reverse=True)
    assert reranked(first, {"q": {}}, {"likelihood": 1.0})["q"][0][0] == "a"


def test_fused_rankings_are_fused_query_by_query() -> None:
    parts = {"sparse": {"q": [("a", 2.0), ("b", 1.0)]}, "dense": {"q": [("c", 0.9), ("b", 0.1)]}}
    assert [name for name, _ in fused(parts, {"sparse": 1.0, "dense": 0.5}, 2)["q"]] == ["a", "c"]
