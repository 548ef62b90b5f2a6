"""Cases about metadata filters: a truth table over six nodes, and that nothing fails open."""

# ruff: noqa: D102 - a case says by its name what it asks

from __future__ import annotations

from typing import Any

from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
)

from llamaindex_nnm.testing.base import EVERYBODY, StoreFactory, names, needs, node, people, query
from llamaindex_nnm.testing.needed import pytest

OP = FilterOperator
# key, operator, value, who passes
TABLE: list[tuple[str, FilterOperator, Any, set[str]]] = [
    ("field", OP.EQ, "games", {"d4"}),
    ("field", OP.EQ, "Games", set()),
    ("field", OP.EQ, "nothing like it", set()),
    ("born", OP.EQ, 1990, {"Bob", "e 5"}),
    ("born", OP.EQ, "1990", set()),
    ("score", OP.EQ, 1.5, {"Bob"}),
    ("score", OP.EQ, 2.0, {"c-3"}),
    ("absent", OP.EQ, "x", set()),
    ("field", OP.NE, "games", EVERYBODY - {"d4"}),
    ("born", OP.NE, 1990, EVERYBODY - {"Bob", "e 5"}),
    ("score", OP.NE, 1.5, EVERYBODY - {"Bob"}),
    ("absent", OP.NE, "x", EVERYBODY),
    ("born", OP.GT, 1990, {"c-3"}),
    ("born", OP.GTE, 1990, {"Bob", "c-3", "e 5"}),
    ("born", OP.LT, 1990, {"ada"}),
    ("born", OP.LTE, 1990, {"ada", "Bob", "e 5"}),
    ("score", OP.GT, 1.5, {"c-3"}),
    ("score", OP.LT, 1.75, {"Bob"}),
    ("absent", OP.GT, 0, set()),
    ("field", OP.IN, ["games", "sports"], {"c-3", "d4"}),
    ("born", OP.IN, [1815, 2001], {"ada", "c-3"}),
    ("born", OP.IN, ["1815", "2001"], set()),
    ("field", OP.NIN, ["games", "sports"], EVERYBODY - {"c-3", "d4"}),
    ("born", OP.NIN, [1815, 2001], EVERYBODY - {"ada", "c-3"}),
    ("tags", OP.ANY, ["warm", "quiet"], {"d4", "e 5"}),
    ("tags", OP.ANY, ["loud"], set()),
    ("tags", OP.ALL, ["indoor", "warm"], {"e 5"}),
    ("tags", OP.ALL, ["indoor"], {"d4", "e 5"}),
    ("tags", OP.CONTAINS, "quiet", {"d4"}),
    ("tags", OP.CONTAINS, "qui", set()),
    ("field", OP.TEXT_MATCH, "mat", {"ada"}),
    ("field", OP.TEXT_MATCH, "me", {"d4", "Bob"}),
    ("field", OP.TEXT_MATCH, "math", set()),
    ("field", OP.TEXT_MATCH_INSENSITIVE, "MATH", {"ada"}),
    ("field", OP.TEXT_MATCH_INSENSITIVE, "ME", {"d4", "Bob"}),
    ("born", OP.IS_EMPTY, None, {"d4", "f/6"}),
    ("tags", OP.IS_EMPTY, None, EVERYBODY - {"d4", "e 5"}),
    ("ref_doc_id", OP.EQ, "doc-2", {"c-3", "d4"}),
    ("doc_id", OP.IN, ["doc-1"], {"ada", "Bob"}),
]
BORN = MetadataFilter(key="born", value=1990, operator=OP.EQ)
HIGH = MetadataFilter(key="score", value=1.0, operator=OP.GT)
GAMES = MetadataFilter(key="field", value="games", operator=OP.EQ)


class FilterCases(StoreFactory):
    """Metadata filters."""

    @pytest.mark.parametrize(
        ("key", "operator", "value", "expected"), TABLE, ids=[f"{k} {o.value} {v}" for k, o, v, _ in TABLE]
    )
    def test_operator(
        self, store: BasePydanticVectorStore, key: str, operator: FilterOperator, value: Any, expected: set[str]
    ) -> None:
        store.add(people())
        one = MetadataFilters(filters=[MetadataFilter(key=key, value=value, operator=operator)])
        assert set(names(store.query(query(filters=one)))) == expected

    @pytest.mark.parametrize(
        ("condition", "expected"),
        [
            (FilterCondition.AND, {"Bob"}),
            (FilterCondition.OR, {"Bob", "c-3", "e 5"}),
            (FilterCondition.NOT, EVERYBODY - {"Bob", "c-3", "e 5"}),
            (None, {"Bob"}),
        ],
    )
    def test_condition(self, store: BasePydanticVectorStore, condition: Any, expected: set[str]) -> None:
        store.add(people())
        both = MetadataFilters(filters=[BORN, HIGH], condition=condition)
        assert set(names(store.query(query(filters=both)))) == expected

    def test_no_filters_restrict_nothing(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert set(names(store.query(query(filters=MetadataFilters(filters=[]))))) == EVERYBODY

    @needs("nested")
    def test_groups_nest(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        either = MetadataFilters(filters=[GAMES, BORN], condition=FilterCondition.OR)
        nested = MetadataFilters(filters=[either, HIGH], condition=FilterCondition.AND)
        assert names(store.query(query(filters=nested))) == ["Bob"]
        neither = MetadataFilters(filters=[nested, GAMES], condition=FilterCondition.NOT)
        assert set(names(store.query(query(filters=neither)))) == EVERYBODY - {"Bob", "d4"}

    def test_dots_are_part_of_a_key(self, store: BasePydanticVectorStore) -> None:
        store.add([node("one", [1.0, 0.0, 0.0], metadata={"a.b": "x"}), node("two", [0.0, 1.0, 0.0])])
        dotted = MetadataFilters(filters=[MetadataFilter(key="a.b", value="x")])
        assert names(store.query(query(filters=dotted))) == ["one"]

    def test_filters_hold_before_the_cut(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        assert names(store.query(query(filters=MetadataFilters(filters=[GAMES]), similarity_top_k=1))) == ["d4"]

    def test_an_operator_that_is_unknown_raises(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        strange = MetadataFilter(key="born", value=1990)
        strange.operator = "almost"  # type: ignore[assignment]  # what a newer LlamaIndex may bring
        with pytest.raises((ValueError, NotImplementedError)):
            store.query(query(filters=MetadataFilters(filters=[strange])))

    def test_text_matching_with_a_number_raises(self, store: BasePydanticVectorStore) -> None:
        store.add(people())
        wrong = MetadataFilters(filters=[MetadataFilter(key="field", value=3, operator=OP.TEXT_MATCH)])
        with pytest.raises((ValueError, TypeError, NotImplementedError)):
            store.query(query(filters=wrong))
