"""Cases about finding nodes: order, restrictions, diversity, words, and the way through an index."""

# ruff: noqa: D102 - a case says by its name what it asks

from __future__ import annotations

from typing import Any

from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import QueryBundle
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQueryMode,
)

from llamaindex_nnm.testing.base import (
    EVERYBODY,
    NORTH,
    StoreFactory,
    keys,
    names,
    names_of,
    needs,
    node,
    people,
    query,
)
from llamaindex_nnm.testing.needed import pytest

# Two nodes alike next to the query, one on the other side, one far away: what diversity has to choose among.
CHOICE = [
    node("a", [0.9, 0.1, 0.0]),
    node("b", [0.9, 0.12, 0.0]),
    node("c", [0.8, -0.6, 0.0]),
    node("d", [0.1, 0.0, 0.99]),
]


class QueryCases(StoreFactory):
    """Finding nodes by vector, words, id and document."""

    def test_an_empty_store_finds_nothing(self, store: BasePydanticVectorStore) -> None:
        assert names(store.query(query())) == []

    def test_the_nearest_come_first_with_their_cosines(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        found = store.query(query(similarity_top_k=4))
        assert names(found) == ["ada", "Bob", "c-3", "d4"]
        assert found.similarities == pytest.approx([1.0, 0.948683, 0.759257, 0.406138], abs=1e-4)

    @pytest.mark.parametrize("k", [1, 3, 6, 50])
    def test_as_many_as_asked_for(self, store: BasePydanticVectorStore, k: int) -> None:
        store.add(people())
        assert len(names(store.query(query(similarity_top_k=k)))) == min(k, 6)

    def test_the_length_of_a_vector_does_not_matter(self, store: BasePydanticVectorStore) -> None:
        store.add([node("long", [0.0, 50.0, 0.0]), node("short", [0.01, 0.0, 0.0])])
        assert names(store.query(query(similarity_top_k=1))) == ["short"]

    def test_opposite_vectors_are_negative(self, store: BasePydanticVectorStore) -> None:
        store.add([node("opposite", [-1.0, 0.0, 0.0]), node("across", [0.0, 1.0, 0.0])])
        found = store.query(query())
        assert names(found) == ["across", "opposite"]
        assert found.similarities == pytest.approx([0.0, -1.0], abs=1e-5)

    # -- restrictions -------------------------------------------------------------------------------------------

    def test_only_these_nodes(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert names(store.query(query(node_ids=keys("d4", "Bob", "nobody")))) == ["Bob", "d4"]

    def test_an_empty_list_of_nodes_restricts_nothing(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert set(names(store.query(query(node_ids=[])))) == EVERYBODY

    def test_only_these_documents(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert set(names(store.query(query(doc_ids=["doc-1", "doc-3"])))) == EVERYBODY - {"c-3", "d4"}
        assert names(store.query(query(doc_ids=["doc-9"]))) == []

    def test_an_empty_list_of_documents_restricts_nothing(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert set(names(store.query(query(doc_ids=[])))) == EVERYBODY

    def test_restrictions_and_filters_hold_together(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        born = MetadataFilters(filters=[MetadataFilter(key="born", value=1990)])
        assert names(store.query(query(node_ids=keys("ada", "Bob"), filters=born))) == ["Bob"]
        assert names(store.query(query(doc_ids=["doc-3"], filters=born))) == ["e 5"]
        assert names(store.query(query(doc_ids=["doc-2"], node_ids=keys("ada", "d4")))) == ["d4"]

    # -- diversity ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("threshold", "expected"),
        [
            (1.0, ["a"]),
            (1.0, ["a", "b"]),
            (1.0, ["a", "b", "c", "d"]),
            (0.9, ["a", "b"]),
            (0.5, ["a", "c"]),
            (None, ["a", "c"]),
            (0.2, ["a", "d"]),
            (0.0, ["a", "d"]),
            (0.0, ["a", "d", "c"]),
        ],
    )
    def test_diversity(self, store: BasePydanticVectorStore, threshold: float | None, expected: list[str]) -> None:
        # One is relevance alone, zero diversity alone, and nothing said is half of each.
        store.add(CHOICE)
        options: dict[str, Any] = {} if threshold is None else {"mmr_threshold": threshold}
        asked = query(mode=VectorStoreQueryMode.MMR, similarity_top_k=len(expected))
        assert names(store.query(asked, **options)) == expected

    def test_the_query_may_say_how_diverse(self, store: BasePydanticVectorStore) -> None:
        store.add(CHOICE)
        asked = query(mode=VectorStoreQueryMode.MMR, similarity_top_k=2, mmr_threshold=1.0)
        assert names(store.query(asked)) == ["a", "b"]

    def test_diversity_respects_filters(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        born = MetadataFilters(filters=[MetadataFilter(key="born", value=1990)])
        assert set(names(store.query(query(mode=VectorStoreQueryMode.MMR, filters=born)))) == {"Bob", "e 5"}

    # -- words --------------------------------------------------------------------------------------------------

    @needs("sparse")
    def test_words_alone(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        found = store.query(query(mode=VectorStoreQueryMode.SPARSE, query_str="Who bakes bread?", similarity_top_k=1))
        assert names(found) == ["e 5"]

    @needs("hybrid")
    @pytest.mark.parametrize(("alpha", "first"), [(0.0, "e 5"), (0.1, "e 5"), (0.9, "ada"), (1.0, "ada")])
    def test_words_and_vectors(self, store: BasePydanticVectorStore, alpha: float, first: str) -> None:
        store.add(people())
        asked = query(mode=VectorStoreQueryMode.HYBRID, query_str="Who bakes bread?", alpha=alpha)
        assert names(store.query(asked))[0] == first

    @pytest.mark.parametrize("mode", [VectorStoreQueryMode.SEMANTIC_HYBRID, VectorStoreQueryMode.TEXT_SEARCH])
    def test_modes_that_are_not_supported_raise(self, store: BasePydanticVectorStore, mode: Any) -> None:
        store.add(people())
        with pytest.raises((ValueError, NotImplementedError)):
            store.query(query(mode=mode, query_str="bread"))

    # -- through an index ---------------------------------------------------------------------------------------

    def _index(self, store: BasePydanticVectorStore) -> VectorStoreIndex:
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(nodes=[], storage_context=context, embed_model=MockEmbedding(embed_dim=3))
        index.insert_nodes(people())
        return index

    def test_an_index_finds_its_nodes(self, store: BasePydanticVectorStore) -> None:
        found = self._index(store).as_retriever(similarity_top_k=10).retrieve(QueryBundle("who?", embedding=NORTH))
        assert names_of(scored.node for scored in found) == EVERYBODY
        assert all(scored.score is not None and scored.node.get_content() for scored in found)

    @pytest.mark.parametrize("mode", [VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR])
    def test_an_index_is_restricted_to_documents(self, store: BasePydanticVectorStore, mode: Any) -> None:
        retriever = self._index(store).as_retriever(
            similarity_top_k=10, doc_ids=["doc-3"], vector_store_query_mode=mode
        )
        assert names_of(scored.node for scored in retriever.retrieve("who?")) == {"e 5", "f/6"}

    def test_an_index_is_restricted_by_filters(self, store: BasePydanticVectorStore) -> None:
        born = MetadataFilters(filters=[MetadataFilter(key="born", value=1990)])
        retriever = self._index(store).as_retriever(similarity_top_k=10, filters=born)
        assert names_of(scored.node for scored in retriever.retrieve("who?")) == {"Bob", "e 5"}

    def test_an_index_deletes_a_document(self, store: BasePydanticVectorStore) -> None:
        index = self._index(store)
        index.delete_ref_doc("doc-1")
        found = index.as_retriever(similarity_top_k=10).retrieve("who?")
        assert names_of(scored.node for scored in found) == EVERYBODY - {"ada", "Bob"}

    @needs("async")
    async def test_an_index_asks_asynchronously(self, store: BasePydanticVectorStore) -> None:
        context = StorageContext.from_defaults(vector_store=store)
        index = VectorStoreIndex(nodes=[], storage_context=context, embed_model=MockEmbedding(embed_dim=3))
        await index.ainsert_nodes(people())
        found = await index.as_retriever(similarity_top_k=10).aretrieve("who?")
        assert names_of(scored.node for scored in found) == EVERYBODY
