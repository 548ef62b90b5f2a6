"""On a Qdrant server: the whole store, and searches that are awaited and keep no thread waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from tests.core.storage.qdrant_http import Server, qdrant_server
from tests.langchain.engines import BINS, FALCON, KEY, open_tiny
from tests.langchain.test_concurrency import beats

from langchain_nnm import NNMRetriever, NNMVectorStore
from nnm_core import NNM, EngineClosedError, FilterError, StorageError

WORKERS = 2


@pytest.fixture
def server() -> Iterator[Server]:
    with qdrant_server() as running:
        yield running


@pytest.fixture
def nnm(server: Server) -> Iterator[NNM]:
    with open_tiny(url=server.url) as opened:
        yield opened


class TestStoreOnAServer(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, nnm: NNM) -> VectorStore:
        return NNMVectorStore(nnm)


class TestForeignEmbedderOnAServer(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, nnm: NNM) -> VectorStore:
        return NNMVectorStore(nnm, self.get_embeddings())


@pytest.fixture
async def few_threads() -> None:
    """This test's loop has two worker threads."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKERS))


@pytest.mark.usefixtures("few_threads")
async def test_searches_under_way_are_not_limited_by_threads(nnm: NNM, server: Server) -> None:
    store = NNMVectorStore(nnm)
    await store.aadd_texts([BINS, FALCON, KEY], ids=["bins", "falcon", "key"])
    retriever = NNMRetriever(nnm=nnm, k=1)
    server.delay, server.most_under_way = 0.1, 0
    found = await asyncio.gather(*(retriever.ainvoke("Who leads the Falcon project?") for _ in range(16)))
    assert {document.id for documents in found for document in documents} == {"falcon"}
    assert server.most_under_way > 2 * WORKERS  # a search has two questions under way, so threads would allow no more
    assert nnm.leases.find(FALCON) != (FALCON,)


async def test_the_loop_stays_free_while_the_server_is_slow(nnm: NNM, server: Server) -> None:
    store = NNMVectorStore(nnm)
    await store.aadd_texts([BINS, FALCON, KEY])
    searches: list[Any] = [
        store.asimilarity_search,
        store.asimilarity_search_with_relevance_scores,
        store.amax_marginal_relevance_search,
    ]

    async def work() -> None:
        await asyncio.gather(*(search("Falcon", k=2) for search in searches for _ in range(4)))

    await work()
    server.delay = 0.05
    walls, cpus = await beats(work)
    idle, _ = await beats(lambda: asyncio.sleep(0.2))
    assert max(cpus) < 0.05
    assert sorted(walls)[len(walls) // 2] < sorted(idle)[len(idle) // 2] + 0.05


@pytest.mark.usefixtures("few_threads")
async def test_writes_wait_for_their_turn_without_taking_threads(nnm: NNM, server: Server) -> None:
    store = NNMVectorStore(nnm)
    await store.aadd_texts([FALCON], ids=["falcon"])
    server.delay = 0.1
    writes = [asyncio.create_task(store.aadd_texts([f"Number {n}"], ids=[str(n)])) for n in range(8)]
    await asyncio.sleep(0.05)
    assert [d.id for d in await store.asimilarity_search("Falcon", k=1, alpha=0)] == ["falcon"]
    assert not all(write.done() for write in writes)
    server.delay = 0.0
    assert await asyncio.gather(*writes) == [[str(n)] for n in range(8)]
    assert nnm.stats()["memories"] == 9


async def test_what_goes_wrong_is_named(nnm: NNM, server: Server) -> None:
    store = NNMVectorStore(nnm)
    await store.aadd_texts([BINS])
    with pytest.raises(FilterError):
        await store.asimilarity_search("bins", filter={"n": {"$near": 3}})
    server.broken = True
    with pytest.raises(StorageError, match="Qdrant server"):
        await store.asimilarity_search("bins")
    server.broken = False
    assert len(await store.asimilarity_search("bins")) == 1
    nnm.close()
    with pytest.raises(EngineClosedError):
        await store.asimilarity_search("bins")
