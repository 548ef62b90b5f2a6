"""A Qdrant server over HTTP: the awaited searches agree with the plain ones, and no thread waits for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from tests.core.storage.qdrant_http import Server, qdrant_server
from tests.core.storage.support import DIM, TOKEN_DIM, point, sparse, uid

from nnm_core.errors import FilterError, InvalidInputError, StorageError
from nnm_core.storage.filters import parse_filter
from nnm_core.storage.index import AsyncVectorSearch, ScoredPoint, SparseVector, VectorIndex, open_index

POINTS = 30


@pytest.fixture
def server() -> Iterator[Server]:
    with qdrant_server() as running:
        yield running


@pytest.fixture
def index(server: Server) -> Iterator[VectorIndex]:
    opened = open_index(None, namespace="default", dim=DIM, token_dim=TOKEN_DIM, url=server.url)
    opened.upsert([point(n, {"n": n, "text": "Äpfel" if n % 2 else "nuts", 'a"b': n}) for n in range(POINTS)])
    yield opened
    opened.close()


def awaited(index: VectorIndex) -> AsyncVectorSearch:
    found = index.awaited()
    assert found is not None
    return found


def same(one: Sequence[ScoredPoint], other: Sequence[ScoredPoint]) -> None:
    assert [hit.id for hit in one] == [hit.id for hit in other]
    assert [hit.score for hit in one] == pytest.approx([hit.score for hit in other])


@pytest.mark.parametrize(
    "condition",
    [
        None,
        {"n": {"$gte": 10}},
        {"n": [1, 2, 99]},
        {"text": {"$contains": "pf"}},
        {"$or": [{'a"b': {"$lt": 3}}, {"$not": {'a"b': {"$lt": 28}}}]},
        {"nothing": 1},
    ],
)
async def test_awaited_searches_find_what_plain_ones_find(index: VectorIndex, condition: Any) -> None:
    search, where = awaited(index), parse_filter(condition)
    rng = np.random.default_rng(3)
    dense, tokens = rng.standard_normal(DIM), rng.standard_normal((2, TOKEN_DIM))
    words = SparseVector(rng.choice(30, 6, replace=False), rng.uniform(0.5, 2, 6))
    for limit in (1, 7, 100):
        same(
            await search.search_dense(dense, limit=limit, filter=where),
            index.search_dense(dense, limit=limit, filter=where),
        )
        same(
            await search.search_sparse(words, limit=limit, filter=where),
            index.search_sparse(words, limit=limit, filter=where),
        )
    some = [uid(n) for n in range(5)]
    same(await search.rescore_tokens(tokens, some, limit=9), index.rescore_tokens(tokens, some, limit=9))
    assert await search.search_sparse(SparseVector(np.array([]), np.array([])), limit=3) == []


async def test_bad_input_and_a_server_that_fails(index: VectorIndex, server: Server) -> None:
    search = awaited(index)
    with pytest.raises(InvalidInputError):
        await search.search_dense(np.ones(DIM + 1), limit=1)
    with pytest.raises(InvalidInputError):
        await search.search_sparse(sparse(i1=1.0), limit=0)
    with pytest.raises(FilterError):
        await search.search_dense(np.ones(DIM), limit=1, filter=parse_filter({"n": {"$near": 1}}))
    server.broken = True
    with pytest.raises(StorageError, match="nnm-default"):
        await search.search_dense(np.ones(DIM), limit=1)


async def test_many_searches_wait_for_the_server_without_a_thread_each(index: VectorIndex, server: Server) -> None:
    search = awaited(index)
    await search.search_dense(np.ones(DIM), limit=1)
    server.delay, server.most_under_way = 0.2, 0
    mine = lambda: {t for t in threading.enumerate() if not t.name.endswith("(process_request_thread)")}  # noqa: E731
    before = mine()
    waiting = asyncio.gather(*(search.search_dense(np.ones(DIM), limit=1) for _ in range(40)))
    await asyncio.sleep(0.1)
    during = mine()
    await waiting
    assert during <= before
    assert server.most_under_way > 20


def test_each_event_loop_has_connections_of_its_own(index: VectorIndex) -> None:
    async def once() -> Any:
        found = await awaited(index).search_dense(np.ones(DIM), limit=3)
        index.close() if last else None
        await asyncio.sleep(0.05)
        return found

    last = False
    first = asyncio.run(once())
    last = True
    assert asyncio.run(once()) == first


def test_an_index_in_the_process_is_not_awaited(tmp_path: Any) -> None:
    for path in (tmp_path / "index", None):
        opened = open_index(path, namespace="default", dim=DIM)
        assert opened.awaited() is None
        opened.close()
