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


ABSENT = "nodes that lack the key do not pass"
UNSUPPORTED = "the operator is not supported"
TOKENS = "text is matched by whole tokens"
UUIDS = "only UUIDs, and they come back in lower case"
NEAREST = "the mode is not heeded, the nearest are given"
QDRANT_FAILURES = {
    "test_operator[field != games]": ABSENT,
    "test_operator[born != 1990]": ABSENT,
    "test_operator[score != 1.5]": ABSENT,
    "test_operator[absent != x]": ABSENT,
    "test_operator[field nin ['games', 'sports']]": ABSENT,
    "test_operator[born nin [1815, 2001]]": ABSENT,
    "test_operator[tags any ['warm', 'quiet']]": UNSUPPORTED,
    "test_operator[tags any ['loud']]": UNSUPPORTED,
    "test_operator[tags all ['indoor', 'warm']]": UNSUPPORTED,
    "test_operator[tags all ['indoor']]": UNSUPPORTED,
    "test_operator[tags contains quiet]": UNSUPPORTED,
    "test_operator[tags contains qui]": UNSUPPORTED,
    "test_operator[field text_match mat]": TOKENS,
    "test_operator[field text_match me]": TOKENS,
    "test_operator[field text_match_insensitive MATH]": TOKENS,
    "test_operator[field text_match_insensitive ME]": TOKENS,
    "test_dots_are_part_of_a_key": "a dot reaches into nested metadata",
    "test_an_empty_store_finds_nothing": "raises until something was added",
    "test_clear_takes_everything_and_the_store_goes_on": "raises until something was added",
    "test_async_clear": "raises until something was added",
    "test_adding_nothing_is_no_error": "raises",
    "test_any_string_is_an_id_and_comes_back_as_it_was": UUIDS,
    "test_diversity[0.5-expected4]": NEAREST,
    "test_diversity[None-expected5]": NEAREST,
    "test_diversity[0.2-expected6]": NEAREST,
    "test_diversity[0.0-expected7]": NEAREST,
    "test_diversity[0.0-expected8]": NEAREST,
    "test_condition[None-expected3]": "restricts nothing: the filters fail open",
    "test_modes_that_are_not_supported_raise": NEAREST,
}


@pytest.mark.skipif(
    importlib.util.find_spec("llama_index.vector_stores") is None, reason="LlamaIndex's Qdrant store is not installed"
)
@pytest.mark.filterwarnings("ignore")  # its own affair
class TestQdrantVectorStore(VectorStoreConformance):
    """For comparison."""

    lacks: ClassVar = {"sparse", "hybrid"}
    known_failures: ClassVar = QDRANT_FAILURES

    def make_store(self) -> Any:
        from llama_index.vector_stores.qdrant import QdrantVectorStore
        from qdrant_client import AsyncQdrantClient, QdrantClient

        return QdrantVectorStore("c", client=QdrantClient(":memory:"), aclient=AsyncQdrantClient(":memory:"))


class TestNNMLLM(LLMConformance):
    """Our LLM."""

    def make_llm(self) -> NNMLLM:
        return NNMLLM(open_engine(), max_tokens=8)
