"""The published suite on our store and LLM, on LlamaIndex's own simple store as a control, and on its Qdrant store."""

from __future__ import annotations

import importlib.util
from typing import Any, ClassVar

import pytest
from llama_index.core.vector_stores import SimpleVectorStore
from tests.llamaindex.reader import open_engine

from llamaindex_nnm import NNMLLM, NNMVectorStore
from llamaindex_nnm.testing import LLMConformance, VectorStoreConformance


class TestNNMVectorStore(VectorStoreConformance):
    """Ours, with another embedder's vectors."""

    def make_store(self) -> NNMVectorStore:
        return NNMVectorStore(open_engine(), vectors="foreign")


class TestNNMVectorStoreOnDisk(VectorStoreConformance):
    """The same in the embedded index, on disk."""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Any) -> None:
        self.path = tmp_path

    def make_store(self) -> NNMVectorStore:
        return NNMVectorStore(open_engine(self.path), vectors="foreign")


class TestSimpleVectorStore(VectorStoreConformance):
    """The control: what fails here is known to be missing in LlamaIndex's own store."""

    lacks: ClassVar = {"get_nodes", "nested", "sparse", "hybrid", "text"}
    known_failures: ClassVar = {
        "test_it_is_a_vector_store_with_a_name": "its to_dict() is its data, without a name",
        "test_an_empty_list_of_nodes_restricts_nothing": "finds nothing then",
        "test_only_these_documents": "doc_ids are ignored",
        "test_an_index_is_restricted_to_documents": "doc_ids are ignored",
        "test_restrictions_and_filters_hold_together": "doc_ids are ignored",
        "test_the_query_may_say_how_diverse": "mmr_threshold of the query is ignored",
    }

    def make_store(self) -> SimpleVectorStore:
        return SimpleVectorStore()


@pytest.mark.skipif(
    importlib.util.find_spec("llama_index.vector_stores") is None, reason="LlamaIndex's Qdrant store is not installed"
)
class TestQdrantVectorStore(VectorStoreConformance):
    """For comparison."""

    lacks: ClassVar = {"sparse", "hybrid"}
    known_failures: ClassVar = {}

    def make_store(self) -> Any:
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import AsyncQdrantClient, QdrantClient

        return QdrantVectorStore("c", client=QdrantClient(":memory:"), aclient=AsyncQdrantClient(":memory:"))


class TestNNMLLM(LLMConformance):
    """Our LLM."""

    def make_llm(self) -> NNMLLM:
        return NNMLLM(open_engine(), max_tokens=8)
