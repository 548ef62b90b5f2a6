from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pytest
from qdrant_client import models as q

from nnm_core.errors import FilterError
from nnm_core.storage.filters import And, Compare, Filter, Not, Or, matches, parse_filter

ROW: dict[str, Any] = {
    "n": 3, "f": 2.5, "one": 1.0, "yes": True, "zero": 0, "s": "Berlin", "none": None, "empty": [], "blank": "",
    "tags": ["a", "b"], "nums": [1, 5], "deep": {"x": {"y": "z"}, "l": [{"y": 1}]}, "dot.key": "quoted",
    "day": "2026-01-31", "moment": "2026-01-31T12:00:00+02:00", "big": 2**53 + 1, "mixed": [None, True, 1, "1"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (None, True),
        ({}, True),
        ({"s": "Berlin"}, True),
        ({"s": "berlin"}, False),
        ({"n": 3}, True),
        ({"n": 3.0}, True),
        ({"n": "3"}, False),
        ({"one": 1}, True),
        ({"one": True}, False),
        ({"yes": True}, True),
        ({"yes": 1}, False),
        ({"yes": {"$ne": 1}}, True),
        ({"zero": False}, False),
        ({"none": None}, True),
        ({"lacking": None}, False),
        ({"big": 2**53 + 1}, True),
        ({"big": 2**53}, False),
        ({"tags": "a"}, True),
        ({"tags": {"$contains": "b"}}, True),
        ({"tags": {"$contains": "c"}}, False),
        ({"tags": {"$ne": "a"}}, False),
        ({"tags": ["x", "b"]}, True),
        ({"mixed": None}, True),
        ({"mixed": True}, True),
        ({"mixed": False}, False),
        ({"s": {"$in": ["Rome", "Berlin"]}}, True),
        ({"s": {"$in": []}}, False),
        ({"s": {"$nin": []}}, True),
        ({"s": {"$nin": ["Berlin"]}}, False),
        ({"lacking": {"$ne": 1}}, True),
        ({"lacking": {"$nin": [1]}}, True),
        ({"n": {"$gt": 2, "$lt": 4}}, True),
        ({"n": {"$gt": 3}}, False),
        ({"n": {"$gte": 3}}, True),
        ({"n": {"$lte": 2.999}}, False),
        ({"yes": {"$gte": 0}}, False),
        ({"s": {"$gte": 0}}, False),
        ({"nums": {"$gt": 4}}, True),
        ({"day": {"$gte": "2026-01-31"}}, True),
        ({"day": {"$gt": "2026-01-31T00:00:00Z"}}, False),
        ({"moment": {"$lt": "2026-01-31T10:00:01Z"}}, True),
        ({"moment": {"$gte": datetime(2026, 1, 31, 10, tzinfo=UTC)}}, True),
        ({"day": date(2026, 1, 31)}, True),
        ({"s": {"$lt": "2026-01-31"}}, False),
        ({"s": {"$text": "erl"}}, True),
        ({"s": {"$text": "ERL"}}, False),
        ({"s": {"$itext": "ERL"}}, True),
        ({"s": {"$itext": "ERX"}}, False),
        ({"n": {"$text": "3"}}, False),
        ({"none": {"$exists": True}}, True),
        ({"lacking": {"$exists": True}}, False),
        ({"lacking": {"$exists": False}}, True),
        ({"blank": {"$is_empty": True}}, False),
        ({"empty": {"$is_empty": True}}, True),
        ({"none": {"$is_empty": True}}, True),
        ({"lacking": {"$is_empty": True}}, True),
        ({"n": {"$is_empty": False}}, True),
        ({"deep.x.y": "z"}, True),
        ({"deep.x": "z"}, False),
        ({"deep.l.y": 1}, False),
        ({'"dot.key"': "quoted"}, True),
        ({"dot.key": "quoted"}, False),
        ({"$and": [{"n": 3}, {"s": "Berlin"}]}, True),
        ({"$or": [{"n": 4}, {"s": "Berlin"}]}, True),
        ({"$or": [{"n": 4}]}, False),
        ({"$not": {"n": 4}}, True),
        ({"n": 3, "s": "Rome"}, False),
        ({"$and": [{"$or": [{"n": 1}, {"n": 3}]}, {"$not": {"tags": "z"}}]}, True),
    ],
)
def test_truth_table(condition: Any, expected: bool) -> None:
    assert matches(parse_filter(condition), ROW) is expected


@pytest.mark.parametrize(
    "condition",
    [
        "n = 3",
        ["n", 3],
        {"": 1},
        {1: 1},
        {"a..b": 1},
        {".a": 1},
        {"a.": 1},
        {'"a': 1},
        {"n": {}},
        {"n": {"$foo": 1}},
        {"n": {"gt": 1}},
        {"n": {"$gt": 1, "plain": 2}},
        {"$foo": []},
        {"$and": []},
        {"$or": {}},
        {"$or": "ab"},
        {"$and": [{}]},
        {"$and": [None]},
        {"$not": {}},
        {"$not": [{"a": 1}]},
        {"n": {"$in": "abc"}},
        {"n": {"$in": 3}},
        {"n": {"$in": [[1]]}},
        {"n": {"$in": [{}]}},
        {"n": {"$gt": "abc"}},
        {"n": {"$gt": True}},
        {"n": {"$gt": None}},
        {"n": {"$gt": float("nan")}},
        {"n": {"$gt": "2026-13-45"}},
        {"n": float("inf")},
        {"n": 2**63},
        {"n": object()},
        {"n": b"x"},
        {"n": "\ud800"},
        {"n": {"$text": ""}},
        {"n": {"$text": 3}},
        {"n": {"$itext": 3}},
        {"n": {"$exists": 1}},
        {"n": {"$is_empty": "yes"}},
        {"n": {"$eq": [1]}},
    ],
)
def test_what_is_not_understood_never_passes(condition: Any) -> None:
    with pytest.raises(FilterError) as caught:
        parse_filter(condition)
    assert str(caught.value)


def test_a_tree_is_taken_as_it_is() -> None:
    tree = And((Or((Compare(("a",), "eq", 1),)), Not(Compare(("b",), "exists", True))))
    assert parse_filter(tree) is tree


def field(key: str, **kwargs: Any) -> q.FieldCondition:
    return q.FieldCondition(key=f"metadata.{key}", **kwargs)


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        (q.Filter(must=[field("s", match=q.MatchValue(value="Berlin"))]), True),
        (q.Filter(must=field("s", match=q.MatchValue(value="Rome"))), False),
        (q.Filter(must_not=[field("s", match=q.MatchValue(value="Rome"))]), True),
        (q.Filter(should=[field("n", match=q.MatchAny(any=[1, 3])), field("s", match=q.MatchValue(value="x"))]), True),
        (q.Filter(must=[field("n", range=q.Range(gt=2, lte=3))]), True),
        (q.Filter(must=[field("n", range=q.Range(gt=3))]), False),
        (q.Filter(must=[field("day", range=q.DatetimeRange(gte=datetime(2026, 1, 31, tzinfo=UTC)))]), True),
        (q.Filter(must=[q.IsNullCondition(is_null=q.PayloadField(key="metadata.none"))]), True),
        (q.Filter(must=[q.IsEmptyCondition(is_empty=q.PayloadField(key="metadata.n"))]), False),
        (q.Filter(must=[field("n", is_empty=False)]), True),
        (q.Filter(must=[q.Filter(should=[field("deep.x.y", match=q.MatchValue(value="z"))])]), True),
        (
            q.Filter(
                min_should=q.MinShould(
                    conditions=[
                        field("n", match=q.MatchValue(value=3)),
                        field("n", match=q.MatchValue(value=4)),
                        field("s", match=q.MatchValue(value="Berlin")),
                    ],
                    min_count=2,
                )
            ),
            True,
        ),
    ],
)
def test_qdrant_filters_are_understood(condition: q.Filter, expected: bool) -> None:
    assert matches(parse_filter(condition), ROW) is expected


@pytest.mark.parametrize(
    "condition",
    [
        q.Filter(must=[q.HasIdCondition(has_id=[1])]),
        q.Filter(must=[q.FieldCondition(key="id", match=q.MatchValue(value="x"))]),
        q.Filter(must=[field("tags[]", match=q.MatchValue(value="x"))]),
        q.Filter(must=[field("s", match=q.MatchText(text="berlin"))]),
        q.Filter(must=[field("s", match=q.MatchExcept(**{"except": ["x"]}))]),
        q.Filter(must=[field("s", values_count=q.ValuesCount(gt=1))]),
        q.Filter(must=[field("n", range=q.Range())]),
        q.Filter(must=[field("n", range=q.Range(gt=1), match=q.MatchValue(value=1))]),
        q.Filter(must=[q.Filter()]),
        q.FieldCondition(key="metadata.n", match=q.MatchValue(value=1)),
        q.Filter(must=[q.NestedCondition(nested=q.Nested(key="metadata.deep", filter=q.Filter()))]),
    ],
)
def test_qdrant_filters_that_have_no_place_here_are_refused(condition: Any) -> None:
    with pytest.raises(FilterError):
        parse_filter(condition)


def test_an_empty_qdrant_filter_asks_for_everything() -> None:
    nothing: Filter | None = parse_filter(q.Filter())
    assert nothing is None
