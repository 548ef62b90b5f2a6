"""Embedded index, qdrant-client and the pure-Python meaning of a filter must agree, whatever rows and filters are."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.core.storage.support import DIM, both, uid

from nnm_core.errors import FilterError
from nnm_core.storage import edge as edge_module
from nnm_core.storage.filters import And, Filter, Or, is_date, matches, parse_filter
from nnm_core.storage.index import Point, VectorIndex

_dates = st.sampled_from(
    """2026-01-31|2026-01-31T00:00:00Z|2026-01-31T01:00:00+01:00|2026-01-31 00:00|2026-02-01T00:00:00.5Z|2026
    2025-12-31T23:59:59.999999Z|2026-01-31T00:00:00|2026-01-31T12:30+05:30|2026-01-31T12:30Z|2026-01-31T12:30:00.25
    2026-01-31 12:30:00-03:00|2026-01-31 12:30:00.123|2026-01-31T12:30|2026-01-31T24:00:00|0001-01-01|2026-02-30
    20260131|next week""".replace("\n    ", "|").split("|")
)
_scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 2, -1, 1.0, 2.5, -0.0, 2**53, 2**53 + 1, 2**53 - 1, -(2**63), 2**63 - 1, 1e300])
    | st.sampled_from(["", "a", "A", "ab", "1", "true", "é", "xaby", "a b", "$b"])
    | _dates
)
_keys = st.sampled_from(["k", "l", "$b", "a.b", 'q"q', "ü", "in dex", "b[]", "back\\slash"])
_values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=2), max_leaves=4
)
_rows = st.lists(st.dictionaries(_keys, _values, max_size=4), min_size=1, max_size=8)


def _quoted(key: str) -> str:
    return f'"{key}"' if "." in key or key.startswith("$") else key


_paths = st.one_of(_keys.map(_quoted), st.tuples(_keys, _keys).map(lambda two: ".".join(map(_quoted, two))))
_bounds = st.sampled_from([0, 1, 1.5, -1, 2**53, 1e300]) | _dates.filter(is_date)
_conditions = st.one_of(
    st.tuples(_paths, _scalars).map(lambda kv: {kv[0]: kv[1]}),
    st.tuples(_paths, st.sampled_from(["$eq", "$ne", "$contains"]), _scalars).map(lambda t: {t[0]: {t[1]: t[2]}}),
    st.tuples(_paths, st.sampled_from(["$in", "$nin"]), st.lists(_scalars, max_size=3)).map(
        lambda t: {t[0]: {t[1]: t[2]}}
    ),
    st.tuples(_paths, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), _bounds).map(lambda t: {t[0]: {t[1]: t[2]}}),
    st.tuples(_paths, st.sampled_from(["a", "A", "é", "ab", " ", "6-01"])).map(lambda t: {t[0]: {"$text": t[1]}}),
    st.tuples(_paths, st.sampled_from(["a", "É", "AB"])).map(lambda t: {t[0]: {"$itext": t[1]}}),
    st.tuples(_paths, st.sampled_from(["$exists", "$is_empty"]), st.booleans()).map(lambda t: {t[0]: {t[1]: t[2]}}),
)
_filters = st.recursive(
    _conditions,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$and": parts}),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"$or": parts}),
        inner.map(lambda part: {"$not": part}),
    ),
    max_leaves=4,
)


@pytest.fixture(params=["plain", "with field indexes"])
def indexes(
    request: pytest.FixtureRequest, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[VectorIndex, VectorIndex]]:
    if request.param != "plain":
        monkeypatch.setattr(edge_module, "_FIELD_INDEX_FROM", 1)
    pair = both(fast_path)
    yield pair
    for index in pair:
        index.close()


def _fill(index: VectorIndex, rows: list[dict[str, Any]]) -> None:
    index.delete(list(index.ids()))
    index.upsert([_point(number, row) for number, row in enumerate(rows)])


def _point(number: int, row: dict[str, Any]) -> Point:
    return Point(uid(number), np.ones(DIM), payload={"id": str(number), "metadata": row})


def _passing(index: VectorIndex, condition: Filter) -> set[str]:
    found = {hit.id for hit in index.search_dense(np.ones(DIM), limit=100, filter=condition)}
    assert index.count(condition) == len(found)
    return found


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_rows, conditions=st.lists(_filters, min_size=1, max_size=6))
def test_all_three_agree(
    indexes: tuple[VectorIndex, VectorIndex], rows: list[dict[str, Any]], conditions: list[dict[str, Any]]
) -> None:
    for index in indexes:
        _fill(index, rows)
    for given_form in conditions:
        condition = parse_filter(given_form)
        assert condition is not None
        expected = {uid(number) for number, row in enumerate(rows) if matches(condition, row)}
        for index in indexes:
            assert _passing(index, condition) == expected, (type(index).__name__, given_form)


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float):
        return math.isclose(left, right)
    return type(left) is type(right) and bool(left == right)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=_rows)
def test_payloads_come_back_as_they_were(indexes: tuple[VectorIndex, VectorIndex], rows: list[dict[str, Any]]) -> None:
    for index in indexes:
        _fill(index, rows)
        for number, found in enumerate(index.retrieve([uid(n) for n in range(len(rows))])):
            assert found is not None
            assert found.payload["id"] == str(number)
            assert _same(rows[number], found.payload["metadata"])


@pytest.mark.parametrize("tree", [And(()), Or(())])
def test_an_empty_group_does_not_let_everything_pass(indexes: tuple[VectorIndex, VectorIndex], tree: Filter) -> None:
    for index in indexes:
        with pytest.raises(FilterError):
            index.count(tree)


_VARIED: list[Any] = [
    *(None, True, False, 0, 1, 1.0, 2.5, -1, 2**53, 2**53 + 1),
    *("", "a", "ab", "1", "é", "2026-01-31", "2026-01-31T00:00:00Z", "2026-02-01T00:00:00.5Z"),
    *([], [None], [True, 1], ["a", "b"], [2.5, "a"], {"k": True}, {"k": "a"}, {"k": [1, True]}),
]


@pytest.fixture(params=[(1.5, True, "a"), ("a", True, 1.5)], ids=["numbers first", "texts first"])
def rewritten(
    request: pytest.FixtureRequest, fast_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[VectorIndex]:
    """Rows of every kind in segments that were rewritten: there the engine uses other, immutable field indexes."""
    monkeypatch.setattr(edge_module, "_FIELD_INDEX_FROM", 1)
    index, unused = both(fast_path)
    unused.close()
    rows = [
        {"k": value, "l": other, "in dex": value, "$b": other} for value in _VARIED for other in (value, "a", 1, True)
    ]
    _fill(index, [*rows, {}, {"l": 1}])
    for value in request.param:  # make the field indexes
        for key in ("k", "l", "k.k", "in dex", '"$b"'):
            index.count(parse_filter({key: value}))
    index.delete([uid(0)])
    index.purge()
    index.close()
    index = both(fast_path)[0]
    yield index
    index.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(given_form=_filters)
def test_rewritten_segments_agree_as_well(rewritten: VectorIndex, given_form: dict[str, Any]) -> None:
    condition = parse_filter(given_form)
    assert condition is not None
    ids = list(rewritten.ids())
    rows = {p.id: p.payload["metadata"] for p in rewritten.retrieve(ids) if p is not None}
    assert len(rows) > 90
    expected = {point_id for point_id, row in rows.items() if matches(condition, row)}
    found = {hit.id for hit in rewritten.search_dense(np.ones(DIM), limit=1000, filter=condition)}
    assert found == expected
    assert rewritten.count(condition) == len(expected)
