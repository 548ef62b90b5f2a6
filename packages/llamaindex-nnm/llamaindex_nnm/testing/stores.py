"""Cases about keeping nodes: adding, replacing, reading back, deleting, each sync and async."""

# ruff: noqa: D102 - a case says by its name what it asks

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.schema import MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llamaindex_nnm.testing.base import (
    EVERYBODY,
    NORTH,
    StoreFactory,
    key,
    keys,
    names,
    names_of,
    needs,
    node,
    people,
    query,
)
from llamaindex_nnm.testing.needed import pytest

BORN_1990 = MetadataFilters(filters=[MetadataFilter(key="born", value=1990, operator=FilterOperator.EQ)])


class StoreCases(StoreFactory):
    """Adding, reading back and deleting."""

    def test_it_is_a_vector_store_with_a_name(self, store: BasePydanticVectorStore) -> None:
        assert isinstance(store, BasePydanticVectorStore)
        assert store.class_name() not in ("", "base_component")
        assert store.to_dict()["class_name"] == store.class_name()

    def test_add_returns_the_ids_in_order(self, store: BasePydanticVectorStore) -> None:
        assert store.add(people()) == [person.node_id for person in people()]

    def test_adding_nothing_is_no_error(self, store: BasePydanticVectorStore) -> None:
        assert store.add([]) == []

    def test_what_was_added_is_found(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert set(names(store.query(query()))) == EVERYBODY

    @pytest.mark.parametrize("id", ["plain", "UPPER-lower", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "ü/ñ 日本", "1"])
    def test_any_string_is_an_id_and_comes_back_as_it_was(self, store: BasePydanticVectorStore, id: str) -> None:
        assert store.add([TextNode(id_=id, text="Text.", embedding=NORTH)]) == [id]
        assert list(store.query(query()).ids or []) == [id]
        store.delete_nodes(node_ids=[id])
        assert list(store.query(query()).ids or []) == []

    def test_adding_a_known_id_replaces_the_node(self, store: BasePydanticVectorStore) -> None:
        store.add([node("one", NORTH, metadata={"v": 1}), node("two", [0.0, 1.0, 0.0])])
        store.add([node("one", [0.0, 0.0, 1.0], metadata={"v": 2})])
        assert len(names(store.query(query()))) == 2
        assert names(store.query(query(query_embedding=[0.0, 0.0, 1.0])))[0] == "one"
        old = MetadataFilters(filters=[MetadataFilter(key="v", value=1)])
        assert names(store.query(query(filters=old))) == []

    def test_adding_the_same_twice_changes_nothing(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        before = store.query(query())
        store.add(people())
        after = store.query(query())
        assert (names(before), before.similarities) == (names(after), after.similarities)

    def test_the_given_nodes_are_not_changed(self, store: BasePydanticVectorStore) -> None:
        given, same = people(), people()
        store.add(given)
        assert [person.to_dict() for person in given] == [person.to_dict() for person in same]

    # -- reading back -------------------------------------------------------------------------------------------

    @needs("get_nodes")
    def test_nodes_come_back_by_id_with_their_embeddings(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        found = store.get_nodes(node_ids=keys("Bob", "d4"))
        assert names_of(found) == {"Bob", "d4"}
        for person in found:
            assert person.embedding is not None
            assert len(person.embedding) == 3

    @needs("get_nodes")
    def test_unknown_ids_are_passed_over(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert names_of(store.get_nodes(node_ids=keys("nobody", "ada"))) == {"ada"}
        assert list(store.get_nodes(node_ids=keys("nobody"))) == []

    @needs("get_nodes")
    def test_nodes_come_back_by_filter(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert names_of(store.get_nodes(filters=BORN_1990)) == {"Bob", "e 5"}

    @needs("text")
    def test_text_and_metadata_come_back_as_they_were(self, store: BasePydanticVectorStore) -> None:
        metadata: dict[str, Any] = {"n": 3, "x": 0.25, "none": None, "list": ["a", "b"], "flag": True, "ü": "日本"}
        store.add([node("one", NORTH, "  Leading blanks,\n\ttabs and 日本語.  ", metadata=metadata)])
        found = (store.query(query()).nodes or [])[0]
        assert found.get_content(metadata_mode=MetadataMode.NONE) == "  Leading blanks,\n\ttabs and 日本語.  "
        assert found.metadata == metadata

    @needs("text")
    def test_relationships_templates_and_excluded_keys_survive(self, store: BasePydanticVectorStore) -> None:
        given = TextNode(
            id_=key("one"),
            text="Text.",
            embedding=NORTH,
            metadata={"seen": 1, "hidden": 2},
            excluded_llm_metadata_keys=["hidden"],
            excluded_embed_metadata_keys=["seen"],
            metadata_template="{key}={value}",
            metadata_separator="; ",
            text_template="<{metadata_str}> {content}",
            start_char_idx=5,
            end_char_idx=10,
            relationships={
                NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", metadata={"title": "T"}),
                NodeRelationship.NEXT: RelatedNodeInfo(node_id="two"),
            },
        )
        store.add([given])
        found = (store.query(query()).nodes or [])[0]
        assert found.get_content(metadata_mode=MetadataMode.LLM) == "<seen=1> Text."
        assert found.get_content(metadata_mode=MetadataMode.EMBED) == given.get_content(MetadataMode.EMBED)
        assert found.ref_doc_id == "doc"
        assert found.relationships == given.relationships
        assert (found.start_char_idx, found.end_char_idx) == (5, 10)  # type: ignore[attr-defined]  # of text nodes

    # -- deleting -----------------------------------------------------------------------------------------------

    def test_deleting_a_document_takes_its_nodes_and_no_others(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        store.delete("doc-2")
        assert set(names(store.query(query()))) == EVERYBODY - {"c-3", "d4"}

    def test_deleting_an_unknown_document_is_no_error(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        store.delete("doc-9")
        assert set(names(store.query(query()))) == EVERYBODY

    def test_nodes_are_deleted_by_id(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        store.delete_nodes(node_ids=keys("ada", "f/6"))
        assert set(names(store.query(query()))) == EVERYBODY - {"ada", "f/6"}

    def test_nodes_are_deleted_by_filter(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        store.delete_nodes(filters=BORN_1990)
        assert set(names(store.query(query()))) == EVERYBODY - {"Bob", "e 5"}

    def test_ids_and_filters_delete_what_both_name(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        store.delete_nodes(node_ids=keys("ada", "Bob"), filters=BORN_1990)
        assert set(names(store.query(query()))) == EVERYBODY - {"Bob"}

    def test_clear_takes_everything_and_the_store_goes_on(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        store.clear()
        assert names(store.query(query())) == []
        store.add(people()[:1])
        assert names(store.query(query())) == ["ada"]

    def test_a_deleted_node_can_be_added_again(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        store.delete_nodes(node_ids=keys("ada"))
        store.add(people()[:1])
        assert names(store.query(query()))[0] == "ada"

    # -- the same, async ----------------------------------------------------------------------------------------

    @needs("async")
    async def test_async_add_and_query(self, store: BasePydanticVectorStore) -> None:
        assert await store.async_add(people()) == [person.node_id for person in people()]
        assert set(names(await store.aquery(query()))) == EVERYBODY

    @needs("async", "get_nodes")
    async def test_async_get_nodes(self, store: BasePydanticVectorStore) -> None:
        await store.async_add(people())
        assert names_of(await store.aget_nodes(node_ids=keys("Bob"))) == {"Bob"}
        assert names_of(await store.aget_nodes(filters=BORN_1990)) == {"Bob", "e 5"}

    @needs("async")
    async def test_async_delete(self, store: BasePydanticVectorStore) -> None:
        await store.async_add(people())
        await store.adelete("doc-2")
        assert set(names(await store.aquery(query()))) == EVERYBODY - {"c-3", "d4"}

    @needs("async")
    async def test_async_delete_nodes(self, store: BasePydanticVectorStore) -> None:
        await store.async_add(people())
        await store.adelete_nodes(node_ids=keys("ada"))
        await store.adelete_nodes(filters=BORN_1990)
        assert set(names(await store.aquery(query()))) == EVERYBODY - {"ada", "Bob", "e 5"}

    @needs("async")
    async def test_async_clear(self, store: BasePydanticVectorStore) -> None:
        await store.async_add(people())
        await store.aclear()
        assert names(await store.aquery(query())) == []

    @needs("async")
    async def test_many_may_add_and_ask_at_once(self, store: BasePydanticVectorStore) -> None:
        await store.async_add([node("start", NORTH)])
        await asyncio.gather(*(store.async_add([node(f"n{n}", [1.0, n / 10, 0.0])]) for n in range(8)))
        results = await asyncio.gather(*(store.aquery(query(similarity_top_k=20)) for _ in range(8)))
        assert all(len(names(result)) == 9 for result in results)
