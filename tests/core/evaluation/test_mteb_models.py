"""mteb can use NNM as an encoder and as a search; with mteb itself where it is installed."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import pytest
import torch
from tests.core.families import loaded

from nnm_core.embedding.kv_embedding import KVEmbedder
from nnm_core.errors import InvalidInputError
from nnm_core.evaluation.mteb_models import MtebEncoder, MtebSearch

CORPUS = [
    {"id": "bins", "title": "Bins", "text": "They go out on Monday. Paper is collected every second week."},
    {"id": "bus", "title": "", "text": "The bus leaves at noon. It stops at the old mill."},
    {"id": "cat", "text": "A cat sleeps on the wall. It wakes when the bus comes."},
    {"id": "blank", "title": "", "text": " "},
]
QUERIES = [{"id": "q1", "text": "When does the bus leave?"}, {"id": "q2", "text": "paper bins"}]
TASK: dict[str, Any] = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}


def test_vectors_are_those_of_the_embedder_in_the_role_that_mteb_names() -> None:
    model = loaded("qwen3")
    encoder = MtebEncoder(model)
    batches = [{"text": ["One text.", "Another one."]}, {"text": ["A third."], "title": ["t"]}]
    texts = ["One text.", "Another one.", "A third."]
    for prompt, role in (("query", "query"), ("document", "context"), (None, "context")):
        made = encoder.encode(batches, prompt_type=prompt, **TASK)
        np.testing.assert_allclose(made, KVEmbedder(model).encode(texts, role), atol=1e-5)
    with pytest.raises(InvalidInputError):
        encoder.encode([{"image": ["x"]}], **TASK)


def test_similarities_are_cosines() -> None:
    encoder = MtebEncoder(loaded("qwen3"))
    left, right = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[6.0, 8.0], [0.0, 2.0]])
    torch.testing.assert_close(encoder.similarity(left, right), torch.tensor([[1.0, 0.8], [0.6, 0.0]]))
    torch.testing.assert_close(encoder.similarity_pairwise(left, right), torch.tensor([1.0, 0.0]))


def test_search_finds_documents_by_id_best_first_and_only_what_may_be_found() -> None:
    search = MtebSearch(loaded("qwen3"))
    with pytest.raises(InvalidInputError):
        search.search(QUERIES, top_k=3)
    try:
        search.index(CORPUS, encode_kwargs={}, num_proc=None, **TASK)
        found = search.search(QUERIES, top_k=3, encode_kwargs={}, num_proc=None, **TASK)
        assert {query: max(scores, key=scores.__getitem__) for query, scores in found.items()} == {
            "q1": "bus",
            "q2": "bins",
        }
        assert all(len(scores) <= 3 and "blank" not in scores for scores in found.values())
        few = search.search(QUERIES, top_k=3, top_ranked={"q1": ["cat"], "q2": ["bus", "cat"]}, **TASK)
        assert set(few["q1"]) == {"cat"}
        assert set(few["q2"]) <= {"bus", "cat"}
        search.index(CORPUS[:1], **TASK)  # another task's documents replace the first one's
        assert set(search.search(QUERIES[:1], top_k=3, **TASK)["q1"]) <= {"bins"}
    finally:
        search.close()


def test_a_search_can_be_re_ranked_by_states() -> None:
    search = MtebSearch(loaded("qwen3"), rerank=True, tune=False)
    try:
        search.index(CORPUS, **TASK)
        assert set(search.search(QUERIES[:1], top_k=2, **TASK)["q1"]) == {"bus", "cat"}
    finally:
        search.close()


@pytest.mark.skipif(importlib.util.find_spec("mteb") is not None, reason="mteb is installed")
def test_without_mteb_its_description_says_what_to_install() -> None:
    with pytest.raises(InvalidInputError, match="mteb"):
        _ = MtebEncoder(loaded("qwen3")).mteb_model_meta


def test_mteb_itself_runs_both_on_a_retrieval_task() -> None:
    pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.mocks.mock_tasks.retrieval import MockRetrievalTask
    from mteb.models.model_meta import ModelMeta
    from mteb.models.models_protocols import EncoderProtocol, SearchProtocol

    task = MockRetrievalTask()
    split = {
        "corpus": datasets.Dataset.from_list([{"title": "", **row} for row in CORPUS[:3]]),
        "queries": datasets.Dataset.from_list(QUERIES),
        "relevant_docs": {"q1": {"bus": 1}, "q2": {"bins": 1}},
        "top_ranked": None,
    }
    task.dataset, task.data_loaded = {"default": {"test": split}}, True
    encoder, search = MtebEncoder(loaded("qwen3")), MtebSearch(loaded("qwen3"))
    assert isinstance(encoder, EncoderProtocol)
    assert not isinstance(encoder, SearchProtocol)
    assert isinstance(search, SearchProtocol)
    assert not isinstance(search, EncoderProtocol)
    try:
        for model, least in ((encoder, 0.0), (search, 1.0)):
            scores = task.evaluate(model, "test", encode_kwargs={"batch_size": 2})["default"]
            assert least <= scores["ndcg_at_10"] <= 1.0
            assert isinstance(model.mteb_model_meta, ModelMeta)
    finally:
        search.close()
