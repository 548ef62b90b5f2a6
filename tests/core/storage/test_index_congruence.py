"""Every operation of the index, on the embedded one and on qdrant-client's: both must agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.core.storage.support import DIM, TOKEN_DIM, both, point, sparse, uid

from nnm_core.errors import EngineClosedError, InvalidInputError, StoreMismatchError
from nnm_core.storage.filters import parse_filter
from nnm_core.storage.index import Point, ScoredPoint, SparseVector, VectorIndex, open_index
from nnm_core.storage.qdrant import QdrantIndex, make_client

Pair = tuple[VectorIndex, VectorIndex]


@pytest.fixture
def pair(fast_path: Path) -> Iterator[Pair]:
    made = both(fast_path)
    yield made
    for index in made:
        index.close()


def agree(one: Sequence[ScoredPoint], other: Sequence[ScoredPoint], *, tolerance: float = 1e-4) -> None:
    """The same scores in the same order, and the same points wherever scores are apart."""
    assert np.allclose([h.score for h in one], [h.score for h in other], atol=tolerance, rtol=1e-4)
    assert [h.score for h in one] == sorted((h.score for h in one), reverse=True)
    for a, b in zip(one, other, strict=True):
        near = {h.id for h in other if abs(h.score - a.score) < 10 * tolerance}
        last = abs(a.score - other[-1].score) < 10 * tolerance  # a tie at the limit may go either way
        assert a.id in near or last, (a, b)


_numbers = st.integers(0, 11)
_operations = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.lists(_numbers, max_size=5), st.integers(0, 3)),
        st.tuples(st.just("delete"), st.lists(_numbers, max_size=4), st.just(0)),
        st.tuples(st.just("optimize"), st.just([]), st.just(0)),
        st.tuples(st.just("purge"), st.just([]), st.just(0)),
        st.tuples(st.just("clear"), st.just([]), st.just(0)),
    ),
    max_size=6,
)


def _apply(index: VectorIndex, name: str, numbers: list[int], seed: int) -> None:
    if name == "upsert":
        # The same id twice in one call is not in the contract.
        index.upsert([point(n, {"n": n % 3}, seed=seed) for n in dict.fromkeys(numbers)])
    elif name == "delete":
        index.delete([uid(n) for n in numbers])
    else:
        getattr(index, name)()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=_operations, limit=st.integers(1, 14), n=st.integers(0, 3))
def test_any_sequence_of_operations(pair: Pair, operations: list[Any], limit: int, n: int) -> None:
    edge, client = pair
    for index in pair:
        index.delete(list(index.ids()))
        for operation in operations:
            _apply(index, *operation)
    assert set(edge.ids()) == set(client.ids())
    assert edge.count() == client.count() == len(list(edge.ids()))
    rng = np.random.default_rng([limit, n])
    dense, tokens = rng.standard_normal(DIM), rng.standard_normal((2, TOKEN_DIM))
    weights = SparseVector(rng.choice(30, 6, replace=False), rng.uniform(0.5, 2, 6))
    condition = parse_filter({"n": n})
    assert edge.count(condition) == client.count(condition)
    for one, other in (
        (e, c)
        for f in (None, condition)
        for e, c in (
            (edge.search_dense(dense, limit=limit, filter=f), client.search_dense(dense, limit=limit, filter=f)),
            (edge.search_sparse(weights, limit=limit, filter=f), client.search_sparse(weights, limit=limit, filter=f)),
        )
    ):
        agree(one, other)
    some = [uid(number) for number in range(0, 12, 2)]
    agree(edge.rescore_tokens(tokens, some, limit=limit), client.rescore_tokens(tokens, some, limit=limit))


def test_dense_is_the_cosine(pair: Pair) -> None:
    points = [point(n) for n in range(20)]
    query = np.arange(DIM, dtype=np.float32) - 2.5
    cosines = {p.id: float(p.dense @ query / np.linalg.norm(p.dense) / np.linalg.norm(query)) for p in points}  # type: ignore[operator, arg-type]
    expected = sorted(cosines.items(), key=lambda item: -item[1])[:7]
    for index in pair:
        index.upsert(points)
        found = index.search_dense(query * 100, limit=7)
        assert [h.id for h in found] == [name for name, _ in expected]
        assert np.allclose([h.score for h in found], [score for _, score in expected], atol=1e-5)


def test_sparse_is_the_dot_product_with_idf(pair: Pair) -> None:
    rows = [sparse(i1=1.0, i2=2.0), sparse(i1=3.0), sparse(i1=0.5, i3=1.0), sparse(i4=1.0)]
    for index in pair:
        index.upsert([Point(uid(n), sparse=row, payload={}) for n, row in enumerate(rows)])
        found = {h.id: h.score for h in index.search_sparse(sparse(i1=1.0, i2=1.0), limit=10)}
        idf1, idf2 = (np.log((4 - n + 0.5) / (n + 0.5) + 1) for n in (3, 1))
        expected = {uid(0): idf1 + 2 * idf2, uid(1): 3 * idf1, uid(2): 0.5 * idf1}
        assert found.keys() == expected.keys()  # nothing without a shared index
        assert np.allclose([found[k] for k in expected], list(expected.values()), atol=1e-5)
        assert index.search_sparse(SparseVector(np.array([]), np.array([])), limit=3) == []


def test_tokens_are_scored_by_maxsim(pair: Pair) -> None:
    points = [point(n) for n in range(6)]
    query = np.random.default_rng(1).standard_normal((3, TOKEN_DIM)).astype(np.float32)

    def unit(x: Any) -> Any:
        return x / np.linalg.norm(x, axis=-1, keepdims=True)

    expected = {p.id: float((unit(query) @ unit(p.tokens).T).max(axis=1).sum()) for p in points[:4]}
    for index in pair:
        index.upsert(points)
        found = {h.id: h.score for h in index.rescore_tokens(query, [p.id for p in points[:4]], limit=10)}
        assert found.keys() == expected.keys()
        assert np.allclose([found[k] for k in expected], list(expected.values()), atol=1e-4)
        assert index.rescore_tokens(query, [], limit=3) == []


def test_upsert_replaces_a_point_as_a_whole(pair: Pair) -> None:
    for index in pair:
        index.upsert([point(1, {"old": 1})])
        index.upsert([Point(uid(1), dense=np.ones(DIM), payload={"id": "m1", "metadata": {"new": 2}})])
        assert index.count() == 1
        (found,) = index.retrieve([uid(1)])
        assert found is not None
        assert found.payload == {"id": "m1", "metadata": {"new": 2}}
        assert found.sparse is None
        assert found.tokens is None
        assert index.search_sparse(point(1).sparse or sparse(), limit=3) == []


def test_retrieve_keeps_order_and_gives_vectors_back(pair: Pair) -> None:
    original = point(2, {"x": [True, 1]})
    for index in pair:
        index.upsert([point(1), original])
        second, missing, first = index.retrieve([uid(2), uid(9), uid(1)])
        assert missing is None
        assert first is not None
        assert first.id == uid(1)
        assert second is not None
        assert second.dense is not None
        assert second.sparse is not None
        assert second.tokens is not None
        assert original.dense is not None
        assert original.sparse is not None
        assert np.allclose(second.dense, original.dense / np.linalg.norm(original.dense), atol=1e-6)
        weights = dict(zip(second.sparse.indices.tolist(), second.sparse.values.tolist(), strict=True))
        expected = zip(original.sparse.indices.tolist(), original.sparse.values.tolist(), strict=True)
        assert weights == pytest.approx(dict(expected))
        assert second.tokens.shape == (3, TOKEN_DIM)
        assert second.payload == {"id": "m2", "metadata": {"x": [True, 1]}}


BAD_POINTS = [
    Point("not-a-uuid", np.ones(DIM)),
    Point(uid(0), np.ones(DIM + 1)),
    Point(uid(0), np.ones((1, DIM))),
    Point(uid(0), np.full(DIM, np.nan)),
    Point(uid(0), np.zeros(DIM)),
    Point(uid(0), np.ones(DIM), tokens=np.ones((2, TOKEN_DIM + 1))),
    Point(uid(0), np.ones(DIM), tokens=np.ones((0, TOKEN_DIM))),
]


@pytest.mark.parametrize("bad", BAD_POINTS)
def test_bad_points_are_refused_and_nothing_is_written(pair: Pair, bad: Point) -> None:
    for index in pair:
        with pytest.raises(InvalidInputError):
            index.upsert([point(1), bad])
        assert index.count() == 0


def test_bad_queries_are_refused(pair: Pair) -> None:
    for index in pair:
        index.upsert([point(1)])
        with pytest.raises(InvalidInputError):
            index.search_dense(np.ones(DIM), limit=0)
        with pytest.raises(InvalidInputError):
            index.search_dense(np.full(DIM, np.inf), limit=1)
        with pytest.raises(InvalidInputError):
            index.search_sparse(sparse(i1=1.0), limit=-1)
        with pytest.raises(InvalidInputError):
            index.rescore_tokens(np.ones((1, 3)), [uid(1)], limit=1)
        with pytest.raises(InvalidInputError):
            index.retrieve(["x"])
        with pytest.raises(InvalidInputError):
            index.delete(["x"])


@pytest.mark.parametrize(
    ("indices", "values"),
    [([1, 1], [1, 2]), ([-1], [1]), ([2**32], [1]), ([1], [float("nan")]), ([1, 2], [1]), ([1.5], [1]), ([[1]], [[1]])],
)
def test_bad_sparse_vectors_are_refused(indices: Any, values: Any) -> None:
    with pytest.raises(InvalidInputError):
        SparseVector(np.array(indices), np.array(values))


def test_without_token_vectors(tmp_path: Path) -> None:
    for path in (tmp_path / "index", None):
        index = open_index(path, namespace="n", dim=DIM)
        index.upsert([Point(uid(1), np.ones(DIM))])
        with pytest.raises(InvalidInputError, match="token"):
            index.rescore_tokens(np.ones((1, TOKEN_DIM)), [uid(1)], limit=1)
        index.close()
        index.close()
        with pytest.raises(EngineClosedError):
            index.count()


def test_namespaces_share_a_server_and_nothing_else() -> None:
    client = make_client(None)
    one = QdrantIndex(client, namespace="one", dim=DIM)
    two = QdrantIndex(client, namespace="Two/../x", dim=DIM)
    one.upsert([Point(uid(n), np.ones(DIM), sparse(i1=1.0)) for n in range(5)])
    two.upsert([Point(uid(9), np.ones(DIM), sparse(i1=1.0))])
    assert set(two.ids()) == {uid(9)}
    assert [h.id for h in two.search_dense(np.ones(DIM), limit=10)] == [uid(9)]
    # IDF of one document of one, not of six: statistics do not cross either.
    (hit,) = two.search_sparse(sparse(i1=1.0), limit=10)
    assert hit.score == pytest.approx(np.log(0.5 / 1.5 + 1), abs=1e-6)
    two.clear()
    assert one.count() == 5
    one.close()  # a client that was given stays open
    assert QdrantIndex(client, namespace="one", dim=DIM).count() == 5
    with pytest.raises(StoreMismatchError):
        QdrantIndex(client, namespace="one", dim=DIM + 1)
    with pytest.raises(StoreMismatchError):
        QdrantIndex(client, namespace="one", dim=DIM, token_dim=3)
    client.close()


def test_dimensions_must_make_sense(tmp_path: Path) -> None:
    for dim, token_dim in ((0, None), (4, 0)):
        with pytest.raises(InvalidInputError):
            open_index(tmp_path, namespace="n", dim=dim, token_dim=token_dim)
